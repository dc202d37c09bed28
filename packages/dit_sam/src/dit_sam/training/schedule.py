"""The learning rate of every step, and the average of weights that is released (section 5).

    step < t:  warm-up + step (peak - warm-up) / t
    then:      floor + (peak - floor) / 2 (1 + cos(pi (step - t) / (T - t)))

with t the steps of three epochs and T those of the training. The first update is made at the warm-up's rate.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

Schedule = Literal["wcosine", "cosine", "step"]


def warm_cosine_rate(
    step: int, steps: int, warmup: int, peak: float, floor: float = 1e-6, start: float = 1e-7
) -> float:
    """The paper's rate: a rise from `start` over `warmup` steps, then half a cosine from `peak` to `floor`.

    Args:
        step: counted from 0. steps: of the whole training, the warm-up included.
    """
    if step < warmup:
        return start + step * (peak - start) / warmup
    return floor + 0.5 * (peak - floor) * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup)))


def cosine_rate(step: int, steps: int, peak: float) -> float:
    """Half a cosine from `peak` to 0, without a rise."""
    return 0.5 * peak * (1 + math.cos(math.pi * step / steps))


def step_rate(step: int, warmup: int, peak: float, decay_steps: Sequence[int], decay: float = 0.2) -> float:
    """A rise from 0, then `peak` times a power of `decay`: the place, from 1, of the last of `decay_steps` reached."""
    if step <= warmup:
        return peak * step / (warmup + 1)
    reached = [place for place, first in enumerate(decay_steps, start=1) if step >= first]
    return peak * decay ** max(reached, default=0)


class Average:
    """The exponential moving average of a model's weights and buffers, whose decay rises to `alpha`.

        shadow = d shadow + (1 - d) weight,     d = min(alpha, (t + 1) / (t + 10)),  t from 0

    Args:
        model: the shadow starts as a copy of its state, and follows the same tensors.
        alpha: 0.9997 in the paper's training.
    """

    def __init__(self, model: nn.Module, alpha: float) -> None:
        self.alpha = alpha
        self.steps = 0
        self._weights = {name: value.detach() for name, value in model.state_dict().items()}
        self.shadow = {name: value.clone() for name, value in self._weights.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Take in the weights after a step."""
        decay = min(self.alpha, (self.steps + 1) / (self.steps + 10))
        self.steps += 1
        shadows, weights = list(self.shadow.values()), list(self._weights.values())
        torch._foreach_mul_(shadows, decay)
        torch._foreach_add_(shadows, weights, alpha=1 - decay)

    def load(self, shadow: Mapping[str, Tensor], steps: int) -> None:
        """Go on from a checkpoint."""
        for name, value in shadow.items():
            self.shadow[name].copy_(value)
        self.steps = steps
