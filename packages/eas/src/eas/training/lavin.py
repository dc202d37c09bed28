"""LaVIN's learning rate (section 5): by share of an epoch, linear over two of twenty, then half a cosine to zero."""

from __future__ import annotations

import math

BASE_RATE, BATCH, EPOCHS, WARMUP = 9e-3, 32, 20, 2


def lavin_rate(epoch: float, *, base: float = BASE_RATE, batch: int = BATCH, epochs: int = EPOCHS) -> float:
    """The learning rate at `epoch`, a number with a fraction; `base` is of 256 samples."""
    top = base * batch / 256
    if epoch < WARMUP:
        return top * epoch / WARMUP
    return top * 0.5 * (1 + math.cos(math.pi * (epoch - WARMUP) / (epochs - WARMUP)))


def weight_decay(ndim: int, decay: float = 0.02) -> float:
    """Of a tensor: matrices decay, vectors do not."""
    return decay if ndim > 1 else 0.0
