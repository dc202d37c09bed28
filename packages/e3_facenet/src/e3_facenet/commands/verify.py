"""`e3-facenet verify`: how a recorded run is done again, and how far its numbers may move on another machine."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from tenfold.cli.settings import checked
from tenfold.cli.verify import Verifier
from tenfold.runs import RunRecord

# Compared bit for bit where versions, device and threads are those of the record. A training that rounds otherwise ends
# with another model; pictures of one model move by rounding.
TOLERANCES = {
    "Gmain*": float("inf"),
    "Greg*": float("inf"),
    "Dmain*": float("inf"),
    "Dreg*": float("inf"),
    "fid": 0.5,
    "kid_x1000": 0.5,
    "clip_score": 0.005,
    "view_clip": 0.005,
    "mvic": 0.005,
    "flatness": 0.005,
    "mean": 0.005,
    "edit_change": 0.005,
}


def train_again(record: RunRecord, folder: Path) -> Mapping[str, Any]:
    """The metrics of the same training, made in a new folder."""
    from e3_facenet.training.run import run_train
    from e3_facenet.training.settings import TrainSettings

    return run_train(checked(TrainSettings, record.config, record.id), record.seed, folder).metrics


def eval_again(record: RunRecord, folder: Path) -> Mapping[str, Any]:
    """The metrics of the same evaluation."""
    from e3_facenet.evaluation.run import run_eval
    from e3_facenet.evaluation.settings import EvalSettings

    return run_eval(checked(EvalSettings, record.config, record.id), record.seed, folder).metrics


def generate_again(record: RunRecord, folder: Path) -> Mapping[str, Any]:
    """The metrics and files of the same `generate`, `edit` or `demo`."""
    module = import_module("e3_facenet.evaluation.generate")
    settings = import_module("e3_facenet.evaluation.settings").FaceSettings
    return module.run_generate(checked(settings, record.config, record.id), record.seed, folder, record.verb).metrics


VERIFIERS: dict[str, Verifier] = {
    "train": train_again,
    "eval": eval_again,
    "generate": generate_again,
    "edit": generate_again,
    "demo": generate_again,
}
