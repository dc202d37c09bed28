"""This package's format: a folder with ``eas.json`` (the plan and where it comes from) and ``adapters.safetensors``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from eas.checkpoints import keys
from eas.skipper import Skipper
from tenfold import UserError


def fill(skipper: Skipper, weights: Mapping[str, Tensor], where: str | Path) -> None:
    """Put weights under our names into a built skipper: all that its plan needs, and no other.

    Raises:
        UserError: one is missing, unexpected, of another shape, or not finite; the first is named.
    """
    wanted = keys.named(skipper.adapters, skipper.pias)
    missing = sorted(wanted.keys() - weights.keys())
    if missing:
        raise UserError(f"{len(missing)} weights are missing, first {missing[0]}", where, "all of the plan's modules")
    unexpected = sorted(weights.keys() - wanted.keys())
    if unexpected:
        raise UserError(f"{len(unexpected)} weights have no place, first {unexpected[0]}", where, "the plan's modules")
    for name, parameter in wanted.items():
        tensor = weights[name]
        if tensor.shape != parameter.shape:
            raise UserError(f"{name} {list(tensor.shape)}", where, f"{list(parameter.shape)}")
        if not torch.is_floating_point(tensor) or not bool(torch.isfinite(tensor).all()):
            raise UserError(f"{name} is not finite", where, "finite floating-point weights")
    with torch.no_grad():
        for name, parameter in wanted.items():
            parameter.copy_(weights[name])
