"""What `dyvte eval`, `demo`, `analyze` and `calibrate` can be told."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from tenfold.cli.settings import HostSettings

# Gates that ship for the mini host; for another host a folder or a repository is named. And: no exit at all.
SHIPPED, NONE = "shipped", "none"


class ExitSettings(HostSettings):
    """Which exit is attached.

    Attributes:
        gates: a folder, an official checkpoint, a repository on the hub, "shipped" (those of the mini host), or
            "none" for the dense model.
        threshold: 0 is the published rule; less exits sooner.
        exit_at: leave after this layer instead of by the gates; -1: before the first.
        fastv: FastV beside it (K = 2, R = 50 %).
        compact_every: layers between two compactions.
    """

    gates: str = SHIPPED
    threshold: float = 0.0
    exit_at: int | None = Field(default=None, ge=-1)
    fastv: bool = False
    compact_every: int = Field(default=1, ge=1)


class EvalSettings(ExitSettings):
    """Settings of `dyvte eval`.

    Attributes:
        benchmark: by name, or "all" that the data folder holds.
        data: the benchmark's folder, or for "all" the folder of theirs; None: sets of the mini world, for the mini
            host only.
        split: None: the benchmark's first.
        protocol: how an image and a question become a prompt; "auto": LLaVA-1.5's own for LLaVA-1.5.
        limit: so many questions, spread evenly over all of them; None: all.
        batch: prompts at a time.
    """

    benchmark: str = "all"
    data: str | None = None
    split: str | None = None
    protocol: Literal["auto", "processor", "llava"] = "auto"
    limit: int | None = Field(default=None, ge=1)
    batch: int = Field(default=8, ge=1)


class DemoSettings(ExitSettings):
    """Settings of `dyvte demo`.

    Attributes:
        image: a picture; None: a scene of the mini world.
        question: about the picture; None: the scene's own.
    """

    image: str | None = None
    question: str | None = None


class AnalyzeSettings(HostSettings):
    """Settings of `dyvte analyze`.

    Attributes:
        samples: LLaVA's instruction json; None: the mini world, for the mini host only.
        image_folder: what `image` is relative to; None: the folder of `samples`.
        protocol: how an image and a question become a prompt; "auto": LLaVA-1.5's own for LLaVA-1.5.
        limit: the first so many samples.
        batch: prompts at a time.
    """

    samples: str | None = None
    image_folder: str | None = None
    protocol: Literal["auto", "processor", "llava"] = "auto"
    limit: int = Field(default=64, ge=1)
    batch: int = Field(default=8, ge=1)


class CalibrateSettings(AnalyzeSettings):
    """Settings of `dyvte calibrate`.

    Attributes:
        gates: whose threshold is looked for.
        mean_exit: the mean exit layer that is wanted, counted from 0.
    """

    gates: str = SHIPPED
    mean_exit: float = Field(default=1.0, ge=0)
