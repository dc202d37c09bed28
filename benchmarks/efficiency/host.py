"""The host that answers, and the arms on it: the mini host with what ships for it, or a user's with what they name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from efficiency import arms as made
from efficiency.arms import Arm, Found, Needs, record_seconds
from fitprune.data.calibration import MINI_SAMPLES, Prompts, mini_calibration
from fitprune.evaluation.compare import Item
from fitprune.evaluation.compare_run import find_items, find_recipes
from fitprune.evaluation.settings import CompareSettings
from tenfold import UserError
from tenfold.cli.settings import MINI, HostSettings
from tenfold.hosts.loading import Host, load_host
from tenfold.hosts.structure import unwrap
from tenfold.runs import fingerprint
from tenfold.runs.progress import Progress

UNREAD = "in the mini host nothing ever read the tower's class token, by which it chooses"
ELSEWHERE = "its adapters were tuned for a task of their own, not for these questions"
# EAS + FitPrune and FitPrune + DyVTE are shown at this share of the visual FLOPs, beside the others.
COMPOSED = 0.4


class Settings(HostSettings):
    """What `benchmarks/efficiency.py` can be told.

    Attributes:
        benchmark, data, split: a benchmark by name and its folder; None: the mini world, for the mini host only.
        recipes: of FitPrune, one or one for each ratio; none: fitted for the mini host, else the nearest released one.
        dyvte, eas, gamma_mod: a finished training of `dyvte train`, `eas train`, `gamma-mod train`; None: what ships
            for the mini host, or the method is left out.
        ratios: shares of the visual FLOPs to save.
        seeds: draws of what draws at random.
        limit: questions. pairs: of two questions about one picture. costed: prompts whose cost is counted and timed.
        rounds: of timing. new_tokens: of a timed answer. batch: prompts at a time, of the accuracy.
        max_new_tokens: of an answer.
        threads: of torch; 0: one for the mini host, whose matrices gain nothing from more, else torch's own choice.
        random_weights: no answers: LLaVA-1.5-7B's dimensions, time and cost alone. layers: of it; 0 for all.
    """

    benchmark: str | None = None
    data: str | None = None
    split: str | None = None
    recipes: tuple[str, ...] = ()
    dyvte: str | None = None
    eas: str | None = None
    gamma_mod: str | None = None
    ratios: tuple[float, ...] = (0.4, 0.6, 0.8)
    seeds: int = Field(default=3, ge=1)
    limit: int | None = Field(default=None, ge=2)
    pairs: int = Field(default=48, ge=0)
    costed: int = Field(default=4, ge=1)
    rounds: int = Field(default=5, ge=1)
    new_tokens: int = Field(default=8, ge=3)
    batch: int = Field(default=16, ge=1)
    max_new_tokens: int = Field(default=8, ge=1)
    threads: int = Field(default=0, ge=0)
    random_weights: bool = False
    layers: int = Field(default=0, ge=0)
    precision: Literal["float32", "bfloat16"] = "bfloat16"


@dataclass(frozen=True)
class Subject:
    """A host, what it is asked, and what is compared on it.

    Attributes:
        data: name -> fingerprint of what was read.
    """

    host: Host
    items: Sequence[Item]
    found: Found
    data: dict[str, str]


def open_subject(settings: Settings, seed: int, progress: Progress) -> Subject:
    """Load the host, read its questions, prepare every method.

    Raises:
        UserError: model, data or recipe cannot be used; a method that the user named a folder for cannot be.
    """
    for verb in ("dyvte", "eas", "gamma_mod"):
        named = getattr(settings, verb)
        if named is not None and not Path(named).is_dir():
            raise UserError("no such folder", named, f"the folder of a finished {verb.replace('_', '-')} train")
    asked = CompareSettings(
        model=settings.model,
        device=settings.device,
        dtype=settings.dtype,
        attention=settings.attention,
        benchmark=settings.benchmark,
        data=settings.data,
        split=settings.split,
        ratios=settings.ratios,
        recipes=settings.recipes,
        limit=settings.limit,
    )
    items = find_items(asked, seed)
    host = load_host(settings)
    fitted = settings.model == MINI and not settings.recipes
    recipes, taken = made.timed(lambda: find_recipes(asked, host, seed, progress))
    fit = Needs("nothing (a recipe is fitted)", seconds=taken, source=f"measured, {MINI_SAMPLES} prompts")
    if not fitted:
        fit = Needs("nothing (a recipe is fitted)", seconds=None, source="a recipe that was named or released")
    found = Found([made.unpruned()])
    note = UNREAD if settings.model == MINI else ""
    pruned = made.pruners(host.model, recipes, range(seed, seed + settings.seeds), fit, note)
    found.arms += pruned.arms
    found.left_out |= pruned.left_out
    data = {"model": host.fingerprint}
    _exits(settings, host, seed, found, data)
    _skips(settings, host, found, data)
    _routes(settings, host, found, data)
    _together(host, found, recipes)
    return Subject(host, items, found, data)


def _exits(settings: Settings, host: Host, seed: int, found: Found, data: dict[str, str]) -> None:
    if settings.dyvte is None and settings.model != MINI:
        found.left_out["DyVTE"] = "no gates for this host: --dyvte FOLDER of a finished dyvte train"
        return
    from dyvte.checkpoints.load import load_gates
    from dyvte.evaluation.model import open_gates
    from dyvte.evaluation.settings import SHIPPED

    seconds, source = None, "gates that ship; their training was not timed"
    if settings.dyvte is None:
        gates = open_gates(SHIPPED, MINI)
    else:
        folder = Path(settings.dyvte)
        seconds, source = record_seconds(folder)
        gates = load_gates(folder / "gates" if (folder / "gates").is_dir() else folder)
        data["dyvte"] = fingerprint(folder)
    needs = Needs("gates", seconds=seconds, source=source)
    layers = made.depth(host.model)
    # Where nothing else can be asked, the gates' own threshold is all there is.
    means = (layers / 4, layers / 2, 3 * layers / 4) if settings.model == MINI else ()
    prompts = list(Prompts(host, mini_calibration(seed, 2 * MINI_SAMPLES))) if means else []
    if not prompts:
        import dyvte

        exit = dyvte.VisualExit(gates)
        found.arms.append(Arm("DyVTE", "as published", "paper", exit, needs, knobs="threshold=0"))
        return
    exits = made.exits(host.model, gates, needs, prompts, means)
    found.arms += exits.arms
    found.left_out |= exits.left_out


def _skips(settings: Settings, host: Host, found: Found, data: dict[str, str]) -> None:
    if settings.eas is None and settings.model != MINI:
        found.left_out["EAS"] = "no adapters for this host: --eas FOLDER of a finished eas train"
        return
    from eas.checkpoints.load import open_adapters
    from eas.miniature.shipped import adapters_path

    seconds, source = None, "adapters that ship; their training was not timed"
    note = ELSEWHERE if settings.model == MINI else ""
    if settings.eas is None:
        place = adapters_path()
    else:
        folder = Path(settings.eas)
        seconds, source = record_seconds(folder)
        place = folder / "adapters" if (folder / "adapters").is_dir() else folder
    data["eas"] = fingerprint(place)
    skipper, _ = open_adapters(place, host.model)
    skipper.detach()
    found.arms.append(made.skipped(skipper, Needs("adapters", "unchanged", seconds, source), note))


def _routes(settings: Settings, host: Host, found: Found, data: dict[str, str]) -> None:
    if settings.gamma_mod is None:
        found.left_out["γ-MoD"] = (
            "it trains the whole model and ships none: gamma-mod train --config mini --output FOLDER, then "
            "--gamma-mod FOLDER"
        )
        return
    import gamma_mod

    folder = Path(settings.gamma_mod)
    seconds, source = record_seconds(folder)
    place = folder / "model" if (folder / "model").is_dir() else folder
    model, _ = gamma_mod.load(place, dtype=host.model.dtype, device=host.model.device)
    if not hasattr(unwrap(model), "gamma_mod"):
        raise UserError("a model that is not converted", place, "the folder of a finished gamma-mod train")
    data["gamma_mod"] = fingerprint(place)
    found.arms.append(made.routed(model, Needs("the whole model", "changed", seconds, source)))


def _together(host: Host, found: Found, recipes: Any) -> None:
    """Two papers at once, at a share that leaves something to the second."""
    ratio = min(recipes, key=lambda share: abs(share - COMPOSED))
    by = {arm.group: arm for arm in found.arms if arm.kind == "paper"}
    pruned = by.get(f"FitPrune {made.percent(ratio)}")
    exit = by.get("DyVTE as published")
    skip = next((arm for arm in by.values() if arm.method == "EAS"), None)
    if pruned is None:
        return
    if exit is not None:
        found.attempt("FitPrune + DyVTE", lambda: made.together(host.model, pruned, exit))
    if skip is not None:
        plan = getattr(skip.attach, "plan", None)
        attentions = () if plan is None else plan.skip
        found.attempt(
            "EAS + FitPrune",
            lambda: made.together(host.model, skip, made.around(pruned, recipes[ratio], attentions), note=skip.note),
        )
