"""`dtnet verify`: how a recorded run is done again, and how far its numbers may move on another machine."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from dtnet.training.settings import TrainSettings
from tenfold.cli.settings import checked
from tenfold.cli.verify import Verifier
from tenfold.runs import RunRecord

# Compared bit for bit where versions, device and threads are those of the record. A training that rounds otherwise ends
# with another model, tens of points of the mini world's CIDEr-D away; an evaluation of one model tips a word or two.
TOLERANCES = {
    "best_step": float("inf"),
    "val_cider": 30.0,
    "xe_*": 30.0,
    "scst_*": 30.0,
    "scores.*": 1.0,
    "mean_log_prob": 0.05,
}


def train_again(record: RunRecord, folder: Path) -> Mapping[str, Any]:
    """The metrics of the same training, made in a new folder."""
    from dtnet.training.run import run_train

    return run_train(checked(TrainSettings, record.config, record.id), record.seed, folder).metrics


def eval_again(record: RunRecord, folder: Path) -> Mapping[str, Any]:
    """The metrics of the same evaluation, made in a new folder."""
    from dtnet.evaluation.run import eval_again

    return eval_again(record, folder)


def analyze_again(record: RunRecord, folder: Path) -> Mapping[str, Any]:
    """For `dtnet verify`: the metrics of the same analysis, made in a new folder."""
    module = import_module("dtnet.evaluation.analysis_run")
    module.run_analyze(checked(module.AnalyzeSettings, record.config, record.id), folder, record.seed)
    return RunRecord.load(folder).metrics


def demo_again(record: RunRecord, folder: Path) -> Mapping[str, Any]:
    """For `dtnet verify`: the metrics of the same demonstration, made in a new folder."""
    module = import_module("dtnet.evaluation.demo")
    return module.run_demo(checked(module.DemoSettings, record.config, record.id), folder).metrics


def score_again(record: RunRecord, folder: Path) -> Mapping[str, Any]:
    """For `dtnet verify`: the metrics of the same scoring, made in a new folder."""
    return import_module("dtnet.evaluation.scoring").score_again(record, folder)


VERIFIERS: dict[str, Verifier] = {
    "train": train_again,
    "eval": eval_again,
    "score": score_again,
    "analyze": analyze_again,
    "demo": demo_again,
}
