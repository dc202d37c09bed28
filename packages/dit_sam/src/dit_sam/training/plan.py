"""What a training will do, counted before it starts: model, trainable weights, steps and rates."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from dit_sam.checkpoints.keys import unused_shapes
from dit_sam.config import DITConfig, sized
from dit_sam.data.sets import ReferringSet
from dit_sam.miniature.model import mini_config
from dit_sam.model import DITSam
from dit_sam.training.schedule import cosine_rate, warm_cosine_rate
from dit_sam.training.settings import Freeze, ModelSettings, TrainSettings
from tenfold import UserError


def model_config(settings: ModelSettings) -> DITConfig:
    """The dimensions that settings name. Raises UserError for a variant that is unknown or does not fit the size."""
    variant: Any = settings.variant
    if settings.size == "mini":
        return mini_config(variant).changed(**settings.changes())
    return sized(settings.size, variant, **settings.changes())


def freeze(model: nn.Module, what: Freeze, text: bool) -> None:
    """Leave out of training what stays as it is (section 5).

    Args:
        what: "encoder" leaves SAM's encoder and neck, and lets the text's way into it learn; "encoder_as_flag" leaves
            that way too, as the released code's flag does.
        text: leave BERT as well.
    """
    for name, weight in model.named_parameters():
        in_encoder = name.startswith("image_encoder.")
        is_path = name.startswith("image_encoder.text_path.")
        frozen = in_encoder and (what == "encoder_as_flag" or (what == "encoder" and not is_path))
        weight.requires_grad_(not (frozen or (text and name.startswith("text_encoder."))))


@dataclass(frozen=True)
class Plan:
    """A training in numbers.

    Attributes:
        samples: objects with their sentences, one sentence of each an epoch.
        per_epoch: steps. steps: of all epochs. warmup: of them.
    """

    settings: TrainSettings
    samples: int
    per_epoch: int

    @property
    def steps(self) -> int:
        return self.per_epoch * self.settings.epochs

    @property
    def warmup(self) -> int:
        return int(self.settings.warmup_epochs * self.per_epoch)

    def rate(self, step: int) -> float:
        """The learning rate of a step, counted from 0."""
        its = self.settings
        if its.schedule == "cosine":
            return cosine_rate(step, self.steps, its.rate)
        return warm_cosine_rate(step, self.steps, self.warmup, its.rate, its.floor, its.start_rate)


def plan(settings: TrainSettings, samples: int) -> Plan:
    """The plan for so many samples.

    Raises:
        UserError: not one whole batch.
    """
    if samples < settings.batch:
        raise UserError(f"{samples} samples in train", "batch", f"at least one batch of {settings.batch}")
    per_epoch = samples // settings.batch
    return Plan(settings, samples, per_epoch if settings.steps is None else min(settings.steps, per_epoch))


@dataclass(frozen=True)
class DryRun:
    """What `--dry-run` prints.

    Attributes:
        plan: steps and rates. counted: whether the data were read (else the config's own count stands).
        parameters, trainable: of the model. unused: weights that a release holds besides and nothing reads; the
            published counts include them.
    """

    plan: Plan
    config: DITConfig
    counted: bool
    parameters: int
    trainable: int
    unused: int


def dry_run(settings: TrainSettings) -> DryRun:
    """Count without training: from the data where a folder is named, else from the config's expected count.

    Raises:
        UserError: the named data cannot be read, or give no whole batch.
    """
    data, samples = settings.data, settings.data.expected.train
    if data.folder is not None:
        from pathlib import Path

        samples = len(ReferringSet(Path(data.folder), data.set, data.split).samples("train"))
    config = model_config(settings.model)
    with torch.device("meta"):
        model = DITSam(config)
    freeze(model, settings.freeze, settings.freeze_text)
    counts = [(weight.numel(), weight.requires_grad) for weight in model.parameters()]
    unused = sum(torch.Size(shape).numel() for shape in unused_shapes(config).values())
    total, trainable = sum(n for n, _ in counts), sum(n for n, trained in counts if trained)
    return DryRun(plan(settings, samples), config, data.folder is not None, total, trainable, unused)
