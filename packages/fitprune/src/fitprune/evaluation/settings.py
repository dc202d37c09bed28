"""What the verbs of `fitprune` can be told, by option, by config file, and from a run record.

No torch here: the command line reads settings before it loads a model.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from tenfold.cli.settings import HostSettings

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
        protocol: how an image and a question become a prompt (`tenfold.hosts.answers.Protocol`); "auto":
            LLaVA-1.5's own for LLaVA-1.5.
        limit: so many questions, spread evenly over all of them; None: all.
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
        limit: so many questions, spread evenly over all of them; None: all (mini world: 96).
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
