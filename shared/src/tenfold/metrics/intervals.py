"""Bootstrap intervals: how far a metric would move with another draw of the test questions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from tenfold.errors import UserError

# Indices drawn at once: bounds memory to 8 MB, whatever the number of resamples.
_BLOCK = 1_000_000


@dataclass(frozen=True)
class Interval:
    """A statistic on the sample, and the percentile interval of the bootstrap around it."""

    value: float
    low: float
    high: float


def bootstrap(
    values: Sequence[float] | np.ndarray,
    *,
    statistic: Callable[[np.ndarray], float] | None = None,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Interval:
    """Percentile bootstrap (Efron and Tibshirani 1993, section 13.3).

    Args:
        values: one row per test question, `[questions]` or `[questions, ...]`: scores, or whatever `statistic` reads
            (predictions beside labels for F1; the scores of two models, for their paired difference).
        statistic: a figure of resampled rows of the shape of `values`; default: the mean of `[questions]`.
        confidence: mass between the two ends, in (0, 1).
        resamples: how many bootstrap samples, at least 1.
        seed: same seed, same interval.

    Raises:
        UserError: no values, a confidence or a number of resamples out of range.
    """
    values = np.asarray(values)
    if values.shape[:1] in ((), (0,)):
        raise UserError("no values to resample", f"shape {list(values.shape)}", "at least one row")
    if not 0 < confidence < 1:
        raise UserError("confidence out of range", str(confidence), "a number between 0 and 1")
    if resamples < 1:
        raise UserError("number of resamples out of range", str(resamples), "at least 1")
    if statistic is None and values.ndim != 1:
        raise UserError("no statistic given for rows", f"shape {list(values.shape)}", "a statistic, or one value a row")
    rng = np.random.default_rng(seed)
    rows = len(values)
    found = np.empty(resamples)
    step = max(1, _BLOCK // rows)
    for start in range(0, resamples, step):
        drawn = rng.integers(rows, size=(min(step, resamples - start), rows))
        if statistic is None:
            found[start : start + len(drawn)] = values[drawn].mean(axis=1)
        else:
            found[start : start + len(drawn)] = [statistic(values[row]) for row in drawn]
    tail = (1 - confidence) / 2
    low, high = np.quantile(found, (tail, 1 - tail))
    value = values.mean() if statistic is None else statistic(values)
    return Interval(float(value), float(low), float(high))
