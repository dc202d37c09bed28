"""`flashsloth verify`: how a recorded run is done again, and how far its numbers may move."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flashsloth.evaluation.settings import DemoSettings, EvalSettings
from flashsloth.training.settings import TrainSettings
from tenfold.cli.settings import checked
from tenfold.cli.verify import require_one_process
from tenfold.runs import RunRecord

# Compared bit for bit where versions, device and threads are those of the record. Elsewhere rounding can tip an answer:
# 2 % of a score; MME counts points, up to 200 a subtask. A training takes another path: the mean loss of its last steps
# moves by some hundredths.
TOLERANCES = {
    "pretrain.loss": 0.1,
    "finetune.loss": 0.1,
    "scores.perception": 40,
    "scores.cognition": 16,
    "scores.total": 56,
    "scores.*/points": 8,
    "scores.unread": 10,
    "scores.neither yes nor no": 10,
    "scores.*": 0.02,
    "new_tokens": 2,
}


def eval_again(record: RunRecord, folder: Path) -> Mapping[str, Any]:
    """The metrics of the same evaluation, made in a new folder."""
    from flashsloth.evaluation.run import run_eval

    (evaluation,) = run_eval(checked(EvalSettings, record.config, record.id), record.seed, folder)
    return evaluation.metrics


def demo_again(record: RunRecord, folder: Path) -> Mapping[str, Any]:
    """The metrics of the same demonstration, made in a new folder."""
    from flashsloth.evaluation.demo import run_demo

    return run_demo(checked(DemoSettings, record.config, record.id), record.seed, folder).metrics


def train_again(record: RunRecord, folder: Path) -> Mapping[str, Any]:
    """The metrics of the same training, made in a new folder.

    Raises:
        UserError: it was made by several ranks, which sum in another order than one process.
    """
    from flashsloth.training.run import run_train

    require_one_process(record)
    return run_train(checked(TrainSettings, record.config, record.id), record.seed, folder).metrics


VERIFIERS = {"eval": eval_again, "demo": demo_again, "train": train_again}
