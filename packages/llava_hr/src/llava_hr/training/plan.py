"""What a training will do, before it does it: stages, steps, rates, parameters. `llava-hr train --dry-run` prints it.

Models are made on the meta device: the 13 billion parameters of LLaVA-HR-X take no memory.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import ceil, cos, pi
from pathlib import Path
from typing import Any

from llava_hr.checkpoints.projector import TRAINED
from llava_hr.training.settings import StageName, StageSettings, TrainSettings
from tenfold import UserError
from tenfold.cli import package_file
from tenfold.runs import read_json
from tenfold.runs.ranks import world_size


@dataclass(frozen=True)
class StagePlan:
    """One stage of a training.

    Attributes:
        name: "pretrain" or "finetune". settings: its settings. warmup_ratio: of its schedule.
        samples: in its data. gpus: ranks that share a batch.
        first: optimiser steps of the training before this stage.
    """

    name: StageName
    settings: StageSettings
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
        stages.append(StagePlan(name, stage, settings.optimizer.warmup_ratio, samples[name], gpus, first))
    return stages


def is_trained(name: str, stage: StageName) -> bool:
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
        samples = {name: _count(Path(data.folder) / settings.stage(name).data) for name in settings.running}
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


def count_parameters(config: Any, stage: StageName) -> tuple[int, int]:
    """All parameters, and those that a stage trains, of a model that is not made (meta device)."""
    import torch

    from llava_hr.modeling import LlavaHrForConditionalGeneration

    with torch.device("meta"):
        model = LlavaHrForConditionalGeneration(config)
    return count(model.named_parameters(), stage)


def count(parameters: Iterable[tuple[str, Any]], stage: StageName) -> tuple[int, int]:
    """Numbers in all of some named parameters, and in those that a stage trains."""
    sizes = [(parameter.numel(), is_trained(name, stage)) for name, parameter in parameters]
    return sum(size for size, _ in sizes), sum(size for size, trained in sizes if trained)


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


def deepspeed_config(stage: StageSettings) -> dict[str, Any] | None:
    """The content of a stage's DeepSpeed json, shipped or the user's own; None without DeepSpeed.

    Raises:
        UserError: no such file, or one that is not ZeRO-2 or ZeRO-3.
    """
    if stage.deepspeed is None:
        return None
    path = Path(stage.deepspeed)
    if stage.deepspeed in ("zero2", "zero3"):
        path = package_file("llava_hr", f"configs/{stage.deepspeed}.json")
    content = read_json(path)
    zero = content.get("zero_optimization", {}) if isinstance(content, dict) else {}
    if not isinstance(zero, dict) or zero.get("stage") not in (2, 3):
        raise UserError("not a DeepSpeed config", path, "zero_optimization with stage 2 or 3")
    return content


def zero_stage(stage: StageSettings) -> int:
    """The ZeRO stage of a stage's DeepSpeed json; 0 without DeepSpeed."""
    content = deepspeed_config(stage)
    return content["zero_optimization"]["stage"] if content else 0


def _count(path: Path) -> int:
    records = read_json(path)
    if not isinstance(records, list) or not records:
        raise UserError("no records", path, "a list of conversations")
    return len(records)
