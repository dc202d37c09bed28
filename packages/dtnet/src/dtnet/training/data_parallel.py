"""Several processes as one trainer: gradients and counts summed over the ranks of `tenfold.runs.ranks`.

Gradients are summed explicitly after the backward pass rather than by DistributedDataParallel: the differentiable beam
search calls the decoder twenty times a step, which DDP's hooks do not expect, and two of DTNet's parameters
(`brb_identity_2`) never get a gradient.

BatchNorm normalises by the rank's own share of the batch; its running statistics are averaged over the ranks after
every step, so that all ranks hold the same weights at any time.
"""

from __future__ import annotations

import torch
from torch import Tensor, distributed, nn
from torch._utils import _flatten_dense_tensors, _unflatten_dense_tensors

from tenfold.runs.ranks import Ranks


def summed(ranks: Ranks, value: Tensor) -> Tensor:
    """The sum of a tensor over the ranks."""
    if ranks.world > 1:
        value = value.clone()
        distributed.all_reduce(value)
    return value


def sum_gradients(ranks: Ranks, model: nn.Module) -> None:
    """Replace gradients by their sums over the ranks, and running statistics by their means."""
    if ranks.world == 1:
        return
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    statistics = [buffer for buffer in model.buffers() if buffer.is_floating_point() and buffer.numel()]
    tensors = gradients + [buffer / ranks.world for buffer in statistics]
    flat = _flatten_dense_tensors(tensors)
    distributed.all_reduce(flat)
    targets = gradients + statistics
    torch._foreach_copy_(targets, list(_unflatten_dense_tensors(flat, tensors)))
