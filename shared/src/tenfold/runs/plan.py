"""What a training in stages will do, before it does it: steps, rates, bytes. No torch here: `--dry-run` prints it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import ceil, cos, pi
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from tenfold.errors import UserError
from tenfold.runs.files import read_json


class StageNumbers(Protocol):
    """The numbers of a stage's settings that its plan is made of.

    Attributes:
        epochs. steps: at most so many optimiser steps an epoch; None: all of the data.
        batch: samples of an optimiser step, over all ranks. per_device: of those, how many a device takes at a time.
        learning_rate: the highest.
    """

    @property
    def epochs(self) -> int: ...
    @property
    def steps(self) -> int | None: ...
    @property
    def batch(self) -> int: ...
    @property
    def per_device(self) -> int: ...
    @property
    def learning_rate(self) -> float: ...


Name = TypeVar("Name", bound=str)
Numbers = TypeVar("Numbers", bound=StageNumbers)


@dataclass(frozen=True)
class StagePlan(Generic[Name, Numbers]):
    """One stage of a training.

    Attributes:
        name: of the stage. settings: its settings. warmup_ratio: of its schedule.
        samples: in its data. gpus: ranks that share a batch.
        first: optimiser steps of the training before this stage.
    """

    name: Name
    settings: Numbers
    warmup_ratio: float
    samples: int
    gpus: int
    first: int

    @property
    def accumulation(self) -> int:
        """Forward passes of a device for an optimiser step."""
        return self.settings.batch // (self.settings.per_device * self.gpus)

    @property
    def epoch_samples(self) -> int:
        """Samples of an epoch: all, or what `steps` leaves of them."""
        steps = self.settings.steps
        return self.samples if steps is None else min(self.samples, steps * self.settings.batch)

    @property
    def epoch_steps(self) -> int:
        """Optimiser steps of an epoch; the last batch may be an incomplete one."""
        return ceil(self.epoch_samples / self.settings.batch)

    @property
    def steps(self) -> int:
        return self.settings.epochs * self.epoch_steps

    @property
    def end(self) -> int:
        """Optimiser steps of the training when this stage is done."""
        return self.first + self.steps

    @property
    def warmup(self) -> int:
        """Steps of the linear rise."""
        return ceil(self.warmup_ratio * self.steps)

    def rate(self, step: int) -> float:
        """The learning rate of a step, counted from 0 in the stage: a linear rise, then a cosine to zero."""
        if step < self.warmup:
            return self.settings.learning_rate * step / self.warmup
        progress = (step - self.warmup) / max(1, self.steps - self.warmup)
        return self.settings.learning_rate * 0.5 * (1 + cos(pi * progress))


def plan_stages(
    stages: Iterable[tuple[Name, Numbers]], samples: Mapping[Name, int], warmup_ratio: float, gpus: int
) -> list[StagePlan[Name, Numbers]]:
    """The stages of a training, one after the other.

    Args:
        stages: names and settings, in their order.
        samples: of each stage's data.
        warmup_ratio: of all stages' schedules.
        gpus: ranks that share a batch.

    Raises:
        UserError: a batch that the ranks cannot share.
    """
    plans: list[StagePlan[Name, Numbers]] = []
    for name, stage in stages:
        if stage.batch % (stage.per_device * gpus):
            raise UserError(
                f"a batch of {stage.batch} over {gpus} ranks, {stage.per_device} samples at a time",
                f"{name}.batch",
                f"a multiple of {stage.per_device * gpus}, or another {name}.per_device",
            )
        first = plans[-1].end if plans else 0
        plans.append(StagePlan(name, stage, warmup_ratio, samples[name], gpus, first))
    return plans


def state_bytes(parameters: int, trainable: int, gpus: int, zero: int, precision: str) -> int:
    """Bytes that weights, gradients and AdamW's state take on each of some GPUs.

    Under DeepSpeed in bfloat16 a weight and a gradient take 2 bytes, and what is trained 12 more (its weight and two
    averages, in float32); ZeRO-2 shares gradients and optimiser out, ZeRO-3 also the weights. Without DeepSpeed all
    of it is in float32, on every GPU.
    """
    if not zero:
        return 4 * parameters + 12 * trainable
    weight = 2 if precision == "bf16" else 4
    shared = trainable * (weight + 12)
    weights = weight * parameters
    return (weights + shared) // gpus if zero == 3 else weights + shared // gpus


def deepspeed_config(path: str | Path | None) -> dict[str, Any] | None:
    """The content of a DeepSpeed json; None without one.

    Raises:
        UserError: no such file, or one that is not ZeRO-2 or ZeRO-3.
    """
    if path is None:
        return None
    content = read_json(path)
    zero = content.get("zero_optimization", {}) if isinstance(content, dict) else {}
    if not isinstance(zero, dict) or zero.get("stage") not in (2, 3):
        raise UserError("not a DeepSpeed config", path, "zero_optimization with stage 2 or 3")
    return content


def zero_stage(content: Mapping[str, Any] | None) -> int:
    """The ZeRO stage of a DeepSpeed json's content; 0 without DeepSpeed."""
    return content["zero_optimization"]["stage"] if content else 0


def count_records(path: Path) -> int:
    """How many records a json of conversations has.

    Raises:
        UserError: a missing or broken file, or no records.
    """
    records = read_json(path)
    if not isinstance(records, list) or not records:
        raise UserError("no records", path, "a list of conversations")
    return len(records)
