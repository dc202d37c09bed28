"""Several processes that share an evaluation or a training, as torchrun, accelerate or SLURM start them.

with ranks() as group:                                       # an evaluation: gloo, whatever the models run on
    ...
with ranks(choose_device(settings.device)) as group:         # a training: NCCL on CUDA, else gloo
    ...
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
from torch import distributed

from tenfold.errors import UserError

Item = TypeVar("Item")
Result = TypeVar("Result")
# Of an evaluation: the slowest rank may have hours of work left when the first is done.
PATIENCE = timedelta(days=7)


@dataclass(frozen=True)
class Ranks:
    """This process among those that share the work.

    Attributes:
        rank: its number, 0 leads.
        world: how many there are.
        device: what it computes on, where it was given.
    """

    rank: int = 0
    world: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def leads(self) -> bool:
        """Whether this is the process that writes files."""
        return self.rank == 0

    def meet(self) -> None:
        """Wait until all are here."""
        if self.world > 1:
            distributed.barrier()

    def tell(self, value: Item) -> Item:
        """Rank 0's value, on all of them."""
        box = [value]
        if self.world > 1:
            distributed.broadcast_object_list(box, src=0)
        return box[0]

    def lead(self, work: Callable[[], Result]) -> Result | None:
        """What `work` returns on rank 0, None elsewhere, where it is not called.

        Raises:
            UserError: rank 0's own. The others leave with its exit code: one line says what is wrong.
        """
        if self.world == 1:
            return work()
        result: Result | None = None
        problem: UserError | None = None
        if self.leads:
            try:
                result = work()
            except UserError as error:
                problem = error
        failed = self.tell(problem is not None)
        if problem is not None:
            raise problem
        if failed:
            raise SystemExit(2)
        return result

    def from_lead(self, work: Callable[[], Result]) -> Result:
        """What `work` returns on rank 0, where alone it is called, on all ranks. Raises UserError as `lead` does."""
        return cast(Result, self.tell(self.lead(work)))

    def share(self, items: Sequence[Item]) -> Sequence[Item]:
        """This rank's contiguous part of a batch; parts differ by one item at most."""
        edges = [len(items) * rank // self.world for rank in (self.rank, self.rank + 1)]
        return items[edges[0] : edges[1]]

    def gather(self, part: Any) -> list[Any]:
        """What every rank has, in the order of ranks."""
        if self.world == 1:
            return [part]
        parts: list[Any] = [None] * self.world
        distributed.all_gather_object(parts, part)
        return parts


def world_size() -> int:
    """How many processes were started together, by the environment."""
    return _number("WORLD_SIZE", 1)


def choose_device(name: str) -> torch.device:
    """ "auto", "cpu", "cuda" or "cuda:N" as a device; under torchrun every rank takes its own for "auto" and "cuda".

    Raises:
        UserError: CUDA is asked for and there is none, no device of that number, or fewer devices than ranks.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UserError("no such device", name, "auto, cpu, cuda or cuda:N") from error
    if device.type != "cuda":
        return device
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    number = device.index if device.index is not None else _number("LOCAL_RANK", 0)
    if number >= count:
        here = f"one of the {count} here" if count else "cpu: torch sees no GPU"
        raise UserError("no such CUDA device", f"device cuda:{number}", here)
    device = torch.device("cuda", number)
    if world_size() > 1:
        torch.cuda.set_device(device)
    return device


@contextmanager
def ranks(device: torch.device | None = None) -> Iterator[Ranks]:
    """The ranks that the environment names (RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT); alone without them.

    Args:
        device: what this process trains on: tensors are exchanged there. None: an evaluation, in which all that the
            ranks exchange is who begins and who is done.

    Raises:
        UserError: the variables contradict each other, or one is missing.
    """
    own = device or torch.device("cpu")
    world, rank = world_size(), _number("RANK", 0)
    if world == 1:
        yield Ranks(device=own)
        return
    if rank >= world:
        raise UserError(f"RANK={rank} of WORLD_SIZE={world}", "environment", "ranks from 0, as torchrun sets them")
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        if name not in os.environ:
            raise UserError(f"no {name}", "environment", "torchrun --nproc_per_node N -m PACKAGE VERB ...")
    if not _number("MASTER_PORT", 0):  # the other ranks would look for rank 0 there for ever
        raise UserError("MASTER_PORT=0", "environment", "a port, or torchrun --standalone, which finds a free one")
    started = not distributed.is_initialized()
    if started:
        backend = "nccl" if own.type == "cuda" else "gloo"
        patience = PATIENCE if device is None else None
        distributed.init_process_group(backend, rank=rank, world_size=world, timeout=patience)
    try:
        yield Ranks(rank, world, own)
    finally:
        if started:
            distributed.destroy_process_group()


def _number(name: str, default: int) -> int:
    text = os.environ.get(name, str(default))
    if not text.isdigit():
        raise UserError(f"{name}={text}", "environment", "a whole number")
    return int(text)
