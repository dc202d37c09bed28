"""`fitprune verify`: how a recorded run is done again, and how far its numbers may move on another machine."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fitprune.evaluation.settings import AnalyzeSettings, CompareSettings, DemoSettings, EvalSettings
from fitprune.training.settings import FitSettings
from tenfold.cli.settings import checked
from tenfold.runs import RunRecord

# Compared bit for bit where versions, device and threads are those of the record. Elsewhere rounding can tip a
# selection: one step of the bisection, and what that moves; or an answer: 2 % of a score.
TOLERANCES = {
    "*.alpha": 1 / 128,
    "*_reduction": 0.02,
    "*.visual_tokens_left": 12,
    # Of an evaluation. MME counts points, up to 200 a subtask.
    "scores.perception": 40,
    "scores.cognition": 16,
    "scores.*/points": 8,
    "scores.unread": 10,
    "scores.neither yes nor no": 10,
    "scores.*": 0.02,
    "new_tokens": 2,
    "*_gflops": 0.002,
}


def fit_again(record: RunRecord, folder: Path) -> Mapping[str, Any]:
    """The metrics of the same fit, made in a new folder."""
    from fitprune.training.run import run_fit

    return run_fit(checked(FitSettings, record.config, record.id), record.seed, folder).metrics


def demo_again(record: RunRecord, folder: Path) -> Mapping[str, Any]:
    """The metrics of the same demonstration, made in a new folder."""
    from fitprune.evaluation.demo import run_demo

    return run_demo(checked(DemoSettings, record.config, record.id), record.seed, folder).metrics


def eval_again(record: RunRecord, folder: Path) -> Mapping[str, Any]:
    """The metrics of the same evaluation, made in a new folder."""
    from fitprune.evaluation.run import run_eval

    (evaluation,) = run_eval(checked(EvalSettings, record.config, record.id), record.seed, folder)
    return evaluation.metrics


def compare_again(record: RunRecord, folder: Path) -> Mapping[str, Any]:
    """The metrics of the same comparison, made in a new folder."""
    from fitprune.evaluation.compare_run import metrics, run_compare

    return metrics(run_compare(checked(CompareSettings, record.config, record.id), record.seed, folder))


def analyze_again(record: RunRecord, folder: Path) -> Mapping[str, Any]:
    """The figures of the same analysis, made in a new folder."""
    from fitprune.evaluation.analysis import run_analyze

    return run_analyze(checked(AnalyzeSettings, record.config, record.id), record.seed, folder).figures()


VERIFIERS = {
    "fit": fit_again,
    "demo": demo_again,
    "eval": eval_again,
    "compare": compare_again,
    "analyze": analyze_again,
}
