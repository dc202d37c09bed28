"""What `fitprune fit` can be told. No torch here."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from tenfold.cli.settings import HostSettings


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
