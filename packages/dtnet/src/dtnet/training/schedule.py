"""Learning rates: the paper's, one value an epoch, and a step-wise one for short trainings.

The paper trains 26 epochs with cross entropy (XE) and 35 with self-critical sequence training (SCST). Its rate
changes only between epochs:

    xe    0, 1, 2: a quarter, half and three quarters of 1e-4 · 3-9: 1e-4 · 10-19: 2e-5 · 20-24: 4e-6 · 25: 5e-6
    scst  0-14: 5e-6 · 15-24: 5e-7 · 25-29: 2.5e-7 · 30-34: 5e-8

(SCST epochs counted from the start of that stage, which is epoch 26 of the whole training.)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

Stage = Literal["xe", "scst"]
STAGES: tuple[Stage, ...] = ("xe", "scst")

# The highest rate of each stage.
XE_RATE, SCST_RATE = 1e-4, 5e-6
# (epoch of the stage at which a stretch ends, its rate). Two steps down by 5 give 4e-6; the last XE epoch already has
# the rate of SCST, because the scheduler counts one epoch ahead in that stage.
_XE = (
    (1, XE_RATE * 1 / 4),
    (2, XE_RATE * 2 / 4),
    (3, XE_RATE * 3 / 4),
    (10, XE_RATE),
    (20, XE_RATE * 0.2),
    (25, XE_RATE * 0.2 * 0.2),
    (26, SCST_RATE),
)
_SCST = ((15, SCST_RATE), (25, 5e-7), (30, 2.5e-7), (35, 5e-8))
EPOCHS: dict[Stage, int] = {"xe": _XE[-1][0], "scst": _SCST[-1][0]}


def paper_rate(stage: Stage, epoch: int) -> float:
    """The rate of an epoch, counted from 0 within its stage; after the paper's last epoch its last rate stays."""
    stretches: Sequence[tuple[int, float]] = _XE if stage == "xe" else _SCST
    return next((rate for end, rate in stretches if epoch < end), stretches[-1][1])


def cosine_rate(step: int, steps: int, warmup: int, peak: float) -> float:
    """A linear rise over ``warmup`` steps to ``peak``, then half a cosine that would reach 0 at step ``steps``.

    Args:
        step: counted from 0 within the stage.
        steps: of the whole stage, the warm-up included.
    """
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(steps - warmup, 1)))
