"""What the verbs of `fitprune` can be told, by option, by config file, and from a run record.

No torch here: the command line reads settings before it loads a model.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tenfold import UserError

# The host that ships with Tenfold, by name.
MINI = "mini"
# The methods of `fitprune.evaluation.baselines` that are compared unless others are named: the paper's first.
COMPARED = (
    "fitprune",
    "fastv",
    "pyramiddrop",
    "last-token",
    "self",
    "cross",
    "uniform",
    "single-cut",
    "random",
    "random-before",
    "inverse",
)


class HostSettings(BaseModel):
    """Which model, and how it is loaded.

    Attributes:
        model: "mini", a folder in transformers' layout, or a hub id.
        device: "auto" takes CUDA where there is a device, else the CPU.
        dtype: "auto" is that of the checkpoint; the mini host computes in float32.
        attention: the model's own attention implementation.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str = MINI
    device: str = Field(default="auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    attention: Literal["sdpa", "eager"] = "sdpa"


class FitSettings(HostSettings):
    """Settings of `fitprune fit`.

    Attributes:
        samples: JSON lines of calibration samples (`question_id`, `image`, `text`); None: scenes of the mini world,
            for the mini host only.
        image_folder: what `image` is relative to; None: the folder of `samples`.
        ratios: shares of the visual FLOPs to save, one recipe each.
        rounding: "floor" is the official one, which delivers less than asked.
        limit: calibrate on this many samples, drawn by the seed; None: on all (mini world: 16).
        visual_tokens: the prompt size that recipes are written for; None: that of the largest sample.
    """

    samples: str | None = None
    image_folder: str | None = None
    ratios: tuple[float, ...] = Field(default=(0.6,), min_length=1)
    rounding: Literal["largest_remainder", "floor"] = "largest_remainder"
    limit: int | None = Field(default=None, ge=1)
    visual_tokens: int | None = Field(default=None, ge=1)


class DemoSettings(HostSettings):
    """Settings of `fitprune demo`.

    Attributes:
        image: a picture; None: a scene of the mini world.
        question: about the picture; None: the scene's own.
        recipe: a recipe file, `NAME:PERCENT` of a released one, or a ratio to fit live on mini world scenes; None: the
            released 60 % recipe of the model, or for the mini host a live fit at 0.6.
    """

    image: str | None = None
    question: str | None = None
    recipe: str | None = None


class EvalSettings(HostSettings):
    """Settings of `fitprune eval`.

    Attributes:
        benchmark: by name, or "all" that the data folder holds.
        data: the benchmark's folder, or for "all" the folder of theirs; None: sets of the mini world, for the mini
            host only.
        split: None: the one that papers report, in the mini world the benchmark's first.
        recipe: a recipe file, `NAME:PERCENT` of a released one, "none", or for the mini host a ratio to fit live; None:
            the released 60 % recipe of the model, for the mini host a live fit at 0.6.
        rule: which tokens leave, by name in `fitprune.rules.RULES`.
        protocol: how an image and a question become a prompt (`fitprune.evaluation.answers.Protocol`); "auto":
            LLaVA-1.5's own for LLaVA-1.5.
        limit: the first so many questions; None: all.
        batch: prompts at a time.
    """

    benchmark: str = "all"
    data: str | None = None
    split: str | None = None
    recipe: str | None = None
    rule: str = "product"
    protocol: Literal["auto", "processor", "llava"] = "auto"
    limit: int | None = Field(default=None, ge=1)
    batch: int = Field(default=8, ge=1)


class CompareSettings(HostSettings):
    """Settings of `fitprune compare`.

    Attributes:
        samples: JSON lines (`question_id`, `image`, `text`, where known `answer`, and `category`).
        image_folder: what `image` is relative to; None: the folder of `samples`.
        benchmark: by name, in place of `samples`.
        data: the benchmark's folder.
        split: None: the one that papers report.
        ratios: shares of the visual FLOPs to save; none: what the recipes save, or 0.6.
        recipes: recipe files or `NAME:PERCENT` of released ones, one or one for each ratio; none: the nearest released
            one, for the mini host a fit.
        methods: names in `fitprune.evaluation.baselines.METHODS`.
        seeds: how many draws of the methods that draw at random.
        limit: the first so many questions; None: all (mini world: 96).
        batch: prompts at a time.
        max_new_tokens: of an answer.
    """

    samples: str | None = None
    image_folder: str | None = None
    benchmark: str | None = None
    data: str | None = None
    split: str | None = None
    ratios: tuple[float, ...] = ()
    recipes: tuple[str, ...] = ()
    methods: tuple[str, ...] = COMPARED
    seeds: int = Field(default=3, ge=1)
    limit: int | None = Field(default=None, ge=1)
    batch: int = Field(default=16, ge=1)
    max_new_tokens: int = Field(default=16, ge=1)


class AnalyzeSettings(HostSettings):
    """Settings of `fitprune analyze`.

    Attributes:
        samples, image_folder, limit: as for a fit; None: scenes of the mini world, for the mini host only.
        recipe: a recipe file or `NAME:PERCENT` of a released one, to stand beside the statistics; None: none.
    """

    samples: str | None = None
    image_folder: str | None = None
    limit: int | None = Field(default=None, ge=1)
    recipe: str | None = None


class BenchSettings(BaseModel):
    """Settings of `fitprune bench`.

    Attributes:
        device: "auto" takes CUDA where there is a device, else the CPU.
        layers: decoder layers; None: all 32 on CUDA, 4 on the CPU.
        percent: label of the released LLaVA-1.5-7B recipe.
        dtype: float32 only for processors without bfloat16 arithmetic, which emulate it slowly.
        batch: prompts at a time.
        repeats: rounds that count, after one that does not; each runs every variant once.
        decode_tokens: tokens generated after each prefill.
        methods: names in `fitprune.evaluation.baselines.METHODS`, measured at the visual FLOPs of the recipe.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    device: str = Field(default="auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$")
    layers: int | None = Field(default=None, ge=1, le=32)
    percent: int = 60
    dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"
    batch: int = Field(default=1, ge=1)
    repeats: int = Field(default=5, ge=1)
    decode_tokens: int = Field(default=8, ge=1)
    methods: tuple[str, ...] = ("fastv", "pyramiddrop", "uniform", "random-before")


def checked(model: type[BaseModel], values: dict[str, Any], where: str | Path | None = None) -> Any:
    """`values` as a `model`; options that were not given (None) keep its defaults.

    Raises:
        UserError: a value that does not fit, or an unknown name; names the setting.
    """
    try:
        return model.model_validate({name: value for name, value in values.items() if value is not None})
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        raise UserError(f"{name}: {first['input']!r}", where, _expected(first)) from error


def _expected(error: Any) -> str:
    context = error.get("ctx", {})
    if "pattern" in context:
        return "auto, cpu, cuda or cuda:N"
    return str(context.get("expected") or error["msg"].removeprefix("Input should be "))
