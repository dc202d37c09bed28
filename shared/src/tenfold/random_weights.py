"""Random weights for rehearsals and measurements at full size: a checkpoint of them is written without being held.

    write_weights(folder, random_weights(shapes, torch.bfloat16))

Drawing seven billion numbers anew would take the longest: one block is drawn, and repeated from another offset for
every name.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping, Sequence
from functools import cache, partial

import torch
from torch import Tensor

from tenfold.weights import StoredTensor

BLOCK = 2**22 - 3  # odd, so that rows of a matrix differ


def random_weights(shapes: Mapping[str, Sequence[int]], dtype: torch.dtype = torch.bfloat16) -> dict[str, StoredTensor]:
    """Name -> a tensor that is made when it is read (`random_weight`), in the order of `shapes`."""
    return {
        name: StoredTensor(tuple(shape), dtype, partial(random_weight, name, tuple(shape), dtype))
        for name, shape in shapes.items()
    }


def random_weight(name: str, shape: Sequence[int], dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """Numbers of spread 0.02 of a name's own: around 1 in vectors that scale, around 0 in all else."""
    numbers, offset = math.prod(shape), zlib.crc32(name.encode()) % BLOCK
    times = -(-(offset + numbers) // BLOCK)
    # A copy: the block is everybody's.
    drawn = (_block(dtype).repeat(times) if times > 1 else _block(dtype))[offset : offset + numbers].clone()
    drawn = drawn.reshape(shape)
    scales = len(shape) < 2 and not name.endswith(("bias", "running_mean"))
    return drawn + 1 if scales else drawn


@cache
def _block(dtype: torch.dtype) -> Tensor:
    """``[BLOCK]``"""
    return (torch.randn(BLOCK, generator=torch.Generator().manual_seed(0)) * 0.02).to(dtype)
