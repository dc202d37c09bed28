"""A training so small that it takes a second, and processes that die or work in pairs: forks, so torch loads once."""

from __future__ import annotations

import hashlib
import os
import signal
import socket
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dtnet.data.mini import write_mini_coco
from dtnet.training import run as train
from dtnet.training.settings import TrainSettings

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


def fork(work: Callable[[], object], **environment: str) -> int:
    """Run `work` in a fork of this process; returns its process id."""
    child = os.fork()
    if child:
        return child
    try:
        os.environ.update(environment)
        work()
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    sys.stdout.flush()
    os._exit(0)


def killed(work: Callable[[], object]) -> bool:
    """Whether `work`, in a fork, was ended by SIGKILL."""
    return os.waitstatus_to_exitcode(os.waitpid(fork(work), 0)[1]) == -signal.SIGKILL


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


def in_ranks(work: Callable[[], object], world: int = 2) -> None:
    """Run `work` in so many forks that `torch.distributed` takes for the ranks of one machine."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shared = {"WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    children = [fork(work, RANK=str(rank), LOCAL_RANK=str(rank), **shared) for rank in range(world)]
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    assert codes == [0] * world, codes
