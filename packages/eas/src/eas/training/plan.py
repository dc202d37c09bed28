"""What a training will do, before it does it: steps, rates, parameters."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from eas import costs
from eas.checkpoints.hosts import host_of
from eas.plan import METER_RELEASED, RELEASED, Plan, released
from eas.result import SearchResult
from eas.training.settings import AdapterSettings, StageName, StageSettings, TrainSettings
from tenfold import UserError
from tenfold.cli.settings import MINI

if TYPE_CHECKING:
    from eas.lavin import LavinConfig


@dataclass(frozen=True)
class StagePlan:
    """A stage: its steps and those of the rise, and how many ranks share a batch."""

    name: StageName
    settings: StageSettings
    samples: int
    steps: int
    warmup: int
    ranks: int

    @property
    def accumulation(self) -> int:
        """Micro-batches of a step on one rank."""
        return self.settings.batch // self.settings.per_device // self.ranks

    def rate(self, step: float) -> float:
        """The learning rate of the step after `step` finished ones."""
        top = self.settings.learning_rate
        if step < self.warmup:
            return top * step / self.warmup
        left = (self.steps - step) / max(1, self.steps - self.warmup)
        return top * (0.5 * (1 - math.cos(math.pi * left)) if self.settings.schedule == "cosine" else left)


def stage_plan(settings: TrainSettings, name: StageName, samples: int, ranks: int) -> StagePlan:
    """Count a stage.

    Raises:
        UserError: a batch that the ranks cannot share.
    """
    stage = settings.stage(name)
    if stage.batch % (stage.per_device * ranks):
        raise UserError(
            f"a batch of {stage.batch} for {ranks} ranks", name, f"a multiple of {stage.per_device * ranks}"
        )
    steps = stage.epochs * math.ceil(samples / stage.batch)
    steps = steps if stage.steps is None else min(steps, stage.steps)
    warmup = math.ceil(stage.warmup * steps) if stage.warmup < 1 else int(stage.warmup)
    return StagePlan(name, stage, samples, steps, warmup, ranks)


def skip_of(adapters: AdapterSettings, host: str) -> tuple[int, ...] | None:
    """The skip list that was given, by numbers or by name; None: none was.

    Raises:
        UserError: an unknown name, or a list of another host's sites.
    """
    if not isinstance(adapters.skip, str):
        return adapters.skip
    if (adapters.skip in METER_RELEASED) != (host == "meter") and adapters.skip in METER_RELEASED | RELEASED:
        sites = {True: "METER's 24 sites", False: "a decoder's layers"}
        raise UserError(f"a list of {sites[host != 'meter']}", adapters.skip, f"a list of {sites[host == 'meter']}")
    return released(adapters.skip)


def plan_of(adapters: AdapterSettings, layers: int, skip: tuple[int, ...] = ()) -> Plan:
    """The plan with the sizes that were set. Raises UserError for a list that does not fit the layers."""
    return Plan(
        layers=layers,
        skip=tuple(sorted(skip)),
        adapter_rank=adapters.adapter,
        pia_rank=adapters.pia,
        groups=adapters.groups,
        scale=adapters.scale,
        temperature=adapters.temperature,
        dropout=adapters.dropout,
        use_global=adapters.use_global,
    )


def check_sites(settings: TrainSettings, host: str, sites: int, found: SearchResult | None) -> tuple[int, ...] | None:
    """See that the list, the search's result or K fits a host; the list to tune without, where there is one.

    Raises:
        UserError: it does not.
    """
    if "search" in settings.stages and settings.adapters.removed >= sites:
        raise UserError(f"removed {settings.adapters.removed}", f"a host of {sites} sites", f"1 to {sites - 1}")
    if found is not None and found.sites != sites:
        raise UserError(f"a search among {found.sites} sites", settings.from_search, f"{sites}, those of this host")
    skip = skip_of(settings.adapters, host) if found is None else found.skip
    if skip is not None and (len(set(skip)) != len(skip) or not set(skip) <= set(range(sites))):
        raise UserError(f"a skip list {list(skip)}", f"a host of {sites} sites", f"each once, 0 to {sites - 1}")
    return skip


@dataclass(frozen=True)
class DryRun:
    """Of each stage: its plan, what is trained (in use at a step), and the parameters of the whole."""

    plan: StagePlan
    trainable: int
    total: int


def dry_run(settings: TrainSettings, ranks: int = 1) -> list[DryRun]:
    """Count all stages, without weights or data. A host that is not here counts as the one that the config names.

    Raises:
        UserError: settings that do not go together, or a search's file or a host's description that is broken.
    """
    host = host_of(settings.model, settings.host)
    count = {"llava": _count_llava, "meter": _count_meter, "lavin": _count_lavin}[host]
    found = SearchResult.load(Path(settings.from_search)) if settings.from_search else None
    given = skip_of(settings.adapters, host) if found is None else found.skip
    removed = settings.adapters.removed if given is None else len(given)
    rows = []
    for name in settings.stages:
        trainable, total = count(settings, name == "search", removed)
        rows.append(DryRun(stage_plan(settings, name, settings.data.samples, ranks), trainable, total))
    return rows


def _count_llava(settings: TrainSettings, search: bool, removed: int) -> tuple[int, int]:
    adapters, (shape, projector) = settings.adapters, _llava_shape(settings)
    sizes = costs.RankSizes(adapters.adapter, adapters.pia, adapters.groups)
    tuned = projector if adapters.projector else 0
    model = costs.language_model_parameters(shape) + projector
    if search:  # it holds both modules of every layer and the attention of all; a tuning drops what it skips
        both = shape.layers * costs.adapter_parameters(shape.width, sizes, False)
        both += shape.layers * costs.pia_parameters(shape.width, sizes)
        return both + tuned, model + both
    modules = costs.module_parameters(shape, removed, sizes, router_bias=False)
    return modules + tuned, model + modules - removed * costs.attention_parameters(shape)


def _llava_shape(settings: TrainSettings) -> tuple[costs.Shape, int]:
    """The decoder's shape and the projector's parameters."""
    if settings.model == MINI:
        from tenfold.data import mini_host

        shape, vision = costs.Shape.of(mini_host.config()), cast(Any, mini_host.config().vision_config)
        return shape, vision.hidden_size * shape.width + shape.width + shape.width**2 + shape.width
    shape = costs.NAMED[settings.size]
    return shape, costs.projector_parameters(shape.width, "linear" if settings.prompt_format else "mlp")


def _count_lavin(settings: TrainSettings, search: bool, removed: int) -> tuple[int, int]:
    import torch

    from eas.checkpoints.lavin import CONFIG, read_lavin_about
    from eas.lavin import LAVIN_7B, LAVIN_13B, Lavin

    there = Path(settings.model, CONFIG).is_file()
    config = read_lavin_about(settings.model)[0] if there else {"7b": LAVIN_7B, "13b": LAVIN_13B}[settings.size]
    with torch.device("meta"):
        model = Lavin(lavin_config(config, settings.adapters, () if search else tuple(range(removed))), both=search)
    return sum(value.numel() for _, value in model.trained()), sum(value.numel() for value in model.parameters())


def lavin_config(config: LavinConfig, adapters: AdapterSettings, skip: tuple[int, ...]) -> LavinConfig:
    """A folder's sizes with those that were set, and what is skipped."""
    return replace(
        config,
        skip=tuple(sorted(skip)),
        adapter_rank=adapters.adapter,
        pia_rank=adapters.pia,
        groups=adapters.groups,
        scale=adapters.scale,
        temperature=adapters.temperature,
        dropout=adapters.dropout,
    )


def _count_meter(settings: TrainSettings, search: bool, removed: int) -> tuple[int, int]:
    import torch

    from eas.checkpoints.meter import CONFIG, read_meter_about
    from eas.meter import Meter, MeterConfig

    there = Path(settings.model, CONFIG).is_file()
    size = 288 if settings.task == "nlvr2" else 384
    config = read_meter_about(settings.model)[0] if there else MeterConfig(task=settings.task, size=size)
    with torch.device("meta"):
        model = Meter(config)
    return sum(value.numel() for _, value in model.trained()), sum(value.numel() for value in model.parameters())
