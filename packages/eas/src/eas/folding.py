"""Folding (re-parameterisation): for one sample, adapter and PIA vanish into the matrices behind them.

With U(w) = w_0 B + w_1 D (block-diagonal in its groups) and b_U = w_0 b_B + w_1 b_D,

    kept attention     M = I + s U A          b = s U a + s b_U           W' = W M,   b' = W b      (query, key, value)
    removed attention  M = I + s/2 U C        b = s/2 U (c + g) + s b_U   W' = W diag(gamma) M,   b' = W diag(gamma) b
                                                                          (gate and up projection)

M depends on the sample only through the two numbers w, and b through g as well. The d x d matrix M is never built on
the way to W': the update is of low rank, ``W + s (W U) A``, 8.6 TMAC a request become 0.09 at 7B with twelve removed.

The authors' code multiplies b by the matrix that it has just overwritten: ``b' = W M b``. `as_released` gives that.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from eas.adapters import PIA, Adapter


@dataclass(frozen=True)
class Affine:
    """The affine map of one sample in factors, ``M = I + up @ down``.

    Attributes:
        up: ``[width, rank]``, with the scale s (PIA: s / 2) in it.
        down: ``[rank, width]``.
        bias: ``[width]``, b.
    """

    up: Tensor
    down: Tensor
    bias: Tensor

    def matrix(self) -> Tensor:
        """M itself, ``[width, width]``: for tests, and to look at."""
        return torch.eye(self.up.shape[0], dtype=self.up.dtype, device=self.up.device) + self.up @ self.down


@dataclass(frozen=True)
class Folded:
    """A linear layer with the affine map in it: ``weight [out, width]``, ``bias [out]``."""

    weight: Tensor
    bias: Tensor


def affine(module: Adapter, router: Tensor, globe: Tensor | None = None) -> Affine:
    """The affine map that an adapter or PIA is for one sample.

    Args:
        router: ``[2]``, the sample's expert weights.
        globe: ``[rank]``, the sample's global vector; None for an adapter.
    """
    router = router.to(module.B.weight.dtype)
    up = module.scale * (router[0] * module.B.dense() + router[1] * module.D.dense())
    bias = module.scale * (router[0] * module.B.bias + router[1] * module.D.bias)
    if not isinstance(module, PIA):
        return Affine(up, module.A.weight, up @ module.A.bias + bias)
    hidden = module.C.bias if globe is None or not module.use_global else module.C.bias + globe.to(bias.dtype)
    return Affine(0.5 * up, module.C.weight, 0.5 * up @ hidden + bias)


def fold(
    weight: Tensor,
    folded: Affine,
    *,
    bias: Tensor | None = None,
    gain: Tensor | None = None,
    as_released: bool = False,
) -> Folded:
    """Put an affine map into the linear layer behind it.

    Args:
        weight: ``[out, width]``, the layer's own; not changed.
        bias: ``[out]``, the layer's own.
        gain: ``[width]``, gamma of the norm between PIA and the layer.
        as_released: the authors' order of the bias, ``b' = W M b`` where ``W b`` is meant.
    """
    released = folded.bias if gain is None else gain * folded.bias  # the gain stands in both factors there
    if gain is not None:
        weight = weight * gain
    update = torch.linalg.multi_dot([weight, folded.up.to(weight.dtype), folded.down.to(weight.dtype)])
    merged = weight + update
    moved = merged @ released.to(weight.dtype) if as_released else weight @ folded.bias.to(weight.dtype)
    return Folded(merged, moved if bias is None else moved + bias)


def linear_of(folded: Folded) -> nn.Linear:
    """A linear layer of these matrices, which takes no gradient."""
    out, width = folded.weight.shape
    with torch.device("meta"):
        linear = nn.Linear(width, out)
    linear.weight, linear.bias = nn.Parameter(folded.weight, False), nn.Parameter(folded.bias, False)
    return linear
