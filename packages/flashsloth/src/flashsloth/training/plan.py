"""What a training will do, before it does it: stages, steps, rates, parameters. `flashsloth train --dry-run` prints it.

Models are made on the meta device: 3.2 billion parameters take no memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flashsloth.training.settings import StageSettings, TrainSettings
from tenfold.cli import package_file
from tenfold.cli.stages import StageName
from tenfold.runs.plan import StagePlan as Plan
from tenfold.runs.plan import count_records, deepspeed_config, plan_stages, zero_stage

# What stage 1 trains, by our names: SAP and projector.
STAGE_1 = ("model.multi_modal_projector.", "model.pooling.")
TOWER = "model.vision_tower."
StagePlan = Plan[StageName, StageSettings]


def plan(settings: TrainSettings, samples: Mapping[StageName, int], gpus: int) -> list[StagePlan]:
    """The stages of a training on so many samples, over so many ranks.

    Raises:
        UserError: a batch that the ranks cannot share.
    """
    stages = [(name, settings.stage(name)) for name in settings.running]
    return plan_stages(stages, samples, settings.optimizer.warmup_ratio, gpus)


def is_trained(name: str, stage: str, settings: TrainSettings) -> bool:
    """Whether a stage trains the parameter of that name."""
    if stage == "pretrain":
        return name.startswith(STAGE_1)
    return settings.train_vision or not name.startswith(TOWER)


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
        trained = sum(size for name, size in sizes.items() if is_trained(name, one.name, settings))
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
