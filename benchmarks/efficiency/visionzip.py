"""VisionZip (Yang et al., CVPR 2025): most visual tokens leave before the decoder, by the vision tower's own attention.

The tokens that the tower's class token attends to most stay as they are (dominant). Of the others some stay as
contextual tokens: evenly spread targets, each the mean of those that are most like it by their keys in that layer.

    method = VisionZip.at_reduction(0.6, shape, visual_tokens=576)
    with method(model):
        model.generate(**inputs)

It needs a tower of CLIP's form, one class token in front, and one picture a prompt. What stays keeps its place among
the positions of the prompt; the authors' code appends contextual tokens behind the dominant ones.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fitprune.evaluation.baselines import RandomBefore
from fitprune.rules import Observation, Rule
from tenfold import UserError
from tenfold.hosts.structure import unwrap

# The authors' settings keep 54 + 10, 108 + 20 and 162 + 30 tokens of 576.
CONTEXTUAL = 10 / 64


@dataclass
class VisionZip(RandomBefore):
    """The visual tokens that enter layer 0 are chosen, and merged, by the vision tower.

    Attributes:
        keep: dominant and contextual tokens together.
        of: V, the visual tokens that this is stated for.
    """

    _handles: list[Any] = field(default_factory=list, init=False, repr=False, compare=False)
    _seen: Tensor | None = field(default=None, init=False, repr=False, compare=False)
    _kept: Tensor | None = field(default=None, init=False, repr=False, compare=False)

    @property
    def rule(self) -> Rule:  # type: ignore[override]
        return self._score

    @property
    def knobs(self) -> str:
        contextual = contextual_tokens(self.keep)
        return f"dominant={self.keep - contextual}, contextual={contextual}"

    def attach(self, model: nn.Module, *, visual_mask: Tensor | None = None) -> None:
        """Start; errors as in `Method.attach`, and for a host whose tower has no class token."""
        host = unwrap(model)
        super().attach(model, visual_mask=visual_mask)
        try:
            attention, projector = _places(host)
        except UserError:
            super().detach()
            raise
        self._handles = [
            attention.register_forward_pre_hook(self._look, with_kwargs=True),
            projector.register_forward_pre_hook(self._merge),
        ]

    def detach(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []
        super().detach()

    def _look(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._seen = args[0] if args else kwargs["hidden_states"]  # [images, 1 + V, width]
        self._module = module

    def _merge(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Tensor, ...]:
        features: Tensor = args[0]  # [images, V, width], as the projector reads them
        assert self._seen is not None
        attention, keys = class_attention(self._module, self._seen)
        keep = features.shape[1] - self.before * features.shape[1] // self.of
        merged, self._kept = merge(features, attention, keys, keep)
        return (merged, *args[1:])

    def _score(self, seen: Observation) -> Tensor:
        visual = seen.tokens.visual
        kept = self._kept
        if kept is None or kept.numel() != sum(seen.tokens.num_visual):
            raise UserError("VisionZip beside other visual tokens", "this prompt", "one picture a prompt, in its pass")
        score = torch.zeros(visual.shape, device=visual.device)
        score[visual] = kept.flatten().float().to(visual.device)
        return score


def contextual_tokens(keep: int) -> int:
    """How many of the tokens that stay are contextual; none where one alone stays."""
    return min(max(1, round(keep * CONTEXTUAL)), keep - 1)


def class_attention(attention: Any, hidden: Tensor) -> tuple[Tensor, Tensor]:
    """What the class token attends to in one layer of the tower.

    Args:
        attention: CLIP's, with `q_proj`, `k_proj`, `num_heads`.
        hidden: ``[images, 1 + V, width]``, its input.

    Returns:
        ``[images, V]`` float32, summed over heads; and the keys ``[images, V, width]``.
    """
    images, _, width = hidden.shape
    heads = attention.num_heads
    query, keys = attention.q_proj(hidden[:, :1]), attention.k_proj(hidden)
    split: Callable[[Tensor], Tensor] = lambda part: part.view(images, -1, heads, width // heads).transpose(1, 2)  # noqa: E731
    logits = split(query).float() @ split(keys).float().transpose(2, 3) * (width // heads) ** -0.5
    return logits.softmax(-1)[:, :, 0, 1:].sum(1), keys[:, 1:]


def merge(features: Tensor, attention: Tensor, keys: Tensor, keep: int) -> tuple[Tensor, Tensor]:
    """Dominant tokens as they are, contextual ones as means; the rest as they were, to be left out.

    Args:
        features: ``[images, V, width]``.
        attention: ``[images, V]``, of the class token.
        keys: ``[images, V, any width]``.
        keep: how many tokens stay.

    Returns:
        ``[images, V, width]``, and which stay, ``[images, V]`` bool.
    """
    images, visual, _ = features.shape
    contextual = contextual_tokens(keep)
    order = attention.argsort(dim=1, descending=True, stable=True)
    dominant = order[:, : keep - contextual]
    others = order[:, keep - contextual :].sort(dim=1).values  # in the order of the picture
    kept = torch.zeros(images, visual, dtype=torch.bool, device=features.device).scatter(1, dominant, True)
    if not contextual:
        return features, kept
    places = torch.arange(contextual, device=features.device) * others.shape[1] // contextual
    targets = others[:, places]  # [images, contextual]
    unit = F.normalize(keys.float(), dim=-1)
    taken: Callable[[Tensor, Tensor], Tensor] = lambda part, at: part.gather(  # noqa: E731
        1, at[..., None].expand(*at.shape, part.shape[-1])
    )
    nearest = (taken(unit, others) @ taken(unit, targets).transpose(1, 2)).argmax(-1)  # [images, others]
    nearest[:, places] = torch.arange(contextual, device=features.device)  # a target belongs to itself
    share = F.one_hot(nearest, contextual).to(features.dtype)  # [images, others, contextual]
    means = share.transpose(1, 2) @ taken(features, others) / share.sum(1)[..., None]
    merged = features.scatter(1, targets[..., None].expand_as(means), means)
    return merged, kept.scatter(1, targets, True)


def _places(host: Any) -> tuple[Any, Any]:
    """The attention of the layer whose output the projector reads, and the projector."""
    config, name = host.config, type(host).__name__
    inner = getattr(host, "model", host)
    tower, projector = getattr(inner, "vision_tower", None), getattr(inner, "multi_modal_projector", None)
    layer = getattr(config, "vision_feature_layer", None)
    default = getattr(config, "vision_feature_select_strategy", None) == "default"
    layers = [] if tower is None else [part for part in tower.modules() if hasattr(part, "self_attn")]
    if projector is None or not layers or not isinstance(layer, int) or not default or not layers[0].self_attn.q_proj:
        raise UserError("VisionZip needs a tower with a class token", name, "LLaVA over CLIP")
    # Hidden state 0 is the embedding: that of number -1 is the last layer's output.
    return layers[len(layers) + layer if layer < 0 else layer - 1].self_attn, projector
