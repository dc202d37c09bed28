"""`eas verify`: how a recorded run is done again, and how far its numbers may move on another machine."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from eas.evaluation.settings import DemoSettings, EvalSettings, SensitivitySettings
from eas.training.settings import TrainSettings
from tenfold.cli.settings import checked
from tenfold.cli.verify import require_one_process
from tenfold.runs import RunRecord

# Compared bit for bit where versions, device and threads are those of the record. Elsewhere rounding can tip an answer
# (2 % of a score) and a training takes another path, in which a search may end with another list.
TOLERANCES = {"*.loss": 0.2, "scores.*": 2.0, "new_tokens": 1, "prompt_tokens": 1, "host": 5.0, "eas": 5.0}


def eval_again(record: RunRecord, folder: Path) -> Mapping[str, Any]:
    """The metrics of the same evaluation, made in a new folder."""
    from eas.evaluation.run import run_eval

    evaluation = run_eval(checked(EvalSettings, record.config, record.id), record.seed, folder)
    assert evaluation is not None
    return evaluation.metrics


def demo_again(record: RunRecord, folder: Path) -> Mapping[str, Any]:
    """The metrics of the same demonstration, made in a new folder."""
    from eas.evaluation.demo import run_demo

    return run_demo(checked(DemoSettings, record.config, record.id), record.seed, folder).metrics


def sensitivity_again(record: RunRecord, folder: Path) -> Mapping[str, Any]:
    """The list of the same sensitivity, made in a new folder."""
    from eas.evaluation.sensitivity import metrics, run_sensitivity

    return metrics(run_sensitivity(checked(SensitivitySettings, record.config, record.id), record.seed, folder))


def train_again(record: RunRecord, folder: Path) -> Mapping[str, Any]:
    """The metrics of the same training, made in a new folder.

    Raises:
        UserError: it was made by several ranks, which sum in another order than one process.
    """
    from eas.training.run import run_train

    require_one_process(record)
    return run_train(checked(TrainSettings, record.config, record.id), record.seed, folder).metrics


VERIFIERS = {"eval": eval_again, "demo": demo_again, "sensitivity": sensitivity_again, "train": train_again}
