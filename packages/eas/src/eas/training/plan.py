"""What a training will do, before it does it: steps, rates, parameters."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from eas import costs
from eas.plan import METER_RELEASED, Plan, released
from eas.result import SearchResult
from eas.training.settings import AdapterSettings, StageName, StageSettings, TrainSettings
from tenfold import UserError
from tenfold.cli.settings import MINI


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

    def rate(self, step: int) -> float:
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


def skip_of(adapters: AdapterSettings) -> tuple[int, ...] | None:
    """The skip list that was given, by numbers or by name. Raises UserError for a list of METER's sites."""
    if isinstance(adapters.skip, str) and adapters.skip in METER_RELEASED:
        raise UserError("a list of METER's 24 sites", adapters.skip, "a list of a decoder's layers")
    return released(adapters.skip) if isinstance(adapters.skip, str) else adapters.skip


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


@dataclass(frozen=True)
class DryRun:
    """Of each stage: its plan, what is trained (in use at a step), and the parameters of the whole."""

    plan: StagePlan
    trainable: int
    total: int


def dry_run(settings: TrainSettings, shape: costs.Shape, projector: int, ranks: int, samples: int) -> list[DryRun]:
    """Count all stages for a host of this shape.

    Args:
        projector: parameters of the host's projector.
    """
    adapters = settings.adapters
    given = skip_of(adapters)
    removed = adapters.removed if given is None else len(given)
    if settings.from_search is not None:
        removed = SearchResult.load(Path(settings.from_search)).removed
    sizes = costs.RankSizes(adapters.adapter, adapters.pia, adapters.groups)
    modules = costs.module_parameters(shape, removed, sizes, router_bias=False)
    tuned = projector if adapters.projector else 0
    model = costs.language_model_parameters(shape) + projector
    found = []
    for name in settings.stages:
        # The search holds both modules of every layer and the attention of all; a tuning drops what it skips.
        if name == "search":
            both = shape.layers * costs.adapter_parameters(shape.width, sizes, False)
            both += shape.layers * costs.pia_parameters(shape.width, sizes)
            trainable, total = both + tuned, model + both
        else:
            trainable = modules + tuned
            total = model + modules - removed * costs.attention_parameters(shape)
        found.append(DryRun(stage_plan(settings, name, samples, ranks), trainable, total))
    return found


def check_layers(settings: TrainSettings, config: Any) -> None:
    """See that the list or K fits a host. Raises UserError."""
    layers = config.get_text_config().num_hidden_layers
    plan_of(settings.adapters, layers, skip_of(settings.adapters) or ())
    if settings.adapters.removed >= layers and "search" in settings.stages:
        raise UserError(f"removed {settings.adapters.removed}", f"a host of {layers} layers", f"1 to {layers - 1}")


def host_shape(settings: TrainSettings) -> tuple[costs.Shape, int]:
    """The decoder's shape and the projector's parameters of the host that a training names, without its weights.

    A host that is not here counts as the 7B that the config was written for.
    """
    if settings.model == MINI:
        from tenfold.data import mini_host

        shape, vision = costs.Shape.of(mini_host.config()), cast(Any, mini_host.config().vision_config)
        return shape, vision.hidden_size * shape.width + shape.width + shape.width**2 + shape.width
    kind = "linear" if settings.prompt_format else "mlp"
    return costs.LLAMA_7B, costs.projector_parameters(costs.LLAMA_7B.width, kind)
