"""`dit-sam verify`: how a recorded run is done again, and how far its numbers may move on another machine."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from tenfold.cli.settings import checked
from tenfold.cli.verify import Verifier
from tenfold.runs import RunRecord

# Compared bit for bit where versions, device and threads are those of the record. A training that rounds otherwise ends
# with another model; an evaluation of one model tips a pixel here and there.
TOLERANCES = {
    "best_step": float("inf"),
    "best_mIoU": 15.0,
    "val_*": 15.0,
    "scores.*": 0.5,
    "kinds.*": 0.5,
    "masks.*.pixels": 5.0,
    "masks.*.score": 0.01,
}
# Verb -> its settings, and the function that runs it into a folder and returns something with metrics.
_RUNS = {
    "train": ("dit_sam.training.settings:TrainSettings", "dit_sam.training.run:run_train"),
    "eval": ("dit_sam.evaluation.settings:EvalSettings", "dit_sam.evaluation.run:run_eval"),
    "segment": ("dit_sam.evaluation.settings:SegmentSettings", "dit_sam.evaluation.segment:run_segment"),
    "demo": ("dit_sam.evaluation.settings:DemoSettings", "dit_sam.evaluation.demo:run_demo"),
}


def _named(place: str) -> Any:
    module, _, name = place.partition(":")
    return getattr(import_module(module), name)


def _again(verb: str) -> Verifier:
    def run_again(record: RunRecord, folder: Path) -> Mapping[str, Any]:
        settings, function = (_named(place) for place in _RUNS[verb])
        arguments = {"seed": record.seed, "output": folder}
        function(checked(settings, record.config, record.id), **arguments)
        return RunRecord.load(folder).metrics

    return run_again


VERIFIERS: dict[str, Verifier] = {verb: _again(verb) for verb in _RUNS}
