"""What a training will do, before it does it: stages, steps, rates, parameters. `flashsloth train --dry-run` prints it.

Models are made on the meta device: 3.2 billion parameters take no memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, cos, pi
from pathlib import Path
from typing import Any

from flashsloth.training.settings import StageSettings, TrainSettings
from tenfold import UserError
from tenfold.cli import package_file
from tenfold.cli.stages import StageName
from tenfold.runs.plan import count_records, deepspeed_config, zero_stage

# What stage 1 trains, by our names: SAP and projector.
STAGE_1 = ("model.multi_modal_projector.", "model.pooling.")
TOWER = "model.vision_tower."


@dataclass(frozen=True)
class StagePlan:
    """One stage of a training.

    Attributes:
        name: "pretrain" or "finetune". settings: its settings. warmup_ratio: of its schedule.
        samples: in its data. gpus: ranks that share a batch.
        first: optimiser steps of the training before this stage.
        vision: whether the vision tower is trained.
    """

    name: StageName
    settings: StageSettings
    warmup_ratio: float
    samples: int
    gpus: int
    first: int
    vision: bool

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
    def steps(self) -> int:
        """Optimiser steps; the last batch of an epoch may be an incomplete one."""
        return self.settings.epochs * ceil(self.epoch_samples / self.settings.batch)

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

    def trains(self, name: str) -> bool:
        """Whether the stage trains the parameter of that name."""
        if self.name == "pretrain":
            return name.startswith(STAGE_1)
        return self.vision or not name.startswith(TOWER)


def plan(settings: TrainSettings, samples: dict[StageName, int], gpus: int) -> list[StagePlan]:
    """The stages of a training on so many samples, over so many ranks.

    Raises:
        UserError: a batch that the ranks cannot share.
    """
    stages: list[StagePlan] = []
    for name in settings.running:
        stage = settings.stage(name)
        if stage.batch % (stage.per_device * gpus):
            raise UserError(
                f"a batch of {stage.batch} over {gpus} ranks, {stage.per_device} samples at a time",
                f"{name}.batch",
                f"a multiple of {stage.per_device * gpus}, or another {name}.per_device",
            )
        first = stages[-1].end if stages else 0
        ratio, vision = settings.optimizer.warmup_ratio, settings.train_vision and name == "finetune"
        stages.append(StagePlan(name, stage, ratio, samples[name], gpus, first, vision))
    return stages


@dataclass(frozen=True)
class StageCount:
    """What `--dry-run` says of a stage's model.

    Attributes:
        plan: its steps.
        parameters, trainable: all of the model's, and those that the stage trains.
        visual_tokens: of an image. positions: the longest sequence, text, image and one group of queries.
    """

    plan: StagePlan
    parameters: int
    trainable: int
    visual_tokens: int
    positions: int


@dataclass(frozen=True)
class DryRun:
    """What `--dry-run` prints. counted: whether data were read (else the config's own counts stand)."""

    stages: list[StageCount]
    counted: bool


def dry_run(settings: TrainSettings) -> DryRun:
    """Count without training: from the data where a folder is named, else from the config's expected counts.

    Raises:
        UserError: the named data cannot be read; a batch that the ranks cannot share.
    """
    import torch

    from flashsloth.modeling import FlashSlothForConditionalGeneration
    from flashsloth.training.start import model_config
    from tenfold.runs.ranks import world_size

    data, gpus = settings.data, world_size()
    samples: dict[StageName, int] = {}
    for name in settings.running:
        stage = settings.stage(name)
        count = getattr(data.expected, name) if data.folder is None else count_records(Path(data.folder) / stage.data)
        samples[name] = count - len(stage.skip)
    with torch.device("meta"):
        model = FlashSlothForConditionalGeneration(config := model_config(settings))
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    counts = []
    for one in plan(settings, samples, gpus if gpus > 1 else data.expected.gpus):
        trained = sum(size for name, size in sizes.items() if one.trains(name))
        tokens = config.num_image_tokens
        positions = one.settings.max_length - 2 + tokens + config.query_count
        counts.append(StageCount(one, sum(sizes.values()), trained, tokens, positions))
    return DryRun(counts, data.folder is not None)


def deepspeed_of(stage: StageSettings) -> dict[str, Any] | None:
    """The content of a stage's DeepSpeed json, shipped or the user's own; None without DeepSpeed.

    Raises:
        UserError: no such file, or one that is not ZeRO-2 or ZeRO-3.
    """
    named = stage.deepspeed
    if named in ("zero2", "zero3"):
        return deepspeed_config(package_file("flashsloth", f"configs/{named}.json"))
    return deepspeed_config(named)


def zero_of(stage: StageSettings) -> int:
    """The ZeRO stage of a stage's DeepSpeed json; 0 without DeepSpeed."""
    return zero_stage(deepspeed_of(stage))
