"""One forward pass of a converted model: what its layers need to know about the tokens, found once at its beginning.

In training that is the budget of every row and the protected tokens; at inference only the padding. Counts are read
to the host here, once a pass, so that training waits for the device in no layer. A decoding step needs nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from gamma_mod.config import GammaModConfig
from gamma_mod.routing import IGNORED, budget, choose_above, choose_top_k, routable_tokens
from tenfold import UserError
from tenfold.hosts import structure
from tenfold.hosts.ragged import cache_length, kv_cache


@dataclass
class ForwardPass:
    """What one forward pass is about.

    Attributes:
        config: the knobs at its beginning.
        training: tokens are chosen by budget.
        decoding: one generated token a row, with a past.
        real: ``[batch, tokens]`` bool, False at padding; None: nothing is padded.
        protected: ``[batch, tokens]`` bool, may not be skipped; None outside training.
        counts: the budget k of every row; None outside training.
        share: weight of this pass in the loss, below 1 under gradient accumulation.
        num_real: tokens without padding; None: nothing is padded.
    auxiliary: the layers' auxiliary losses so far.
    """

    config: GammaModConfig
    training: bool
    decoding: bool
    real: Tensor | None = None
    protected: Tensor | None = None
    counts: tuple[int, ...] | None = None
    share: float | Tensor = 1.0
    num_real: int | None = None
    auxiliary: list[Tensor] = field(default_factory=list)

    @property
    def attends(self) -> Tensor | None:
        """Tokens whose attention output counts, where padding is kept as released."""
        return self.real if self.training and self.config.padding == "released" else None

    @property
    def counted(self) -> Tensor | None:
        """Tokens that the auxiliary loss is a mean of; None: all."""
        return None if self.config.padding == "released" else self.real

    def choose(self, layer: int, keep_prob: Tensor) -> tuple[Tensor, tuple[int, ...] | None]:
        """Which tokens a layer computes.

        Returns:
            ``[batch, tokens]`` bool, and how many of each row where the host knows that already.
        """
        chooser = _CHOOSER.get()
        if chooser is not None:
            return chooser(layer, keep_prob, self)
        device = keep_prob.device
        real = None if self.real is None else self.real.to(device)
        if not self.training:
            return choose_above(keep_prob, self.config.prefill_threshold, real), None
        assert self.protected is not None and self.counts is not None  # both belong to a pass of training
        released = self.config.padding == "released"
        chosen = choose_top_k(keep_prob, self.protected.to(device), self.counts, None if released else real)
        return chosen, self.counts


# Another rule than the paper's, for baselines and for measurements: (layer, p, pass) -> tokens, counts.
Chooser = Callable[[int, Tensor, ForwardPass], tuple[Tensor, tuple[int, ...] | None]]
_CHOOSER: ContextVar[Chooser | None] = ContextVar("gamma_mod_chooser", default=None)


@contextmanager
def choosing(chooser: Chooser) -> Iterator[None]:
    """Let another rule choose the tokens of training passes and prompts in this thread, for a ``with`` block."""
    token = _CHOOSER.set(chooser)
    try:
        yield
    finally:
        _CHOOSER.reset(token)


def open_pass(
    model: nn.Module, config: GammaModConfig, inputs: Mapping[str, Any], routable: Tensor | None
) -> ForwardPass:
    """Read the arguments of a model's forward.

    Args:
        inputs: by name.
        routable: ``[batch, tokens]`` bool, the tokens that training may skip; None: found by the placeholders.

    Raises:
        UserError: an attention mask that is not two-dimensional, several prompts packed into one row, ``routable`` of
            another shape, or nothing that tells visual tokens in training.
    """
    name = type(model).__name__
    ids = inputs.get("input_ids")
    sequence = inputs.get("inputs_embeds") if ids is None else ids
    if sequence is None:
        raise UserError("forward without input_ids or inputs_embeds", name, "one of them")
    batch, length = sequence.shape[:2]
    past = cache_length(kv_cache(inputs), 0)
    if length == 1 and past and not model.training:
        return ForwardPass(config, training=False, decoding=True)
    mask = inputs.get("attention_mask")
    if mask is not None and (not isinstance(mask, Tensor) or mask.ndim != 2):
        raise UserError("an attention mask that is not [batch, tokens]", name, "the two-dimensional padding mask")
    real = None if mask is None else mask[:, -length:].bool()
    num_real = None if real is None else int(real.sum())
    if num_real == batch * length:
        real = num_real = None
    if not model.training:
        return ForwardPass(config, training=False, decoding=False, real=real, num_real=num_real)
    if past:
        raise UserError("training with a KV cache", name, "whole sequences")
    _refuse_packed(inputs.get("position_ids"), real, name)
    if routable is None:
        routable = _routable(model, config, inputs, real, (batch, length))
    elif routable.shape != (batch, length):
        raise UserError(f"routable {list(routable.shape)}", name, f"[{batch}, {length}], as the input")
    return _of_training(config, routable.bool(), real, inputs)


def _routable(
    model: nn.Module, config: GammaModConfig, inputs: Mapping[str, Any], real: Tensor | None, shape: tuple[int, int]
) -> Tensor:
    labels = inputs.get("labels")
    if config.protect == "none":
        sequence = inputs.get("input_ids")
        device = (inputs["inputs_embeds"] if sequence is None else sequence).device
        return routable_tokens(torch.zeros(shape, dtype=torch.bool, device=device), real, labels, "none")
    if inputs.get("input_ids") is None:
        raise UserError(
            "visual tokens cannot be told from inputs_embeds", type(model).__name__, "routable=[batch, tokens]"
        )
    return routable_tokens(structure.visual_mask(model, inputs), real, labels, config.protect)


def _of_training(
    config: GammaModConfig, routable: Tensor, real: Tensor | None, inputs: Mapping[str, Any]
) -> ForwardPass:
    released = config.padding == "released"
    if released and real is not None and not bool(real[:, 0].all()):
        raise UserError("left padding kept as released", "padding", 'right padding, or padding="ignored"')
    lengths = torch.full((len(routable),), routable.shape[1]) if real is None or released else real.sum(1)
    if real is not None and not released:
        routable = routable & real
    facts = torch.stack((lengths.to(routable.device), routable.sum(1)), 1).tolist()
    counts = tuple(budget(tokens, count, config.routing_ratio) for tokens, count in facts)
    return ForwardPass(
        config,
        training=True,
        decoding=False,
        real=real,
        protected=~routable,
        counts=counts,
        share=_share(inputs),
        num_real=None if real is None or released else int(lengths.sum()),
    )


def _share(inputs: Mapping[str, Any]) -> float | Tensor:
    """Under gradient accumulation transformers divides each pass's loss by the answers of all of them; the auxiliary
    losses then count by this pass's share, so that their sum over the passes is a mean."""
    items, labels = inputs.get("num_items_in_batch"), inputs.get("labels")
    if items is None or labels is None:
        return 1.0
    return (labels[:, 1:] != IGNORED).sum() / torch.as_tensor(items, device=labels.device)


def _refuse_packed(position_ids: Tensor | None, real: Tensor | None, name: str) -> None:
    if position_ids is None or position_ids.ndim != 2:
        return
    falls = position_ids[:, 1:] < position_ids[:, :-1]
    if real is not None and len(real) == len(falls):
        falls = falls & real[:, 1:] & real[:, :-1]
    if bool(falls.any()):
        raise UserError("several sequences packed into one row", name, "one sequence a row, padded")
