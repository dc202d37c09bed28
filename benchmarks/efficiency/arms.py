"""What is compared on one host: every method at its points, with what it needs, ready to be attached."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch

from efficiency.visionzip import VisionZip
from fitprune.costs import DecoderShape
from fitprune.evaluation.baselines import FitPrune
from fitprune.evaluation.compare import solve_all
from fitprune.recipe import Recipe
from tenfold import UserError
from tenfold.hosts.structure import decoder_layers, unwrap
from tenfold.runs import RunRecord
from tenfold.runs.record import RECORD_NAME

Kind = Literal["host", "paper", "peer", "control", "both"]
HOST = "unpruned"
# Of fitprune's methods: name -> as it is called here, and what it is.
PRUNERS: Mapping[str, tuple[str, Kind]] = {
    "fitprune": ("FitPrune", "paper"),
    "fastv": ("FastV", "peer"),
    "pyramiddrop": ("PyramidDrop", "peer"),
    "random": ("random, FitPrune's recipe", "control"),
    "random-before": ("random before layer 0", "control"),
    "uniform": ("uniform recipe", "control"),
}


@dataclass(frozen=True)
class Needs:
    """What a method takes before it answers its first question.

    Attributes:
        trained: what is. weights: of the host, what becomes of them.
        seconds: of preparing, once a host; None where nobody measured them.
        source: where the seconds come from.
    """

    trained: str
    weights: str = "unchanged"
    seconds: float | None = 0.0
    source: str = "nothing to prepare"


NOTHING = Needs("nothing")
Attach = Callable[[Any], AbstractContextManager[Any]]


@dataclass(frozen=True)
class Arm:
    """A method at one point of its knob.

    Attributes:
        method: as it is called.
        point: the knob, "60 %"; empty where there is one point only.
        kind: the host itself, one of the papers, a peer, a control, or two papers together.
        attach: what attaches it for the duration of a ``with`` block.
        needs: before it answers.
        seed: of its draws; None for what draws nothing.
        knobs: solved for this point.
        note: what a reader of its row must know.
        model: of its own, where the host's weights are changed; None: the host.
    """

    method: str
    point: str
    kind: Kind
    attach: Attach = field(repr=False, compare=False)
    needs: Needs = NOTHING
    seed: int | None = None
    knobs: str = ""
    note: str = ""
    model: Any = field(default=None, repr=False, compare=False)

    @property
    def group(self) -> str:
        """The arm without its seed."""
        return f"{self.method} {self.point}".strip()

    @property
    def key(self) -> str:
        return self.group if self.seed is None else f"{self.group} #{self.seed}"

    @contextmanager
    def on(self, host: Any) -> Iterator[Any]:
        """The model that answers, with the method at work in it."""
        model = host if self.model is None else self.model
        with self.attach(model):
            yield model


@dataclass
class Found:
    """The arms so far, and method -> why it is left out."""

    arms: list[Arm] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)

    def attempt(self, name: str, make: Callable[[], Sequence[Arm]]) -> None:
        """Add what can be made; what cannot is left out with its reason."""
        try:
            self.arms += make()
        except UserError as error:
            self.left_out[name] = str(error)


def percent(share: float) -> str:
    return f"{100 * share:g} %"


def unpruned() -> Arm:
    return Arm(HOST, "", "host", lambda model: nullcontext(), knobs="all tokens, all layers")


def pruners(model: Any, recipes: Mapping[float, Recipe], seeds: Sequence[int], fit: Needs, note: str = "") -> Found:
    """FitPrune, its peers and its controls, each at every share of the visual FLOPs that a recipe is for.

    Args:
        seeds: of the draws of those that draw.
        fit: what the recipes took. note: to VisionZip's rows.
    """
    shape = DecoderShape.of(unwrap(model).config)
    solved, left_out = solve_all(shape, recipes, tuple(PRUNERS), seeds)
    found = Found(left_out=dict(left_out))
    for one in solved:
        if one.method is not None:
            label, kind = PRUNERS[one.name]
            needs = fit if one.name in ("fitprune", "random") else NOTHING
            found.arms.append(Arm(label, percent(one.ratio), kind, one.method, needs, one.seed, one.method.knobs))
    for ratio, recipe in recipes.items():

        def zipped(ratio: float = ratio, recipe: Recipe = recipe) -> list[Arm]:
            method = VisionZip.at_reduction(ratio, shape, recipe.visual_tokens)
            with method(model):  # says whether this host can be served
                pass
            return [Arm("VisionZip", percent(ratio), "peer", method, knobs=method.knobs, note=note)]

        found.attempt(f"VisionZip at {percent(ratio)}", zipped)
    return found


def record_seconds(folder: Path) -> tuple[float | None, str]:
    """Seconds of the training in a run's folder, and where they stand; None where there is no record."""
    if not (folder / RECORD_NAME).is_file():
        return None, "not recorded"
    record = RunRecord.load(folder)
    return record.duration_seconds, f"{record.id} on {record.hardware.gpu or record.hardware.cpu}"


def exits(model: Any, gates: Any, needs: Needs, prompts: Sequence[Any], means: Sequence[float]) -> Found:
    """DyVTE at the published threshold, and at those for some mean exit layers on calibration prompts."""
    import dyvte
    from dyvte.calibration import margins, threshold_for

    found = Found()
    found.arms.append(Arm("DyVTE", "as published", "paper", dyvte.VisualExit(gates), needs, knobs="threshold=0"))
    said = margins(model, gates, prompts)
    for mean in means:

        def at(mean: float = mean) -> list[Arm]:
            threshold = threshold_for(said, mean)
            exit = dyvte.VisualExit(gates, threshold)
            return [Arm("DyVTE", f"mean exit {mean:g}", "paper", exit, needs, knobs=f"threshold={threshold:.4f}")]

        found.attempt(f"DyVTE at a mean exit of {mean:g}", at)
    return found


def skipped(skipper: Any, needs: Needs, note: str) -> Arm:
    """EAS: attentions skipped for good, with adapters before those that stay."""
    plan = skipper.plan
    point = f"{len(plan.skip)} of {plan.layers} attentions"
    return Arm("EAS", point, "paper", skipper, needs, knobs=f"skips {list(plan.skip)}", note=note)


def routed(model: Any, needs: Needs) -> Arm:
    """gamma-MoD: a converted and trained model of its own."""
    config = model.gamma_mod.config
    knobs = f"layers {list(config.layers)}, threshold={config.prefill_threshold:.4g}"
    point = f"{len(config.layers)} layers"
    return Arm("γ-MoD", point, "paper", lambda _: nullcontext(), needs, knobs=knobs, model=model)


def together(model: Any, *parts: Arm, note: str = "") -> list[Arm]:
    """Several methods at once, attached in this order.

    Raises:
        UserError: they do not go together; says why.
    """

    @contextmanager
    def attach(host: Any) -> Iterator[None]:
        with ExitStack() as stack:
            for part in parts:
                stack.enter_context(part.attach(host))
            yield

    with attach(model):
        pass
    prepared = [part.needs for part in parts]
    known = [needs.seconds for needs in prepared if needs.seconds is not None]
    needs = Needs(
        ", ".join(dict.fromkeys(needs.trained for needs in prepared)),
        " and ".join(dict.fromkeys(needs.weights for needs in prepared)),
        sum(known) if len(known) == len(prepared) else None,
        "of both" if len(known) == len(prepared) else "not recorded",
    )
    names = " + ".join(part.method for part in parts)
    points = ", ".join(part.point for part in parts)
    return [Arm(names, points, "both", attach, needs, knobs="; ".join(part.knobs for part in parts), note=note)]


def recipe_around(recipe: Recipe, skip: Sequence[int]) -> Recipe:
    """A recipe for a host without some attentions: what it removes there leaves in the next one that runs.

    Raises:
        UserError: it removes tokens where no attention follows.
    """
    remove, waiting = [], 0
    for layer, count in enumerate(recipe.remove):
        waiting += count
        remove.append(0 if layer in skip else waiting)
        waiting = waiting if layer in skip else 0
    if waiting:
        raise UserError(f"{waiting} tokens leave behind the last attention", recipe.model, "a later attention")
    return replace(recipe, remove=tuple(remove), macs={})


def around(arm: Arm, recipe: Recipe, skip: Sequence[int]) -> Arm:
    """FitPrune as it prunes beside EAS."""
    method = FitPrune(recipe_around(recipe, skip))
    return replace(arm, attach=method, knobs=method.knobs)


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    """What it returns, and its seconds."""
    start = time.perf_counter()
    result = work()
    return result, time.perf_counter() - start


def depth(model: Any) -> int:
    """Layers of a host's decoder."""
    return len(decoder_layers(unwrap(model)))


def dtype_of(name: str) -> torch.dtype:
    return getattr(torch, name)
