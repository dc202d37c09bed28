"""The values that papers give for an evaluation, as the ledger `claims.yaml` lists them with the command of each."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from functools import cache

from fitprune.recipe import ALIASES, Recipe
from tenfold.cli import package_file
from tenfold.data.question_sets import plain_name
from tenfold.ledger.schema import load_ledger

Key = tuple[str, str, str]


@dataclass(frozen=True)
class Published:
    """A number from a paper: `value` in `unit`, from `source`."""

    value: float
    unit: str
    source: str


def published(model: str, recipe: Recipe | None, benchmark: str) -> list[Published]:
    """What was published for the evaluation of a model under a recipe.

    Args:
        model: a hub id, or the last part of one (a folder's name).
        recipe: None without pruning, for which the ledger has no claims of its own. A fitted recipe stands for any that
            was fitted for the same ratio.
        benchmark: in any spelling, "mmbench-cn" or "mmbench_cn".
    """
    wanted = (canonical_model(model), _recipe_key(recipe), plain_name(benchmark))
    return [number for key, number in _ledger() if key == wanted]


def canonical_model(name: str) -> str:
    """One name for a model, wherever it comes from: that of its released recipes where there are some."""
    for released, others in ALIASES.items():
        if name == released or any(other == name or other.endswith(f"/{name}") for other in others):
            return released
    return name.rpartition("/")[2]


def _recipe_key(recipe: Recipe | None) -> str:
    if recipe is None or recipe.ratio is None:
        return "none" if recipe is None else "by hand"
    if recipe.rounding == "released":
        return f"{recipe.model}:{round(100 * recipe.ratio)}"
    return f"fitted for {recipe.ratio:g}"


@cache
def _ledger() -> list[tuple[Key, Published]]:
    found = []
    for claim in load_ledger(package_file("fitprune", "claims.yaml")).claims:
        words = shlex.split(claim.command or "")
        if claim.kind != "full" or words[:2] != ["fitprune", "eval"] or not isinstance(claim.value, int | float):
            continue
        options = dict(zip(words[3::2], words[4::2], strict=True))
        name, _, percent = options["--recipe"].rpartition(":")
        if file := re.search(r"recipe-([\d.]+)\.json$", options["--recipe"]):
            recipe = f"fitted for {float(file[1]):g}"
        else:
            recipe = _recipe_key(Recipe.released(name, int(percent)))
        key = (canonical_model(words[2]), recipe, plain_name(options["--benchmark"]))
        found.append((key, Published(claim.value, claim.unit or "", claim.source)))
    return found
