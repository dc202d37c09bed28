"""What `flashsloth bench` can be told. No torch here."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from tenfold.cli.settings import DEVICE, Settings


class BenchSettings(Settings):
    """Settings of `flashsloth bench`.

    Attributes:
        model: "3.2b" or "hd-3.2b", random weights at full width.
        layers: of the language model; None: all on CUDA, 2 on the CPU.
        vision_layers: of the tower; None: all on CUDA, 2 on the CPU.
        question: tokens of the question.
        new_tokens: forced, for decoding.
        repeats: alternated rounds that count, after one that does not.
        dtype: None: bfloat16 on CUDA, float32 on the CPU.
    """

    model: Literal["3.2b", "hd-3.2b"] = "3.2b"
    device: str = Field(default="auto", pattern=DEVICE)
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    layers: int | None = Field(default=None, ge=1)
    vision_layers: int | None = Field(default=None, ge=1)
    question: int = Field(default=7, ge=1)
    new_tokens: int = Field(default=128, ge=1)
    repeats: int = Field(default=5, ge=1)
