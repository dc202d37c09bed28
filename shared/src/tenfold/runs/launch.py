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

from tenfold.errors import UserError
from tenfold.runs.ranks import Ranks, ranks


def name_accelerator(device: str) -> None:
    """Tell DeepSpeed that it computes on the CPU, where it does; before it is loaded, and accelerate loads it.

    Left to itself it takes a GPU that it finds, and else reports on stdout that there is none.
    """
    if device == "cpu" or (device == "auto" and not torch.cuda.is_available()):
        os.environ.setdefault("DS_ACCELERATOR", "cpu")


@contextmanager
def join(device: torch.device, package: str, deepspeed: bool = False) -> Iterator[Ranks]:
    """Meet the other processes (NCCL on CUDA, else gloo); alone without torchrun.

    Args:
        device: what this process computes on.
        package: distribution name, for messages.
        deepspeed: whether a stage is trained with it.

    Raises:
        UserError: DeepSpeed without torchrun, or without what it needs.
    """
    if deepspeed:
        require_deepspeed(device, package)
        import deepspeed as engine

        logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
        engine.init_distributed("nccl" if device.type == "cuda" else "gloo", auto_mpi_discovery=False, verbose=False)
    try:
        with ranks(device) as group:
            yield group
    finally:
        if distributed.is_initialized():
            distributed.destroy_process_group()


def require_deepspeed(device: torch.device, package: str) -> None:
    """See that DeepSpeed can start here.

    On the CPU it compiles its communication when it is first used.

    Raises:
        UserError: what is missing.
    """
    if "RANK" not in os.environ:
        launcher = f"torchrun --nproc_per_node N -m {package.replace('-', '_')} train ..."
        raise UserError("DeepSpeed without a launcher", "this process", f"{launcher} (or --set STAGE.deepspeed=null)")
    if find_spec("deepspeed") is None:
        raise UserError("DeepSpeed is not installed", "this Python", f'pip install "{package}[deepspeed]"')
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
