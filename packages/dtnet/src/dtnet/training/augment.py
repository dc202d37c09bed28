"""The feature augmentation of training: one transform for a whole batch, in both stages.

Each batch draws one of four transforms of the 7 x 7 grid, which then draws whether it acts at all:

    features = augment(features, sample_rng(seed, epoch, batch_index))

The authors' gates are kept: pepper and salt acts if a *uniform* draw is below p, the other three if a *standard normal*
draw is. With p = 0.3 these act with probability 0.618, and 0.48 of all batches change (small rotations move nothing).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from tenfold import UserError

# Of the rows of a batch: how many become pepper, how many salt, how many are masked.
NOISE, MASK = 0.05, 0.1
# Cells that a crop leaves out along each edge: 7 -> 5.
CROPPED = 2


class Rng(Protocol):
    """What the transforms draw from: numpy's Generator."""

    def random(self) -> float: ...

    def standard_normal(self) -> float: ...

    def integers(self, high: int) -> int: ...

    def permutation(self, x: int) -> Any: ...

    def normal(self, loc: float, scale: float, size: Any) -> Any: ...


def pepper_and_salt(features: Tensor, rng: Rng, p: float) -> Tensor:
    """Some rows become the batch's maximum, then as many its minimum."""
    if not rng.random() < p:
        return features
    count = int(features.shape[0] * features.shape[1] * NOISE)
    changed, largest, smallest = features.clone(), features.max(), features.min()
    changed[_cells(features, count, rng)] = largest
    changed[_cells(features, count, rng)] = smallest
    return changed


def pool(features: Tensor, rng: Rng, p: float) -> Tensor:
    """2 x 2 maxima with stride 2 (7 -> 3 cells along an edge; the last row and column are lost), stretched back."""
    if not rng.standard_normal() < p:
        return features
    grid = grid_of(features)
    maps = features.transpose(1, 2).unflatten(2, (grid, grid))  # [batch, width, grid, grid]
    return F.interpolate(F.max_pool2d(maps, 2), size=(grid, grid)).flatten(2).transpose(1, 2).contiguous()


def crop(features: Tensor, rng: Rng, p: float) -> Tensor:
    """A window of 5 x 5 that begins in row and column 0 or 1, stretched back."""
    if not rng.standard_normal() < p:
        return features
    grid = grid_of(features)
    top, left = rng.integers(CROPPED), rng.integers(CROPPED)
    steps = torch.arange(grid, device=features.device) * (grid - CROPPED) // grid  # nearest
    return features[:, ((top + steps)[:, None] * grid + left + steps).flatten()]


def rotate(features: Tensor, rng: Rng, p: float) -> Tensor:
    """Turned by a whole number of degrees in [-30, 29], nearest cell, zeros where nothing came from."""
    if not rng.standard_normal() < p:
        return features
    source, inside = (t.to(features.device) for t in _rotation(grid_of(features), int(rng.integers(60)) - 30))
    return features[:, source] * inside.to(features.dtype)[:, None]


def flip_horizontally(features: Tensor, rng: Rng, p: float) -> Tensor:
    """Left and right change places. Not in the authors' training."""
    return _flip(features, 2) if rng.standard_normal() < p else features


def flip_vertically(features: Tensor, rng: Rng, p: float) -> Tensor:
    """Top and bottom change places. Not in the authors' training."""
    return _flip(features, 1) if rng.standard_normal() < p else features


def gaussian_noise(features: Tensor, rng: Rng, p: float) -> Tensor:
    """Noise of 0.01 of the batch's maximum, the result within [0, maximum]. Not in the authors' training."""
    if not rng.standard_normal() < p:
        return features
    largest = features.max()
    noise = torch.as_tensor(rng.normal(0.0, 0.01, tuple(features.shape)), device=features.device)  # float64
    return ((features / largest + noise).clamp(0, 1) * largest).to(features.dtype)


def shuffle_channels(features: Tensor, rng: Rng, p: float) -> Tensor:
    """The channels in another order, alike for the whole batch. Not in the authors' training."""
    if not rng.standard_normal() < p:
        return features
    return features[:, :, torch.as_tensor(rng.permutation(features.shape[2]), device=features.device)]


def mask(features: Tensor, rng: Rng, p: float) -> Tensor:
    """Some rows become zero. Not in the authors' training."""
    if not rng.random() < p:
        return features
    changed = features.clone()
    changed[_cells(features, int(features.shape[0] * features.shape[1] * MASK), rng)] = 0
    return changed


TRANSFORMS: dict[str, Callable[[Tensor, Rng, float], Tensor]] = {
    one.__name__: one
    for one in (
        pepper_and_salt,
        pool,
        crop,
        rotate,
        flip_horizontally,
        flip_vertically,
        gaussian_noise,
        shuffle_channels,
        mask,
    )
}
# What the authors train with; the order is the one in which their draw counts.
TRAINING = ("pepper_and_salt", "pool", "crop", "rotate")


def augment(features: Tensor, rng: Rng, p: float = 0.3, transforms: Sequence[str] = TRAINING) -> Tensor:
    """One transform, drawn uniformly for the whole batch, with its own gate.

    Args:
        features: float `[batch, grid * grid, width]`, on any device; never changed in place.
        rng: this batch's generator, `tenfold.runs.sample_rng(seed, epoch, batch_index)`: a resumed run draws the same.
        p: what the gate's draw is compared with.
        transforms: names of `TRANSFORMS` to draw from.

    Returns:
        A tensor of the same shape and dtype; `features` itself where the gate stayed shut.

    Raises:
        UserError: an unknown transform, or rows that make no square grid of 3 x 3 cells or more.
    """
    unknown = [name for name in transforms if name not in TRANSFORMS]
    if unknown or not transforms:
        raise UserError("unknown augmentation", ", ".join(unknown) or "none", ", ".join(TRANSFORMS))
    grid_of(features)
    return TRANSFORMS[transforms[rng.integers(len(transforms))]](features, rng, p)


def grid_of(features: Tensor) -> int:
    """Cells along each edge of `[batch, grid * grid, width]`. Raises UserError unless square and 3 or more."""
    grid = math.isqrt(features.shape[1])
    if features.dim() != 3 or grid * grid != features.shape[1] or grid < 3:
        raise UserError(f"features {list(features.shape)}", "augmentation", "[batch, grid * grid, width], grid >= 3")
    return grid


def _cells(features: Tensor, count: int, rng: Rng) -> tuple[Tensor, Tensor]:
    """`count` draws of (image, row), each pair drawn before the next."""
    batch, rows = features.shape[:2]
    drawn = [(int(rng.integers(batch)), int(rng.integers(rows))) for _ in range(count)]
    at = torch.tensor(drawn, dtype=torch.long, device=features.device).reshape(count, 2)
    return at[:, 0], at[:, 1]


def _flip(features: Tensor, axis: int) -> Tensor:
    grid = grid_of(features)
    return features.unflatten(1, (grid, grid)).flip(axis).flatten(1, 2)


@lru_cache(maxsize=128)
def _rotation(grid: int, degrees: int) -> tuple[Tensor, Tensor]:
    """Where each cell of the turned grid comes from: row numbers `[grid * grid]`, and which lie inside the grid.

    Positive angles turn counter-clockwise. Cell centres are turned back about the grid's centre, in float32 as
    torchvision does it: at 30 degrees some fall exactly between two cells, and rounding decides.
    """
    angle = math.radians(-degrees)
    turn = torch.tensor([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
    centre = torch.linspace(-grid / 2 + 0.5, grid / 2 - 0.5, grid)
    points = torch.stack(torch.meshgrid(centre, centre, indexing="xy"), dim=-1)  # (x, y) of [row, column]
    places = (points.view(-1, 2) @ (turn.T / (0.5 * grid))).view(1, grid, grid, 2)
    # A map of row numbers, from 1: what comes out 0 came from outside.
    numbers = torch.arange(1.0, grid * grid + 1).view(1, 1, grid, grid)
    source = F.grid_sample(numbers, places, mode="nearest", align_corners=False).flatten().long()
    return (source - 1).clamp(min=0), source > 0
