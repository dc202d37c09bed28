"""`gamma-mod verify`: how a recorded run is done again, and how far its numbers may move on another machine."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gamma_mod.evaluation.settings import ArankSettings, DemoSettings, EvalSettings
from gamma_mod.training.settings import TrainSettings
from tenfold.cli.settings import checked
from tenfold.cli.verify import require_one_process
from tenfold.runs import RunRecord

# Compared bit for bit where versions, device and threads are those of the record. Elsewhere rounding can tip a token
# over a threshold, and with it an answer; a training takes another path.
TOLERANCES = {
    "loss": 0.1,
    "*skip*": 0.02,
    "overlap*": 0.1,
    "threshold": 0.01,
    "arank*": 1.0,
    "kept*": 2,
    "scores.perception": 40,
    "scores.cognition": 16,
    "scores.*/points": 8,
    "scores.unread": 10,
    "scores.neither yes nor no": 10,
    "scores.*": 0.02,
    "new_tokens": 2,
    "*_gflops": 0.02,
}


def eval_again(record: RunRecord, folder: Path) -> Mapping[str, Any]:
    """The metrics of the same evaluation, made in a new folder."""
    from gamma_mod.evaluation.run import run_eval

    (evaluation,) = run_eval(checked(EvalSettings, record.config, record.id), record.seed, folder)
    return evaluation.metrics


def demo_again(record: RunRecord, folder: Path) -> Mapping[str, Any]:
    """The metrics of the same demonstration, made in a new folder."""
    from gamma_mod.evaluation.demo import run_demo

    return run_demo(checked(DemoSettings, record.config, record.id), record.seed, folder).metrics


def arank_again(record: RunRecord, folder: Path) -> Mapping[str, Any]:
    """The ranks of the same layers, measured in a new folder."""
    from gamma_mod.evaluation.layers import run_arank

    return run_arank(checked(ArankSettings, record.config, record.id), record.seed, folder).metrics


def train_again(record: RunRecord, folder: Path) -> Mapping[str, Any]:
    """The metrics of the same training, made in a new folder.

    Raises:
        UserError: it was made by several ranks, which sum in another order than one process.
    """
    from gamma_mod.training.run import run_train

    require_one_process(record)
    return run_train(checked(TrainSettings, record.config, record.id), record.seed, folder).metrics


VERIFIERS = {"eval": eval_again, "demo": demo_again, "arank": arank_again, "train": train_again}
