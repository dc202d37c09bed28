"""What a training is going to do, before it does it: `dyvte train --dry-run`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from dyvte.costs import gate_parameters
from dyvte.gates import GateConfig
from dyvte.training.settings import TrainSettings


@dataclass(frozen=True)
class Plan:
    """A training in numbers.

    Attributes:
        samples: that it goes through in an epoch.
        batch: samples a step over all ranks.
        steps: optimiser steps.
        warmup: of them, with a rising rate.
        rate: the highest.
        trainable: parameters of the gates.
        frozen: parameters of the host, not trained.
        updates: expected updates of each gate; each one is steps / layers where one is drawn a step.
    """

    samples: int
    batch: int
    steps: int
    warmup: int
    rate: float
    trainable: int
    frozen: int
    updates: float

    def lines(self) -> list[str]:
        """For the terminal."""
        share = self.trainable / self.frozen if self.frozen else math.nan
        return [
            "stage 1: gates, Xavier start; the host is frozen",
            f"trainable parameters: {self.trainable:,} of {self.trainable + self.frozen:,} ({share:.1%} of the host)",
            f"samples: {self.samples:,}, effective batch: {self.batch}",
            f"steps: {self.steps:,}, warm-up: {self.warmup:,}, then a cosine to 0; highest rate: {self.rate:g}",
            f"expected updates of each gate: {self.updates:.1f}",
        ]

    def schedule(self, step: int) -> float:
        """Share of the highest rate at a step, counted from 0: linear warm-up, then half a cosine."""
        if step < self.warmup:
            return step / max(1, self.warmup)
        progress = (step - self.warmup) / max(1, self.steps - self.warmup)
        return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def plan(settings: TrainSettings, samples: int, config: GateConfig, frozen: int) -> Plan:
    """The plan for so many samples and a host of so many parameters."""
    an_epoch = math.ceil(samples / settings.batch)
    steps = settings.steps or settings.epochs * an_epoch
    every = settings.layers_a_step == "all"
    return Plan(
        samples=samples,
        batch=min(settings.batch, samples),
        steps=steps,
        warmup=math.ceil(settings.warmup * steps),
        rate=settings.rate,
        trainable=gate_parameters(config),
        frozen=frozen,
        updates=float(steps) if every else steps / config.layers,
    )


def gate_config(settings: TrainSettings, host: Any) -> GateConfig:
    """The gates of a host, by its configuration."""
    text = host.get_text_config()
    return GateConfig(
        text.num_hidden_layers, text.hidden_size, settings.width, tuple(settings.states), rank=settings.rank
    )
