"""ARank (section 3.2, equation 5): how redundant a layer is, read off the rank of its attention maps.

    ARank(l) = mean over heads of rank(A_l),   A_l = softmax(q k' / sqrt(d) + causal mask)  [tokens, tokens]

as released: on one forward pass over a prompt, with the diagonal of every map set to zero, in float32 with the default
tolerance of ``matrix_rank`` (largest singular value x tokens x 2^-23). Layers of low rank are the ones to convert
(`gamma_mod.placement.select_layers`). The maps of one layer exist while it runs and no longer.

    ranks = gamma_mod.arank(model, samples)      # samples: inputs of the model's forward, e.g. of its processor
    layers = gamma_mod.select_layers(ranks)
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

from tenfold import UserError
from tenfold.hosts import structure

# Eager attention takes and gives maps; its mask is additive and says which keys a query sees.
RANKING = "gamma_mod_arank"
EPSILON = 2.0**-23  # of float32; the ranks depend on it, whatever the precision of the maps


def attention_ranks(maps: Tensor) -> Tensor:
    """Rank of the strictly lower triangle of attention maps.

    Args:
        maps: ``[..., tokens, tokens]``, after the softmax.

    Returns:
        ``[...]`` int64: singular values above ``largest x tokens x 2^-23``; 0 for a map that is zero off its diagonal.
    """
    strict = maps.tril(-1).float()
    singular = torch.linalg.svdvals(strict)  # [..., tokens], descending
    tolerance = singular[..., :1] * maps.shape[-1] * EPSILON
    return (singular > tolerance).sum(-1)


class _Ranking:
    """What one forward pass leaves: the ranks of every layer, row by row."""

    def __init__(self, real: Tensor | None) -> None:
        self.real = real  # [batch, tokens] bool, None without padding
        self.ranks: list[list[Tensor]] = []  # [layers][batch] of [heads]

    def take(self, maps: Tensor) -> None:
        """Rank ``maps [batch, heads, tokens, tokens]`` over every row's own tokens."""
        rows = [row if self.real is None else row[:, real][:, :, real] for row, real in self._rows(maps)]
        self.ranks.append([attention_ranks(row) for row in rows])

    def _rows(self, maps: Tensor) -> Iterator[tuple[Tensor, Any]]:
        return zip(maps, [None] * len(maps) if self.real is None else self.real.to(maps.device), strict=True)


def ranking_attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, None]:
    """Eager attention that hands its maps to the ranking of this pass, and then forgets them."""
    groups = query.shape[1] // key.shape[1]
    key, value = (states.repeat_interleave(groups, dim=1) for states in (key, value))
    scaling = kwargs.get("scaling") or query.shape[-1] ** -0.5
    scores = query @ key.transpose(-1, -2) * scaling  # [batch, heads, tokens, tokens]
    if attention_mask is None:
        raise UserError("attention without a mask", type(module).__name__, "a causal decoder")
    maps = (scores + attention_mask).softmax(-1, dtype=torch.float32).to(query.dtype)
    module._gamma_mod_ranking.take(maps)
    return (maps @ value).transpose(1, 2).contiguous(), None


AttentionInterface.register(RANKING, ranking_attention)
AttentionMaskInterface.register(RANKING, AttentionMaskInterface()["eager"])


@contextmanager
def _ranked(model: Any, real: Tensor | None) -> Iterator[_Ranking]:
    ranking = _Ranking(real)
    attentions: list[Any] = [layer.self_attn for layer in structure.decoder_layers(model)]
    configs = {id(config): config for config in (model.config.get_text_config(), *(a.config for a in attentions))}
    before = {key: config._attn_implementation for key, config in configs.items()}
    try:
        for attention in attentions:
            attention._gamma_mod_ranking = ranking
        for config in configs.values():
            config._attn_implementation = RANKING
        yield ranking
    finally:
        for key, config in configs.items():
            config._attn_implementation = before[key]
        for attention in attentions:
            del attention._gamma_mod_ranking


@torch.no_grad()
def head_ranks(model: nn.Module, samples: Iterable[Mapping[str, Any]]) -> Tensor:
    """The ranks of every prompt, layer and head.

    Args:
        model: a dense transformers vision-language model, or a language model, in evaluation mode.
        samples: arguments of its forward; a batch counts row by row, without its padding.

    Returns:
        ``[prompts, layers, heads]`` int64, on the CPU.

    Raises:
        UserError: no samples, or a model in training mode or already converted.
    """
    host = structure.unwrap(model)
    if host.training:
        raise UserError("ranks in training mode", type(host).__name__, "model.eval(): dropout changes the maps")
    if hasattr(host, "gamma_mod"):
        raise UserError("ranks of a converted model", type(host).__name__, "the dense model, before convert()")
    found: list[Tensor] = []
    for sample in samples:
        mask = sample.get("attention_mask")
        with _ranked(host, None if mask is None else mask.bool()) as ranking:
            host(**{name: value for name, value in sample.items() if name != "labels"}, use_cache=False)
        found += [torch.stack(row).cpu() for row in zip(*ranking.ranks, strict=True)]
    if not found:
        raise UserError("no samples to rank", "arank", "at least one prompt")
    return torch.stack(found)


def arank(model: nn.Module, samples: Iterable[Mapping[str, Any]]) -> list[float]:
    """ARank of every layer: the mean rank over heads and prompts, as they are, whatever the prompts' lengths.

    Arguments and errors as in `head_ranks`.
    """
    return head_ranks(model, samples).double().mean((0, 2)).tolist()
