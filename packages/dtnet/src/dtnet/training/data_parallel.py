"""Several processes as one trainer: what `torchrun` starts, or one process alone.

Gradients are summed explicitly after the backward pass rather than by DistributedDataParallel: the differentiable beam
search calls the decoder twenty times a step, which DDP's hooks do not expect, and two of DTNet's parameters
(`brb_identity_2`) never get a gradient.

BatchNorm normalises by the rank's own share of the batch; its running statistics are averaged over the ranks after
every step, so that all ranks hold the same weights at any time.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed, nn
from torch._utils import _flatten_dense_tensors, _unflatten_dense_tensors

from tenfold import UserError

Item = TypeVar("Item")


class Ranks:
    """This process among its peers.

    Attributes:
        rank: its number. world: how many there are. device: what it computes on.
    """

    def __init__(self, rank: int, world: int, device: torch.device) -> None:
        self.rank, self.world, self.device = rank, world, device

    @property
    def first(self) -> bool:
        """Whether this is the process that writes files."""
        return self.rank == 0

    def share(self, items: Sequence[Item]) -> Sequence[Item]:
        """This rank's contiguous part of a batch; parts differ by one item at most."""
        edges = [len(items) * rank // self.world for rank in (self.rank, self.rank + 1)]
        return items[edges[0] : edges[1]]

    def sum(self, value: Tensor) -> Tensor:
        """The sum of a tensor over the ranks."""
        if self.world > 1:
            value = value.clone()
            distributed.all_reduce(value)
        return value

    def sum_gradients(self, model: nn.Module) -> None:
        """Replace gradients by their sums over the ranks, and running statistics by their means."""
        if self.world == 1:
            return
        gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        statistics = [buffer for buffer in model.buffers() if buffer.is_floating_point() and buffer.numel()]
        tensors = gradients + [buffer / self.world for buffer in statistics]
        flat = _flatten_dense_tensors(tensors)
        distributed.all_reduce(flat)
        targets = gradients + statistics
        torch._foreach_copy_(targets, list(_unflatten_dense_tensors(flat, tensors)))

    def gather(self, part: Any) -> list[Any]:
        """What every rank has, in the order of ranks."""
        if self.world == 1:
            return [part]
        parts: list[Any] = [None] * self.world
        distributed.all_gather_object(parts, part)
        return parts

    def broadcast(self, value: Item) -> Item:
        """What the first rank has."""
        if self.world == 1:
            return value
        box = [value]
        distributed.broadcast_object_list(box, src=0)
        return box[0]

    def wait(self) -> None:
        """Go on when all ranks are here."""
        if self.world > 1:
            distributed.barrier()


def choose_device(name: str) -> torch.device:
    """ "auto", "cpu", "cuda" or "cuda:N" as a device; under torchrun every rank takes its own.

    Raises:
        UserError: CUDA is asked for and there is none.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(name)
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise UserError("no CUDA device here", f"device {name}", "cpu")
        number = device.index if device.index is not None else int(os.environ.get("LOCAL_RANK", 0))
        if number >= torch.cuda.device_count():
            raise UserError("no such CUDA device", f"cuda:{number}", f"one of {torch.cuda.device_count()}")
        device = torch.device("cuda", number)
        torch.cuda.set_device(device)
    return device


@contextmanager
def join(device: torch.device) -> Iterator[Ranks]:
    """Meet the other processes that `torchrun` started (NCCL on CUDA, else Gloo); alone without torchrun."""
    world = int(os.environ.get("WORLD_SIZE", 1))
    if world == 1:
        yield Ranks(0, 1, device)
        return
    distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield Ranks(distributed.get_rank(), world, device)
    finally:
        distributed.destroy_process_group()
