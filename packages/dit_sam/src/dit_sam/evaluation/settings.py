"""What `dit-sam eval`, `segment` and `demo` can be told; no torch here."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from dit_sam.data.settings import DataSet
from tenfold.cli.settings import DEVICE, MINI, Settings


class EvalSettings(Settings):
    """Settings of `dit-sam eval`.

    Attributes:
        model: a folder, a Hub repository, or "mini", the one that ships.
        data: the folder of the data; None: mini scenes that no training saw.
        set, split, part: which sentences.
        protocol: "official" as the published numbers are made, "smooth" as `predict` does by default.
        threshold: of the foreground's probability; None: the model's own.
        input_size: edge of the padded square; None: the model's own.
        no_target_pixels: gRefCOCO: a mask of fewer pixels counts as none; 0 takes masks as they are. DIT has no head
            that says "nothing is meant".
        batch: sentences in one pass. limit: only the first so many sentences.
    """

    model: str = MINI
    data: str | None = None
    set: DataSet = "refcoco"
    split: str | None = None
    part: str = "val"
    protocol: Literal["official", "smooth"] = "official"
    threshold: float | None = Field(default=None, gt=0, lt=1)
    input_size: int | None = Field(default=None, ge=16, le=4096)
    no_target_pixels: int = Field(default=0, ge=0)
    batch: int = Field(default=8, ge=1)
    limit: int | None = Field(default=None, ge=1)
    device: str = Field(default="auto", pattern=DEVICE)


class SegmentSettings(Settings):
    """Settings of `dit-sam segment`.

    Attributes:
        model, protocol, threshold, input_size: as for `eval`; smooth by default.
        image: the file; its EXIF orientation is applied.
        texts: one or more sentences.
    """

    image: str
    texts: tuple[str, ...] = Field(min_length=1)
    model: str = MINI
    protocol: Literal["official", "smooth"] = "smooth"
    threshold: float | None = Field(default=None, gt=0, lt=1)
    input_size: int | None = Field(default=None, ge=16, le=4096)
    device: str = Field(default="auto", pattern=DEVICE)


class DemoSettings(Settings):
    """Settings of `dit-sam demo`: mini scenes with the mini model that ships.

    Attributes:
        scenes: how many, of those that no training saw.
    """

    model: str = MINI
    scenes: int = Field(default=4, ge=1, le=100)
    device: str = Field(default="auto", pattern=DEVICE)
