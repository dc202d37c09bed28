"""`inst-diff-edit verify`: how a recorded run is done again, and how far its numbers may move on another machine."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from inst_diff_edit.evaluation.settings import EditSettings, EvalSettings
from tenfold.cli.settings import checked, checked_dataclass
from tenfold.runs import RunRecord

# Compared bit for bit where versions, device and threads are those of the record.
TOLERANCES = {
    "mask_share": 0.02,
    "loss_of_the_last_100_steps": 0.01,
    "sets.*.iou*": 0.02,
    "sets.*.mask_share": 0.02,
    "sets.*.lpips_*": 0.01,
    "sets.*.change_rate_*": 0.2,
    "sets.*.change_*": 0.01,
    "sets.*.fid": 1.0,
    "sets.*.csfid": 1.0,
    "sets.*.clip_*": 0.005,
}


def edit_again(record: RunRecord, folder: Path) -> Mapping[str, Any]:
    """The metrics of the same edit, made in a new folder."""
    from inst_diff_edit.evaluation.edit import run_edit

    return run_edit(checked(EditSettings, record.config, record.id), record.seed, folder, record.verb).metrics


def train_again(record: RunRecord, folder: Path) -> Mapping[str, Any]:
    """The metrics of the same training, from step 0 in a new folder."""
    from inst_diff_edit.training.run import TrainSettings, train

    settings = checked_dataclass(TrainSettings, record.config, record.id)
    done = train(settings, record.seed, folder, every=settings.steps, resume=False, project=None)
    # Where the recorded run was resumed says nothing about its result.
    return {**done.metrics, "resumed_from": record.metrics.get("resumed_from")}


def eval_again(record: RunRecord, folder: Path) -> Mapping[str, Any]:
    """The metrics of the same evaluation, made in a new folder.

    Raises:
        UserError: data or weights are missing.
    """
    from inst_diff_edit.evaluation.run import run_eval

    found = run_eval(checked(EvalSettings, record.config, record.id), record.seed, folder)
    assert found is not None  # one process is the first rank
    return found.metrics


VERIFIERS = {"edit": edit_again, "demo": edit_again, "train": train_again, "eval": eval_again}
