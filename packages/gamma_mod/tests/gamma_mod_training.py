"""A training so small that it takes seconds, and processes that die or work in pairs: forks, so torch loads once."""

import atexit
import gc
import hashlib
import json
import os
import signal
import socket
import sys
import time
import traceback
from pathlib import Path

from gamma_mod.training import run as train
from gamma_mod.training import stage
from gamma_mod.training.settings import TrainSettings
from safetensors.torch import load_file

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


def fork(work, **environment):
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


def killed(work):
    """Whether `work`, in a fork, was ended by SIGKILL."""
    return os.waitstatus_to_exitcode(os.waitpid(fork(work), 0)[1]) == -signal.SIGKILL


def die_after(step, settings, folder):
    """Train in a fork that kills itself when so many steps are done, before they are logged or kept."""

    class Dies(stage.Curve):
        def on_step_end(self, args, state, control, **rest):
            if state.global_step == step:
                os.kill(os.getpid(), signal.SIGKILL)
            super().on_step_end(args, state, control, **rest)

    def work():
        stage.Curve = Dies
        train.run_train(settings, 0, folder)

    return killed(work)


def in_ranks(work, world=2):
    """Run `work` in so many forks that `torch.distributed` takes for the ranks of one machine."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shared = {"WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    children = [fork(work, RANK=str(rank), LOCAL_RANK=str(rank), **shared) for rank in range(world)]
    codes = {}
    deadline = time.monotonic() + 100
    while len(codes) < world:
        for child in set(children) - codes.keys():
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                codes[child] = os.waitstatus_to_exitcode(status)
                deadline = min(deadline, time.monotonic() + 20) if codes[child] else deadline
            elif time.monotonic() > deadline:
                os.kill(child, signal.SIGKILL)
        time.sleep(0.01)
    assert set(codes.values()) == {0}, [codes[child] for child in children]
