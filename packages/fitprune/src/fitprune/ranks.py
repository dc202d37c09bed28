"""Several processes that share an evaluation, as torchrun, accelerate or SLURM start them.

Nothing is trained, so all that they exchange is who begins and who is done: gloo on the CPU does, whatever the models
run on.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import distributed

from tenfold import UserError

Result = TypeVar("Result")
# The slowest rank may have hours of work left when the first is done.
PATIENCE = timedelta(days=7)


@dataclass(frozen=True)
class Ranks:
    """This process among those that share the work.

    Attributes:
        rank: its number, 0 leads.
        world: how many there are.
    """

    rank: int = 0
    world: int = 1

    @property
    def leads(self) -> bool:
        return self.rank == 0

    def meet(self) -> None:
        """Wait until all are here."""
        if self.world > 1:
            distributed.barrier()

    def tell(self, value: Any) -> Any:
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

    def device(self, name: str) -> str:
        """`name`, or for "auto" and "cuda" this rank's own device."""
        if self.world == 1 or name not in ("auto", "cuda") or not torch.cuda.is_available():
            return name
        return f"cuda:{int(os.environ.get('LOCAL_RANK', self.rank)) % torch.cuda.device_count()}"


def world_size() -> int:
    """How many processes were started together, by the environment."""
    return _number("WORLD_SIZE", 1)


@contextmanager
def ranks() -> Iterator[Ranks]:
    """The ranks that the environment names (RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT); alone without them.

    Raises:
        UserError: the variables contradict each other, or one is missing.
    """
    world, rank = world_size(), _number("RANK", 0)
    if world == 1:
        yield Ranks()
        return
    if rank >= world:
        raise UserError(f"RANK={rank} of WORLD_SIZE={world}", "environment", "ranks from 0, as torchrun sets them")
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        if name not in os.environ:
            raise UserError(f"no {name}", "environment", "torchrun --nproc_per_node N -m fitprune eval ...")
    if not _number("MASTER_PORT", 0):  # the other ranks would look for rank 0 there for ever
        raise UserError("MASTER_PORT=0", "environment", "a port, or torchrun --standalone, which finds a free one")
    started = not distributed.is_initialized()
    if started:
        distributed.init_process_group("gloo", rank=rank, world_size=world, timeout=PATIENCE)
    try:
        yield Ranks(rank, world)
    finally:
        if started:
            distributed.destroy_process_group()


def _number(name: str, default: int) -> int:
    text = os.environ.get(name, str(default))
    if not text.isdigit():
        raise UserError(f"{name}={text}", "environment", "a whole number")
    return int(text)
