"""The processes of a training: one alone, or those that `torchrun` started, with DeepSpeed or without."""

from __future__ import annotations

import logging
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import distributed

from llava_hr.ranks import Ranks, ranks, world_size
from tenfold import UserError

TORCHRUN = "torchrun --nproc_per_node N -m llava_hr train ..."


def choose_device(name: str) -> torch.device:
    """ "auto", "cpu", "cuda" or "cuda:N" as a device; under torchrun every rank takes its own.

    Raises:
        UserError: no such device, or fewer than ranks.
    """
    from llava_hr.checkpoints.load import find_device  # after `name_accelerator`: models bring accelerate along

    device = find_device(name)
    if device.type == "cuda":
        number = device.index if device.index is not None else int(os.environ.get("LOCAL_RANK", 0))
        device = find_device(f"cuda:{number}")
        torch.cuda.set_device(device)
    return device


def name_accelerator(device: str) -> None:
    """Tell DeepSpeed that it computes on the CPU, where it does; before it is loaded, and accelerate loads it.

    Left to itself it takes a GPU that it finds, and else reports on stdout that there is none.
    """
    if device == "cpu" or (device == "auto" and not torch.cuda.is_available()):
        os.environ.setdefault("DS_ACCELERATOR", "cpu")


@contextmanager
def join(device: torch.device, deepspeed: bool) -> Iterator[Ranks]:
    """Meet the other processes (NCCL on CUDA, else gloo); alone without torchrun.

    Args:
        device: what this process computes on.
        deepspeed: whether a stage is trained with it.

    Raises:
        UserError: DeepSpeed without torchrun, or without what it needs.
    """
    if deepspeed:
        require_deepspeed(device)
    backend = "nccl" if device.type == "cuda" else "gloo"
    if deepspeed:
        import deepspeed as engine

        logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
        engine.init_distributed(backend, auto_mpi_discovery=False, verbose=False)
    elif world_size() > 1:
        distributed.init_process_group(backend)
    try:
        with ranks() as group:
            yield group
    finally:
        if distributed.is_initialized():
            distributed.destroy_process_group()


def require_deepspeed(device: torch.device) -> None:
    """See that DeepSpeed can start here.

    On the CPU it compiles its communication when it is first used.

    Raises:
        UserError: what is missing.
    """
    if "RANK" not in os.environ:
        raise UserError("DeepSpeed without a launcher", "this process", f"{TORCHRUN} (or --set STAGE.deepspeed=null)")
    if find_spec("deepspeed") is None:
        raise UserError("DeepSpeed is not installed", "this Python", 'pip install "llava-hr[deepspeed]"')
    if device.type == "cpu" and (missing := missing_tools()):
        raise UserError(f"no {' and no '.join(missing)}", "PATH", "what DeepSpeed compiles with on the CPU")


def missing_tools() -> list[str]:
    """What DeepSpeed needs on the CPU and is not here: g++, ninja.

    A `ninja` that was installed beside this Python is put on the PATH.
    """
    beside = Path(sys.executable).parent
    if shutil.which("ninja") is None and shutil.which("ninja", path=str(beside)):
        os.environ["PATH"] = os.pathsep.join((os.environ.get("PATH", ""), str(beside)))
    # torch's own choice of a compiler.
    needed = {"g++": os.environ.get("CXX", "c++"), "ninja": "ninja"}
    return [name for name, command in needed.items() if shutil.which(command) is None]
