"""What a training will do, before it does it: steps, rates, parameters. `gamma-mod train --dry-run` prints it."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from gamma_mod.training.settings import StageSettings, TrainSettings
from tenfold import UserError
from tenfold.cli import package_file
from tenfold.cli.settings import MINI
from tenfold.runs import plan as stages
from tenfold.runs.ranks import world_size

StagePlan = stages.StagePlan[str, StageSettings]
STAGE = "stage"


def plan(settings: TrainSettings, samples: int, gpus: int) -> StagePlan:
    """The steps of a training on so many samples, over so many ranks.

    Raises:
        UserError: a batch that the ranks cannot share.
    """
    ratio = settings.optimizer.warmup_ratio
    (only,) = stages.plan_stages([(STAGE, settings.stage)], {STAGE: samples}, ratio, gpus)
    return only


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
        samples = stages.count_records(Path(folder) / settings.data.conversations)
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
    from tenfold.hosts.loading import loading_from

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
        with loading_from(folder or model.model, "a transformers vision-language model"):
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
    shipped = stage.deepspeed in ("zero2", "zero3")
    return stages.deepspeed_config(
        package_file("gamma_mod", f"configs/{stage.deepspeed}.json") if shipped else stage.deepspeed
    )


def zero_stage(stage: StageSettings) -> int:
    """The ZeRO stage of the stage's DeepSpeed json; 0 without DeepSpeed."""
    return stages.zero_stage(deepspeed_config(stage))
