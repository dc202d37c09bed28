"""Gradients over several ranks: summed explicitly, as weights that no mask depends on never get one."""

from __future__ import annotations

import torch
from torch import Tensor, distributed, nn
from torch._utils import _flatten_dense_tensors, _unflatten_dense_tensors

from tenfold.runs.ranks import Ranks


def sum_gradients(model: nn.Module, loss: Tensor, group: Ranks) -> Tensor:
    """Replace gradients by their sums over the ranks; returns the sum of the ranks' losses."""
    if group.world == 1:
        return loss
    gradients = [weight.grad for weight in model.parameters() if weight.grad is not None]
    tensors = [*gradients, loss.reshape(1).to(gradients[0].dtype)]
    flat = _flatten_dense_tensors(tensors)
    distributed.all_reduce(flat)
    *summed, total = _unflatten_dense_tensors(flat, tensors)
    torch._foreach_copy_(gradients, summed)
    return total[0]
