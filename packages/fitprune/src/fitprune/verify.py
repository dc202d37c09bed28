"""`fitprune verify`: how a recorded run is done again, and how far its numbers may move on another machine."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fitprune.settings import DemoSettings, FitSettings, checked
from tenfold.runs import RunRecord

# Compared bit for bit where versions, device and threads are those of the record. Elsewhere rounding can tip a
# selection: one step of the bisection, and what that moves.
TOLERANCES = {"*.alpha": 1 / 128, "*_reduction": 0.02, "*.visual_tokens_left": 12}


def fit_again(record: RunRecord, folder: Path) -> Mapping[str, Any]:
    """The metrics of the same fit, made in a new folder."""
    from fitprune.calibrate import run_fit

    return run_fit(checked(FitSettings, record.config, record.id), record.seed, folder).metrics


def demo_again(record: RunRecord, folder: Path) -> Mapping[str, Any]:
    """The metrics of the same demonstration, made in a new folder."""
    from fitprune.demo import run_demo

    return run_demo(checked(DemoSettings, record.config, record.id), record.seed, folder).metrics


VERIFIERS = {"fit": fit_again, "demo": demo_again}
