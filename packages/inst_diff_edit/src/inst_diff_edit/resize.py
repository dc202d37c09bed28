"""Pillow's resizing of 8-bit pictures, on any device.

Pillow resamples rows, then columns, with coefficients in fixed point and 8-bit pixels in between. As two products with
matrices that hold those integers it gives the same bits, batched, without a trip through the CPU: the sums stay below
2**53, so float64 holds them exactly.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

# Fraction bits of Pillow's coefficients for 8-bit pictures.
PRECISION = 22
SUPPORT = 2.0  # of the bicubic filter, in input pixels
CPU = torch.device("cpu")


def bicubic(distance: float) -> float:
    """The cubic convolution kernel with a = -0.5."""
    x = abs(distance)
    if x < 1:
        return (1.5 * x - 2.5) * x * x + 1
    if x < 2:
        return ((-0.5 * x + 2.5) * x - 4) * x + 2
    return 0.0


@lru_cache(maxsize=32)
def coefficients(source: int, target: int, device: torch.device = CPU) -> Tensor:
    """``[target, source]`` float64 of whole numbers: weights times 2**22; each row sums to about 2**22.

    When a picture shrinks, the filter widens with it (antialiasing). Kept on the device: copying them there in every
    step would make the host wait for it.
    """
    scale = source / target
    stretch = max(scale, 1.0)
    reach = SUPPORT * stretch
    matrix = torch.zeros(target, source, dtype=torch.float64)
    for row in range(target):
        centre = (row + 0.5) * scale
        first = max(int(centre - reach + 0.5), 0)
        last = min(int(centre + reach + 0.5), source)
        weights = [bicubic((column - centre + 0.5) / stretch) for column in range(first, last)]
        total = sum(weights)
        for column, weight in zip(range(first, last), weights, strict=True):
            fixed = weight / total * (1 << PRECISION)
            matrix[row, column] = int(fixed - 0.5) if fixed < 0 else int(fixed + 0.5)
    return matrix.to(device)


def resize(pictures: Tensor, height: int, width: int) -> Tensor:
    """Resize like ``PIL.Image.resize((width, height))`` does in mode L: bicubic, rows before columns.

    Where the edges scale by different factors, Pillow 13 takes the columns first if that is cheaper; earlier ones
    never do. Masks here scale alike along both edges.

    Args:
        pictures: ``[..., rows, columns]`` uint8.

    Returns:
        ``[..., height, width]`` uint8.
    """
    rows, columns = pictures.shape[-2:]
    if columns != width:
        across = coefficients(columns, width, pictures.device)
        pictures = _rounded(pictures.double() @ across.T)
    if rows != height:
        down = coefficients(rows, height, pictures.device)
        pictures = _rounded(down @ pictures.double())
    return pictures


def _rounded(sums: Tensor) -> Tensor:
    half = 1 << (PRECISION - 1)
    return ((sums + half) / (1 << PRECISION)).floor().clamp(0, 255).to(torch.uint8)
