"""A recipe: how many visual tokens leave in every decoder layer. A small JSON file, made for one model and
budget.

recipe = Recipe.released("llava-1.5-7b", 60)        # the authors' own
recipe = fitprune.fit(model, processor, samples, 0.6)
recipe.save("recipe.json"); recipe = Recipe.load("recipe.json")
recipe.counts_for(2144)                             # the same recipe for a prompt with 2,144 visual tokens
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from importlib.resources import files
from io import BytesIO
from math import floor, isfinite
from pathlib import Path
from typing import Any

from fitprune.costs import LLAVA_7B, DecoderShape, alive, base_macs, recipe_macs
from tenfold import UserError
from tenfold.runs import atomic_write_bytes, atomic_write_json, read_json

VERSION = 1
REQUIRED = ("model", "num_layers", "visual_tokens", "remove")
DEFAULTS: Mapping[str, Any] = {"ratio": None, "alpha": None, "rounding": "given", "calibration": {}, "macs": {}}
Fault = tuple[str, str]  # what is wrong, what was expected
ROUNDINGS = ("largest_remainder", "floor", "released", "given")
ALIASES = {
    "llava-1.5-7b": ("llava15_7b", "liuhaotian/llava-v1.5-7b", "llava-hf/llava-1.5-7b-hf", "llava-v1.5-7b"),
    "llava-next-7b": ("llava_next_7b", "liuhaotian/llava-v1.6-vicuna-7b", "llava-hf/llava-v1.6-vicuna-7b-hf"),
    "llava-hr-7b": ("llava_hr_7b", "llava-hr-7b-sft-1024"),
}


@dataclass(frozen=True)
class Recipe:
    """How many visual tokens to remove inside every decoder layer.

    Attributes:
        model: the model that it was made for, by name.
        num_layers: its decoder layers.
        visual_tokens: V, the number of visual tokens that the counts are stated for.
        remove: tokens that leave inside layer 0, 1, ...
        ratio: share of the visual MACs that was asked to be saved; None for a recipe made by hand.
        alpha: relative loss of attention mass that the search arrived at; None where it is not known.
        rounding: how the counts became integers.
        calibration: what the search was run on.
        macs: cost of the visual tokens by the official formula, ``base``, ``asked`` and ``delivered``;
            empty when the decoder's dimensions are not known.
    """

    model: str
    num_layers: int
    visual_tokens: int
    remove: tuple[int, ...]
    ratio: float | None = None
    alpha: float | None = None
    rounding: str = "given"
    calibration: Mapping[str, Any] = field(default_factory=dict, hash=False)
    macs: Mapping[str, int] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "remove", tuple(self.remove))
        _refuse(_faults(vars(self)), "recipe")

    @classmethod
    def zero(cls, num_layers: int, visual_tokens: int, model: str = "any") -> Recipe:
        """Removes nothing."""
        return cls(model, num_layers, visual_tokens, (0,) * num_layers, ratio=0.0)

    @classmethod
    def uniform(cls, num_layers: int, visual_tokens: int, total: int, model: str = "any") -> Recipe:
        """Removes ``total`` tokens, evenly over the layers; earlier layers take the rest of the division."""
        each, rest = divmod(total, num_layers)
        return cls(model, num_layers, visual_tokens, tuple(each + (layer < rest) for layer in range(num_layers)))

    @classmethod
    def from_counts(
        cls,
        mean_counts: Sequence[float],
        *,
        model: str,
        visual_tokens: int,
        shape: DecoderShape,
        ratio: float,
        alpha: float | None = None,
        rounding: str = "largest_remainder",
        calibration: Mapping[str, Any] | None = None,
    ) -> Recipe:
        """Round mean removals per layer to integers, and record what they cost.

        Args:
            mean_counts: mean removals per layer over the calibration samples.
            rounding: "largest_remainder" keeps their sum; "floor" is the official script's, which delivers
                less.

        Raises:
            UserError: another rounding.
        """
        if rounding not in ROUNDINGS[:2]:
            raise UserError(f"unknown rounding {rounding!r}", None, " or ".join(ROUNDINGS[:2]))
        # Means of integers over a few samples: a hair below an integer is that integer.
        counts = [floor(count + 1e-9) for count in mean_counts]
        if rounding == "largest_remainder":
            missing = round(sum(mean_counts)) - sum(counts)
            rests = [count - whole for count, whole in zip(mean_counts, counts, strict=True)]
            for layer in sorted(range(len(counts)), key=lambda i: (-rests[i], i))[: max(missing, 0)]:
                counts[layer] += 1
        base = base_macs(visual_tokens, shape)
        macs = {
            "base": base,
            "asked": round(base * (1 - ratio)),
            "delivered": recipe_macs(counts, visual_tokens, shape),
        }
        return cls(model, shape.layers, visual_tokens, tuple(counts), ratio, alpha, rounding, calibration or {}, macs)

    @classmethod
    def released(cls, model: str, percent: int | str) -> Recipe:
        """A recipe that the authors released, by model and percentage (their label; `reduction` is what it
        delivers).

        Args:
            model: "llava-1.5-7b", "llava-next-7b" or "llava-hr-7b", or a hub id of one of them.
            percent: a whole number, or its digits. LLaVA-1.5: 0, 10, 20, 30, 40, 50, 55, 60, 70, 80, 90; the others: 0,
                40, 60.

        Raises:
            UserError: there is no such recipe; the message lists those that there are.
        """
        name = next((name for name, others in ALIASES.items() if model == name or model in others), None)
        if name is None:
            raise UserError(f"no released recipe for {model!r}", None, ", ".join(ALIASES))
        host = _released()[name]
        if str(percent) not in host["remove"]:
            raise UserError(f"no released recipe for {name} at {percent} %", None, ", ".join(host["remove"]) + " %")
        remove, tokens, percent = host["remove"][str(percent)], host["visual_tokens"], int(percent)
        base = base_macs(tokens, LLAVA_7B)
        macs = {
            "base": base,
            "asked": round(base * (1 - percent / 100)),
            "delivered": recipe_macs(remove, tokens, LLAVA_7B),
        }
        return cls(name, len(remove), tokens, tuple(remove), percent / 100, None, "released", {}, macs)

    @staticmethod
    def released_names() -> list[tuple[str, int]]:
        """Every released recipe as (model, percentage)."""
        return [(name, int(percent)) for name, host in _released().items() for percent in host["remove"]]

    def alive(self) -> list[int]:
        """Visual tokens at the input of every layer and after the last one."""
        return alive(self.remove, self.visual_tokens)

    def counts_for(self, visual_tokens: int) -> list[int]:
        """Removals per layer for a prompt with another number of visual tokens: ``int(r V / V_recipe)``.

        Truncation is the official rule for LLaVA-NeXT; it never removes more than there are.
        """
        return [count * visual_tokens // self.visual_tokens for count in self.remove]

    def scale(self, visual_tokens: int) -> Recipe:
        """The recipe restated for prompts with ``visual_tokens``; costs are dropped, as they belong to the
        old size."""
        remove = tuple(self.counts_for(visual_tokens))
        return replace(self, visual_tokens=visual_tokens, remove=remove, macs={})

    @property
    def empty(self) -> bool:
        """Whether it removes nothing, of any prompt."""
        return not any(self.remove)

    @property
    def reduction(self) -> float | None:
        """Share of the visual MACs that the integer counts really save; None when the costs are not known."""
        return 1 - self.macs["delivered"] / self.macs["base"] if self.macs else None

    def validate(self, model: Any) -> None:
        """Refuse a model or configuration with another number of decoder layers.

        Raises:
            UserError: naming both.
        """
        config = getattr(model, "config", model)
        if not hasattr(config, "get_text_config"):
            return  # no transformers model: the attachment says so
        layers = config.get_text_config().num_hidden_layers
        if layers != self.num_layers:
            raise UserError(
                f"this recipe is for {self.num_layers} decoder layers",
                self.model,
                f"a recipe for {layers} layers",
            )

    def save(self, path: str | Path) -> None:
        """Write the recipe as JSON, whole or not at all."""
        atomic_write_json(path, {"format": "fitprune recipe", "version": VERSION, **asdict(self)})

    @classmethod
    def load(cls, path: str | Path) -> Recipe:
        """Read a recipe.

        Raises:
            UserError: no such file, no JSON, a missing or unknown field, counts that do not fit the layers
                or remove more than there is.
        """
        data = read_json(path)
        _refuse(_faults_of_file(data), path)
        return cls(**{name: value for name, value in data.items() if name in DEFAULTS or name in REQUIRED})

    def summary(self) -> str:
        """One line: what it is for, what is left, what it saves."""
        line = f"{self.model}: {self.visual_tokens} -> {self.alive()[-1]} visual tokens over {self.num_layers} layers"
        if self.reduction is not None:
            line += f", visual FLOPs -{self.reduction:.1%}"
            line += f" (asked -{self.ratio:.0%})" if self.ratio is not None else ""
        return line

    def diff(self, other: Recipe) -> str:
        """A table of the layers in which two recipes differ: removals and tokens left after each."""
        if self.num_layers != other.num_layers:
            raise UserError(f"{self.num_layers} and {other.num_layers} layers", "diff", "recipes of equal depth")
        rows = [f"{'layer':>5} {'removes':>8} {'other':>8} {'left':>8} {'other':>8}"]
        lefts = zip(self.alive()[1:], other.alive()[1:], strict=True)
        for layer, (mine, theirs, left) in enumerate(zip(self.remove, other.remove, lefts, strict=True)):
            if mine != theirs:
                rows.append(f"{layer:>5} {mine:>8} {theirs:>8} {left[0]:>8} {left[1]:>8}")
        return "\n".join(rows) if len(rows) > 1 else "the same removals in every layer"

    def plot(self, path: str | Path) -> None:
        """Draw removals (bars) and tokens left (line) over the layers into a PNG file, whatever its suffix.

        Raises:
            UserError: the file cannot be written.
        """
        from matplotlib.figure import Figure

        figure = Figure(figsize=(7, 3.2), layout="constrained", dpi=150)
        axis = figure.subplots()
        layers = range(self.num_layers)
        axis.bar(layers, self.remove, color="#c8553d", width=0.8, label="removed in the layer")
        axis.set_xlabel("decoder layer")
        axis.set_ylabel("visual tokens removed", color="#c8553d")
        axis.spines[["top", "right"]].set_visible(False)
        right = axis.twinx()
        right.step(range(self.num_layers + 1), self.alive(), where="post", color="#28536b", linewidth=1.8)
        right.set_ylabel("visual tokens left", color="#28536b")
        right.set_ylim(0, self.visual_tokens * 1.05)
        right.spines[["top", "left"]].set_visible(False)
        axis.set_title(self.summary(), fontsize=9, loc="left")
        picture = BytesIO()
        figure.savefig(picture, format="png")
        atomic_write_bytes(path, picture.getvalue())


def _refuse(faults: Iterator[Fault], where: str | Path) -> None:
    for what, expected in faults:
        raise UserError(what, where, expected)


def _faults_of_file(data: Any) -> Iterator[Fault]:
    """What is wrong with the content of a recipe's file, the first thing first."""
    if not isinstance(data, dict) or data.get("format") != "fitprune recipe":
        yield "not a recipe", 'a JSON object with "format": "fitprune recipe"'
    if data.get("version") != VERSION:
        yield f"recipe version {data.get('version')!r}", str(VERSION)
    for name in sorted(set(data) - {*REQUIRED, *DEFAULTS, "format", "version"}):
        yield f"unknown field {name!r}", ", ".join((*REQUIRED, *DEFAULTS))
    for name in REQUIRED:
        if name not in data:
            yield f"no field {name!r}", "model, num_layers, visual_tokens and remove"
    if not isinstance(data["remove"], list):
        yield "field 'remove' is no list", "one number per decoder layer"
    yield from _faults({**DEFAULTS, **data})


def _faults(recipe: Mapping[str, Any]) -> Iterator[Fault]:
    """What is wrong with a recipe's fields, the first thing first; later tests rely on earlier ones."""
    layers, visual, remove, macs = (recipe[name] for name in ("num_layers", "visual_tokens", "remove", "macs"))
    for name in ("num_layers", "visual_tokens"):
        if not _whole(recipe[name], 1):
            yield f"field {name!r} is {recipe[name]!r}", "a whole number above 0"
    for layer, count in enumerate(remove):
        if not _whole(count, 0):
            yield f"layer {layer} removes {count!r} tokens", "a whole number, at least 0"
    if len(remove) != layers:
        yield f"{len(remove)} removals", f"one for each of {layers} layers"
    if sum(remove) > visual:
        yield f"removes {sum(remove)} tokens", f"at most the {visual} visual tokens"
    for name in ("ratio", "alpha"):
        value = recipe[name]
        if value is not None and not (isinstance(value, int | float) and isfinite(value) and 0 <= value <= 1):
            yield f"field {name!r} is {value!r}", "a number between 0 and 1"
    if not isinstance(recipe["model"], str):
        yield f"field 'model' is {recipe['model']!r}", "a name"
    if not isinstance(recipe["calibration"], Mapping):
        yield f"field 'calibration' is {recipe['calibration']!r}", "an object"
    if recipe["rounding"] not in ROUNDINGS:
        yield f"field 'rounding' is {recipe['rounding']!r}", ", ".join(ROUNDINGS)
    smallest = {"base": 1, "asked": 0, "delivered": 0}
    counted = isinstance(macs, Mapping) and all(_whole(macs.get(name), value) for name, value in smallest.items())
    if macs != {} and not (counted and max(macs["asked"], macs["delivered"]) <= macs["base"]):
        yield "field 'macs' is broken", "whole numbers base, asked and delivered, none above base"


def _whole(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


@cache
def _released() -> dict[str, Any]:
    return read_json(Path(str(files("fitprune") / "released.json")))


def open_recipe(text: str) -> Recipe:
    """A recipe file, or a released recipe by ``NAME:PERCENT`` such as ``llava-1.5-7b:60``.

    Raises:
        UserError: neither of both; or the file or the name is wrong.
    """
    if text.endswith(".json") or Path(text).exists():
        return Recipe.load(text)
    name, separator, percent = text.rpartition(":")
    if not separator or not percent.isdigit():
        raise UserError("no such recipe", text, "a recipe file, or NAME:PERCENT such as llava-1.5-7b:60")
    return Recipe.released(name, int(percent))
