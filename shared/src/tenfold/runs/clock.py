"""Timing work on a device: CUDA events there, the wall clock on the CPU; ratios of medians in one run."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import TypeVar

import torch

Result = TypeVar("Result")


class Clock:
    """Times work on a device: CUDA events there, the wall clock on the CPU."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def time(self, work: Callable[[], Result]) -> tuple[Result, float, int | None]:
        """What the work returns, its seconds, and the peak of allocated memory in bytes (CUDA only)."""
        if self.device.type != "cuda":
            start = time.perf_counter()
            result = work()
            return result, time.perf_counter() - start, None
        torch.cuda.synchronize(self.device)
        torch.cuda.reset_peak_memory_stats(self.device)
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        with torch.cuda.device(self.device):
            begin.record()
            result = work()
            end.record()
        torch.cuda.synchronize(self.device)
        return result, begin.elapsed_time(end) / 1000, torch.cuda.max_memory_allocated(self.device)


def spread(values: Sequence[float]) -> dict[str, float]:
    """Of rounds of one work, in seconds: the median, the fastest and the slowest."""
    return {"seconds": median(values), "fastest": min(values), "slowest": max(values)}


def speedup(baseline: Sequence[float], values: Sequence[float], predicted: float | None = None) -> dict[str, float]:
    """How many times faster, by medians of alternated rounds.

    Args:
        baseline, values: seconds of every round.
        predicted: the ratio that counted FLOPs (prefill) or bytes (decode) give; None: none is counted.
    """
    realised = median(baseline) / median(values)
    if predicted is None:
        return {"realised": realised}
    return {"predicted": predicted, "realised": realised, "realised_over_predicted": realised / predicted}
