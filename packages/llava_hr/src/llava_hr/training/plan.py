"""What a training will do, before it does it: stages, steps, rates, parameters. `llava-hr train --dry-run` prints it.

Models are made on the meta device: the 13 billion parameters of LLaVA-HR-X take no memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llava_hr.checkpoints.projector import TRAINED
from llava_hr.training.settings import StageSettings, TrainSettings
from tenfold.cli import package_file
from tenfold.cli.stages import StageName
from tenfold.runs.plan import StagePlan as Plan
from tenfold.runs.plan import count_records, plan_stages, state_bytes
from tenfold.runs.plan import deepspeed_config as read_deepspeed
from tenfold.runs.plan import zero_stage as zero_of
from tenfold.runs.ranks import world_size

StagePlan = Plan[StageName, StageSettings]


def plan(settings: TrainSettings, samples: Mapping[StageName, int], gpus: int) -> list[StagePlan]:
    """The stages of a training on so many samples, over so many ranks.

    Raises:
        UserError: a batch that the ranks cannot share.
    """
    stages = [(name, settings.stage(name)) for name in settings.running]
    return plan_stages(stages, samples, settings.optimizer.warmup_ratio, gpus)


def is_trained(name: str, stage: str) -> bool:
    """Whether a stage trains the parameter of that name: in stage 2 all of them (section 5)."""
    return stage == "finetune" or name.startswith(TRAINED)


@dataclass(frozen=True)
class StageCount:
    """What `--dry-run` says of a stage's model.

    Attributes:
        plan: its steps.
        parameters, trainable: all of the model's, and those that the stage trains. unused: what official checkpoints
            and the published counts hold besides: ConvNeXt's head and CLIP's last norm.
        visual_tokens: of an image. positions: the longest sequence, text and image.
        state_bytes: of a GPU: weights, gradients and the optimiser's state. Activations come on top.
    """

    plan: StagePlan
    parameters: int
    trainable: int
    unused: int
    visual_tokens: int
    positions: int
    state_bytes: int


@dataclass(frozen=True)
class DryRun:
    """What `--dry-run` prints.

    Attributes:
        stages: in their order. counted: whether data were read (else the config's own counts stand).
    """

    stages: list[StageCount]
    counted: bool


def dry_run(settings: TrainSettings) -> DryRun:
    """Count without training: from the data where a folder is named, else from the config's expected counts.

    Raises:
        UserError: the named data cannot be read; a batch that the ranks cannot share.
    """
    from llava_hr.costs import Shape, head_parameters
    from llava_hr.training.start import model_config

    data, gpus = settings.data, world_size()
    samples = {name: getattr(data.expected, name) for name in settings.running}
    if data.folder is not None:
        samples = {name: count_records(Path(data.folder) / settings.stage(name).data) for name in settings.running}
    counts = []
    for stage in plan(settings, samples, gpus if gpus > 1 else data.expected.gpus):
        config = model_config(settings, stage.name)
        parameters, trainable = count_parameters(config, stage.name)
        tokens, shape = config.num_image_tokens, Shape.of(config)
        unused = 2 * shape.vit.width + (head_parameters(shape.conv) if shape.conv is not None else 0)
        positions = stage.settings.max_length - 1 + tokens
        state = state_bytes(parameters, trainable, stage.gpus, zero_stage(stage.settings), settings.precision)
        counts.append(StageCount(stage, parameters, trainable, unused, tokens, positions, state))
    return DryRun(counts, data.folder is not None)


def count_parameters(config: Any, stage: str) -> tuple[int, int]:
    """All parameters, and those that a stage trains, of a model that is not made (meta device)."""
    import torch

    from llava_hr.modeling import LlavaHrForConditionalGeneration

    with torch.device("meta"):
        model = LlavaHrForConditionalGeneration(config)
    return count(model.named_parameters(), stage)


def count(parameters: Iterable[tuple[str, Any]], stage: str) -> tuple[int, int]:
    """Numbers in all of some named parameters, and in those that a stage trains."""
    sizes = [(parameter.numel(), is_trained(name, stage)) for name, parameter in parameters]
    return sum(size for size, _ in sizes), sum(size for size, trained in sizes if trained)


def deepspeed_config(stage: StageSettings) -> dict[str, Any] | None:
    """The content of a stage's DeepSpeed json, shipped or the user's own; None without DeepSpeed.

    Raises:
        UserError: no such file, or one that is not ZeRO-2 or ZeRO-3.
    """
    shipped = stage.deepspeed in ("zero2", "zero3")
    return read_deepspeed(package_file("llava_hr", f"configs/{stage.deepspeed}.json") if shipped else stage.deepspeed)


def zero_stage(stage: StageSettings) -> int:
    """The ZeRO stage of a stage's DeepSpeed json; 0 without DeepSpeed."""
    return zero_of(deepspeed_config(stage))
