"""Random weights for measurements at full size: drawing seven billion numbers anew would take the longest."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

BLOCK = 2**22 - 3  # odd, so that rows of a matrix differ


@cache
def random_block(dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """``[BLOCK]`` numbers of spread 0.02."""
    return (torch.randn(BLOCK, generator=torch.Generator().manual_seed(0)) * 0.02).to(dtype)


def draw(shape: torch.Size, number: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """A matrix filled with the block over and over, begun at a place of its own; a vector of ones."""
    if len(shape) < 2:
        return torch.ones(shape, dtype=dtype)
    block, count = random_block(dtype).roll(7 * number), shape.numel()
    return block.repeat(-(-count // BLOCK))[:count].view(shape)
