"""A training so small that it takes seconds, and processes that die or work in pairs: forks, so torch loads once."""

import atexit
import gc
import hashlib
import json
import os
import signal
from pathlib import Path

from safetensors.torch import load_file

from gamma_mod.training import run as train
from gamma_mod.training import stage
from gamma_mod.training.settings import TrainSettings
from tenfold.testing.processes import in_ranks, killed

__all__ = ["in_ranks", "killed"]
# Two epochs of three steps; each of two forward passes of four samples.
STEPS = 6
TINY = {
    "conversion": {"calibrate": 0.3, "calibration_samples": 8},
    "data": {
        "conversations": "llava_instruct.json",
        "images": "images",
        "max_length": 200,
        "workers": 0,
        "mini": {"train": 24, "size": 48},
    },
    "stage": {"epochs": 2, "batch": 8, "per_device": 4, "learning_rate": 1e-3},
    "precision": "fp32",
    "gradient_checkpointing": False,
    "device": "cpu",
    "threads": 1,
    "checkpoint_steps": 2,
}

# The Trainer collects garbage several times; what is imported is none.
gc.collect()
gc.freeze()
atexit.register(gc.unfreeze)


def tiny_settings(**changes):
    """Settings, changed group by group."""
    groups = {name: TINY.get(name, {}) | value for name, value in changes.items() if isinstance(value, dict)}
    plain = {name: value for name, value in changes.items() if not isinstance(value, dict)}
    return TrainSettings.model_validate({**TINY, **groups, **plain})


def bits(run):
    """SHA-256 of what a finished training made, and of its curve."""
    names = ("model/model.safetensors", "model/gamma_mod.safetensors", "model/gamma_mod.json", "metrics.jsonl")
    return [hashlib.sha256((Path(run) / name).read_bytes()).hexdigest() for name in names]


def weights(run):
    return load_file(Path(run) / "model" / "model.safetensors")


def lines(run):
    return [json.loads(line) for line in (Path(run) / "metrics.jsonl").read_text().splitlines()]


def die_after(step, settings, folder):
    """Train in a fork that kills itself when so many steps are done, before they are logged or kept."""

    class Dies(stage.SkipCurve):
        def on_step_end(self, args, state, control, **rest):
            if state.global_step == step:
                os.kill(os.getpid(), signal.SIGKILL)
            super().on_step_end(args, state, control, **rest)

    def work():
        stage.SkipCurve = Dies
        train.run_train(settings, 0, folder)

    return killed(work)
