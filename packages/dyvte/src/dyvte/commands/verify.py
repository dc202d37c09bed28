"""`dyvte verify`: how a recorded run is done again, and how far its numbers may move on another machine."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dyvte.evaluation.settings import AnalyzeSettings, DemoSettings, EvalSettings
from dyvte.training.settings import TrainSettings
from tenfold.cli.settings import checked
from tenfold.cli.verify import require_one_process
from tenfold.runs import RunRecord

# Compared bit for bit where versions, device and threads are those of the record. Elsewhere rounding can tip a gate or
# an answer: 2 % of a score.
TOLERANCES = {
    "scores.perception": 40,
    "scores.cognition": 16,
    "scores.*/points": 8,
    "scores.*": 0.02,
    "mean_exit": 0.2,
    "exit_layers.*": 3,
    "saved": 0.02,
    "*_gflops": 1.0,
    "loss": 0.05,
    "exit_labels*": 0.02,
    "answers.*": 0.05,
    "w_*": 0.01,
    "entropy_*": 0.01,
}


def train_again(record: RunRecord, folder: Path) -> Mapping[str, Any]:
    """The metrics of the same training, made in a new folder.

    Raises:
        UserError: it was made by several ranks, which sum in another order than one process.
    """
    from dyvte.training.run import run_train

    require_one_process(record)
    return run_train(checked(TrainSettings, record.config, record.id), record.seed, folder).metrics


def eval_again(record: RunRecord, folder: Path) -> Mapping[str, Any]:
    """The metrics of the same evaluation, made in a new folder."""
    from dyvte.evaluation.run import run_eval

    (evaluation,) = run_eval(checked(EvalSettings, record.config, record.id), record.seed, folder)
    return evaluation.metrics


def demo_again(record: RunRecord, folder: Path) -> Mapping[str, Any]:
    """The metrics of the same demonstration, made in a new folder."""
    from dyvte.evaluation.demo import run_demo

    return run_demo(checked(DemoSettings, record.config, record.id), record.seed, folder).metrics


def analyze_again(record: RunRecord, folder: Path) -> Mapping[str, Any]:
    """The figures of the same study, made in a new folder."""
    from dyvte.evaluation.study import run_analyze

    return run_analyze(checked(AnalyzeSettings, record.config, record.id), record.seed, folder).figures()


VERIFIERS = {"train": train_again, "eval": eval_again, "demo": demo_again, "analyze": analyze_again}
