"""A training so small that it takes a second, and processes that die or work in pairs: forks, so torch loads once."""

from __future__ import annotations

import hashlib
import os
import signal
from pathlib import Path
from typing import Any

from dtnet.data.mini import write_mini_coco
from dtnet.training import run as train
from dtnet.training.settings import TrainSettings
from tenfold.testing.processes import fork, in_ranks, killed

__all__ = [
    "STEPS", "TINY", "XE_STEPS", "die_after", "fork", "in_ranks", "killed", "sha256", "tiny_settings", "weights",
    "write_tiny_data",
]  # fmt: skip

# Two epochs of five steps with cross entropy, two of three steps self-critical.
TINY: dict[str, Any] = {
    "data": {
        "features": "grid_features.h5",
        "vocabulary": "vocabulary.json",
        "tokens": "whitespace",
        "in_memory": True,
        "workers": 0,
        "extractor": {"name": "mini"},
    },
    "model": {
        "d_in": 24,
        "d_model": 16,
        "heads": 2,
        "d_ff": 16,
        "encoder_layers": 1,
        "decoder_layers": 1,
        "max_len": 20,
    },
    "xe": {"epochs": 2, "steps": 5, "batch": 8, "schedule": "cosine", "rate": 3e-3, "warmup": 2},
    "scst": {
        **{"epochs": 2, "steps": 3, "images": 4, "beams": 2, "max_len": 8},
        **{"schedule": "cosine", "rate": 1e-3, "tokens": "whitespace"},
    },
    "validation": {"beams": 2, "max_len": 8, "tokens": "whitespace"},
    "threads": 1,
    "checkpoint_steps": 2,
    "log_steps": 1,
}
XE_STEPS, STEPS = 10, 16


def write_tiny_data(folder: Path) -> Path:
    """Forty scenes for training, six for val, four for test."""
    return write_mini_coco(folder, 0, 40, 6, 4, images=False)


def tiny_settings(folder: Path, **changes: Any) -> TrainSettings:
    """TINY on a data set; `xe=dict(...)` changes settings within a group."""
    values = {**TINY, "data": {**TINY["data"], "folder": str(folder)}}
    for name, change in changes.items():
        values[name] = {**values.get(name, {}), **change} if isinstance(change, dict) else change
    return TrainSettings.model_validate(values)


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def weights(run: Path) -> str:
    """The bits of a finished training's model."""
    return sha256(run / "model" / "model.safetensors")


def die_after(step: int, settings: TrainSettings, folder: Path, resume: bool = False) -> bool:
    """Train in a fork that kills itself when so many steps are done."""

    class Dies(train.Training):
        def _step(self, *args) -> None:
            super()._step(*args)
            if self.progress.step == step:
                os.kill(os.getpid(), signal.SIGKILL)

    def work() -> None:
        train.Training = Dies
        train.run_train(settings, 0, folder, resume)

    return killed(work)
