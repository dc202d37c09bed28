"""What a training will do, before it does it: steps, rates, parameters. `gamma-mod train --dry-run` prints it."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, prod
from pathlib import Path
from typing import Any

from gamma_mod.training.settings import StageSettings, TrainSettings
from tenfold import UserError
from tenfold.cli import package_file
from tenfold.cli.settings import MINI
from tenfold.runs import read_json
from tenfold.runs.ranks import world_size


@dataclass(frozen=True)
class StagePlan:
    """The training's steps.

    Attributes:
        settings: of the stage. warmup_ratio: of its schedule.
        samples: in its data. gpus: ranks that share a batch.
    """

    settings: StageSettings
    warmup_ratio: float
    samples: int
    gpus: int

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
        return self.settings.epochs * ceil(self.epoch_samples / self.settings.batch)

    @property
    def warmup(self) -> int:
        """Steps of the linear rise."""
        return ceil(self.warmup_ratio * self.steps)


def plan(settings: TrainSettings, samples: int, gpus: int) -> StagePlan:
    """The steps of a training on so many samples, over so many ranks.

    Raises:
        UserError: a batch that the ranks cannot share.
    """
    stage = settings.stage
    if stage.batch % (stage.per_device * gpus):
        raise UserError(
            f"a batch of {stage.batch} over {gpus} ranks, {stage.per_device} samples at a time",
            "stage.batch",
            f"a multiple of {stage.per_device * gpus}, or another stage.per_device",
        )
    return StagePlan(stage, settings.optimizer.warmup_ratio, samples, gpus)


@dataclass(frozen=True)
class DryRun:
    """What `--dry-run` prints.

    Attributes:
        plan: its steps. counted: whether data were read (else the config's own number stands).
        layers: converted ones; None: measured when the training begins. num_layers: of the host.
        parameters, trainable: of the converted model. router: of the router.
        skip: of a row of 1,400 tokens with 1,059 routable ones, what training skips; None for another host.
    """

    plan: StagePlan
    counted: bool
    layers: tuple[int, ...] | None
    num_layers: int
    parameters: int
    trainable: int
    router: int
    skip: float | None


def dry_run(settings: TrainSettings) -> DryRun:
    """Count without training: from data and model where they are named, else from the config's expectations.

    Raises:
        UserError: named data or model cannot be read; a batch that the ranks cannot share; nothing to count from.
    """
    from gamma_mod.costs import training_skip
    from gamma_mod.placement import place

    expected, gpus = settings.data.expected, world_size()
    samples, folder = expected[0], settings.data.folder
    if folder is not None:
        records = read_json(Path(folder) / settings.data.conversations)
        if not isinstance(records, list) or not records:
            raise UserError("no records", Path(folder) / settings.data.conversations, "a list of conversations")
        samples = len(records)
    steps = plan(settings, samples, gpus if gpus > 1 else expected[1])
    num_layers, width, sizes = _host(settings)
    chosen = settings.conversion.layers
    layers = None if chosen == "arank" else place(chosen, num_layers) if isinstance(chosen, str) else chosen
    count = num_layers - settings.conversion.num_dense if layers is None else len(layers)
    router = 2 * width * (1 if settings.conversion.shared_router else count)
    sizes["router"] = router
    trainable = (
        router
        if settings.stage.trainable == "router"
        else sum(size for name, size in sizes.items() if not is_frozen(name, settings.stage))
    )
    llava_hr = settings.model.shape is not None and settings.model.shape.startswith("llava_hr")
    skip = training_skip(1400, 1059, settings.conversion.routing_ratio) if llava_hr else None
    return DryRun(steps, folder is not None, layers, num_layers, sum(sizes.values()), trainable, router, skip)


def is_frozen(name: str, stage: StageSettings) -> bool:
    """Whether a parameter of that name stays as it is."""
    return any(part in name for part in stage.freeze)


def _host(settings: TrainSettings) -> tuple[int, int, dict[str, int]]:
    """Decoder layers, width, and the sizes of all parameters by name, without making the model's weights."""
    import torch
    from transformers import AutoConfig, AutoModelForImageTextToText

    from gamma_mod.checkpoints.load import find_folder
    from gamma_mod.checkpoints.official import official_host
    from tenfold.data import mini_host

    model = settings.model
    if model.model is None:
        if model.shape is None:
            raise UserError("no model", "model.model", "a folder or hub id, or model.shape to count with")
        shape, sizes = official_host(model.shape)
        return shape.layers, shape.hidden, {name: prod(size) for name, size in sizes.items()}
    config: Any
    if model.model == MINI:
        config = mini_host.config()
    else:
        folder = find_folder(model.model)
        config = AutoConfig.from_pretrained(folder or model.model, trust_remote_code=False)
    with torch.device("meta"):
        made = AutoModelForImageTextToText.from_config(config)
    text = config.get_text_config()
    return text.num_hidden_layers, text.hidden_size, {name: p.numel() for name, p in made.named_parameters()}


def deepspeed_config(stage: StageSettings) -> dict[str, Any] | None:
    """The content of the stage's DeepSpeed json, shipped or the user's own; None without DeepSpeed.

    Raises:
        UserError: no such file, or one that is not ZeRO-2 or ZeRO-3.
    """
    if stage.deepspeed is None:
        return None
    path = Path(stage.deepspeed)
    if stage.deepspeed in ("zero2", "zero3"):
        path = package_file("gamma_mod", f"configs/{stage.deepspeed}.json")
    content = read_json(path)
    zero = content.get("zero_optimization", {}) if isinstance(content, dict) else {}
    if not isinstance(zero, dict) or zero.get("stage") not in (2, 3):
        raise UserError("not a DeepSpeed config", path, "zero_optimization with stage 2 or 3")
    return content


def zero_stage(stage: StageSettings) -> int:
    """The ZeRO stage of the stage's DeepSpeed json; 0 without DeepSpeed."""
    content = deepspeed_config(stage)
    return content["zero_optimization"]["stage"] if content else 0
