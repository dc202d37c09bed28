"""What `dyvte bench` can be told."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from tenfold.cli.settings import DEVICE, Settings


class BenchSettings(Settings):
    """Settings of `dyvte bench`.

    Attributes:
        device: "auto" takes CUDA where there is a device, else the CPU.
        layers: decoder layers of LLaVA-1.5-7B's width; "all" are 32; None: all on CUDA, 4 on the CPU.
        exit_layer: after which the gates let the image leave; None: the middle.
        dtype: float32 only for processors without bfloat16 arithmetic, which emulate it slowly.
        batch: prompts at a time.
        repeats: pairs of rounds that count, after one that does not.
        decode_tokens: steps of decoding in a round.
        compact_every: layers between two compactions.
    """

    device: str = Field(default="auto", pattern=DEVICE)
    layers: int | Literal["all"] | None = None
    exit_layer: int | None = Field(default=None, ge=0)
    dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"
    batch: int = Field(default=1, ge=1)
    repeats: int = Field(default=5, ge=1)
    decode_tokens: int = Field(default=8, ge=1)
    compact_every: int = Field(default=1, ge=1)
    text: int = Field(default=29, ge=2)
    prefix: int = Field(default=35, ge=1)
    visual: int = Field(default=576, ge=1)
    hidden: int = Field(default=4096, ge=8)
    intermediate: int = Field(default=11008, ge=8)
    heads: int = Field(default=32, ge=1)
    width: int = Field(default=2048, ge=1)
