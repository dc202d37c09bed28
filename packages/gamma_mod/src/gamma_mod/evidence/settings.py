"""What `gamma-mod bench` can be told. No torch here."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from tenfold.cli.settings import DEVICE, Settings


class BenchSettings(Settings):
    """Settings of `gamma-mod bench`.

    Attributes:
        device: "auto" takes CUDA where there is a device, else the CPU.
        layers: decoder layers, or "all"; None: all on CUDA, 8 on the CPU.
        tokens: of the prompt; the paper's nominal 1,400.
        skip: realised skip of the prompt in converted layers; the paper's 57.7 %.
        dtype: float32 only for processors without bfloat16 arithmetic, which emulate it slowly.
        batch: prompts at a time.
        repeats: alternated rounds that count, after one that does not.
        decode_tokens: steps timed after each prefill.
        training: also time training steps, at a routing ratio of 0.5.
    """

    device: str = Field(default="auto", pattern=DEVICE)
    layers: str | None = Field(default=None, pattern=r"^(all|[1-9]\d*)$")
    tokens: int = Field(default=1400, ge=8)
    skip: float = Field(default=0.577, ge=0, lt=1)
    dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"
    batch: int = Field(default=1, ge=1)
    repeats: int = Field(default=5, ge=1)
    decode_tokens: int = Field(default=8, ge=1)
    training: bool = False
