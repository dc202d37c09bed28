"""The names of the authors' LLaVA host and ours, one to one.

    model.layers.{i}.adapter_attn.conv_A.weight [h, d, 1]       layers.{i}.adapter.A.weight [h, d]
    model.layers.{i}.replaced_adapter.expert_weights.bias [2]   layers.{i}.pia.router.bias [2]
    model.mm_projector.{0|2}.weight                             projector.linear_{1|2}.weight
    model.mm_projector.weight (LLaVA's first version)           projector.linear.weight

Projections are 1x1 convolutions there, whose last axis is dropped here. ``adapter_attn.expert_weights`` has no bias and
``replaced_adapter.expert_weights`` has one; nothing is filled in on either way.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from torch import Tensor, nn

from eas.adapters import PIA, Adapter

OFFICIAL = re.compile(
    r"model\.layers\.(\d+)\.(adapter_attn|replaced_adapter)\.(conv_[ABCD]|expert_weights)\.(weight|bias)"
)
OURS = re.compile(r"layers\.(\d+)\.(adapter|pia)\.([ABCD]|router)\.(weight|bias)")
PROJECTOR_OFFICIAL, PROJECTOR = "model.mm_projector.", "projector."
KINDS = {"adapter_attn": "adapter", "replaced_adapter": "pia"}
KINDS_BACK = {ours: official for official, ours in KINDS.items()}
# LLaVA-1.5's projector is a sequence with an activation at 1; transformers names its two layers.
PROJECTOR_PARTS = {"0.": "linear_1.", "2.": "linear_2.", "": "linear."}
PROJECTOR_LEAVES = re.compile(r"(0\.|2\.|)(weight|bias)")


def from_official(key: str) -> str | None:
    """Our name of an official weight; None for one that is not of the method (the frozen language model)."""
    if key.startswith(PROJECTOR_OFFICIAL):
        end = PROJECTOR_LEAVES.fullmatch(key.removeprefix(PROJECTOR_OFFICIAL))
        return PROJECTOR + PROJECTOR_PARTS[end[1]] + end[2] if end else None
    match = OFFICIAL.fullmatch(key)
    if match is None:
        return None
    layer, kind, part, leaf = match.groups()
    return f"layers.{layer}.{KINDS[kind]}.{part.removeprefix('conv_') if part != 'expert_weights' else 'router'}.{leaf}"


def to_official(key: str) -> str:
    """The official name of one of our weights."""
    for official, ours in PROJECTOR_PARTS.items():
        if key.startswith(PROJECTOR + ours):
            return PROJECTOR_OFFICIAL + official + key.removeprefix(PROJECTOR + ours)
    match = OURS.fullmatch(key)
    if match is None:
        raise KeyError(key)
    layer, kind, part, leaf = match.groups()
    return f"model.layers.{layer}.{KINDS_BACK[kind]}.{'expert_weights' if part == 'router' else f'conv_{part}'}.{leaf}"


def is_convolution(official_key: str) -> bool:
    """Whether the official weight carries a last axis of length one."""
    return ".conv_" in official_key and official_key.endswith(".weight")


def tensors_from_official(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The method's weights of an official state dict under our names; all others are left out."""
    found = {}
    for key, tensor in weights.items():
        ours = from_official(key)
        if ours is not None:
            found[ours] = tensor.squeeze(-1) if is_convolution(key) and tensor.ndim == 3 else tensor
    return found


def tensors_to_official(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our weights under the official names, convolutions with their last axis."""
    renamed = {to_official(key): tensor for key, tensor in weights.items()}
    return {key: tensor.unsqueeze(-1) if is_convolution(key) else tensor for key, tensor in renamed.items()}


def named(adapters: Mapping[int, Adapter], pias: Mapping[int, PIA]) -> dict[str, nn.Parameter]:
    """All parameters of adapters and PIAs by our names."""
    found: dict[str, nn.Parameter] = {}
    parts: tuple[tuple[str, Mapping[int, Adapter]], ...] = (("adapter", adapters), ("pia", pias))
    for kind, modules in parts:
        for layer, module in modules.items():
            found |= {f"layers.{layer}.{kind}.{key}": value for key, value in module.named_parameters()}
    return found


def unused(keys: Iterable[str]) -> list[str]:
    """Official keys of the method that name no layer's adapter, PIA or projector."""
    return [key for key in keys if from_official(key) is None and ("adapter" in key or "mm_projector" in key)]
