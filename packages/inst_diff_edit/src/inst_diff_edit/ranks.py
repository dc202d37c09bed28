"""Several processes that share an evaluation, as `torchrun` starts them.

Nothing is trained: all that they exchange is who begins and who is done. Gloo on the CPU does, whatever the models run
on.
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
        rank: its number, 0 leads. world: how many there are.
    """

    rank: int = 0
    world: int = 1

    @property
    def leads(self) -> bool:
        """Whether this is the process that writes results."""
        return self.rank == 0

    def meet(self) -> None:
        """Wait until all are here."""
        if self.world > 1:
            distributed.barrier()

    def lead(self, work: Callable[[], Result]) -> Result:
        """What ``work`` returns on rank 0, told to all; it is called there only.

        Raises:
            UserError: rank 0's own. The others leave with its exit code: one line says what is wrong.
        """
        if self.world == 1:
            return work()
        box: list[Any] = [None, False]
        problem: UserError | None = None
        if self.leads:
            try:
                box[0] = work()
            except UserError as error:
                problem, box[1] = error, True
        distributed.broadcast_object_list(box, src=0)
        if problem is not None:
            raise problem
        if box[1]:
            raise SystemExit(2)
        return box[0]

    def device(self, name: str) -> str:
        """``name``, or for "auto" and "cuda" this rank's own device."""
        if self.world == 1 or name not in ("auto", "cuda") or not torch.cuda.is_available():
            return name
        return f"cuda:{int(os.environ.get('LOCAL_RANK', self.rank)) % torch.cuda.device_count()}"


@contextmanager
def ranks() -> Iterator[Ranks]:
    """The ranks that the environment names; alone without `torchrun`.

    Raises:
        UserError: a variable of the environment is missing or no number.
    """
    world, rank = _number("WORLD_SIZE", 1), _number("RANK", 0)
    if world == 1:
        yield Ranks()
        return
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        if name not in os.environ:
            raise UserError(f"no {name}", "environment", "torchrun --nproc_per_node N -m inst_diff_edit eval ...")
    distributed.init_process_group("gloo", rank=rank, world_size=world, timeout=PATIENCE)
    try:
        yield Ranks(rank, world)
    finally:
        distributed.destroy_process_group()


def _number(name: str, default: int) -> int:
    text = os.environ.get(name, str(default))
    if not text.isdigit():
        raise UserError(f"{name}={text}", "environment", "a whole number")
    return int(text)
