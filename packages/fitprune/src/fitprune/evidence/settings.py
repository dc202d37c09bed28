"""What `fitprune bench` can be told. No torch here."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from tenfold.cli.settings import DEVICE


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

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    device: str = Field(default="auto", pattern=DEVICE)
    layers: int | None = Field(default=None, ge=1, le=32)
    percent: int = 60
    dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"
    batch: int = Field(default=1, ge=1)
    repeats: int = Field(default=5, ge=1)
    decode_tokens: int = Field(default=8, ge=1)
    methods: tuple[str, ...] = ("fastv", "pyramiddrop", "uniform", "random-before")
