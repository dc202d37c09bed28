"""What `dit-sam bench` can be told; no torch here."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from tenfold.cli.settings import DEVICE, Settings


class BenchSettings(Settings):
    """Settings of `dit-sam bench`.

    Attributes:
        sizes: edges of the input in pixels. layers: of the encoder, a number or "all"; None: 1 on a CPU, all on CUDA.
        encoder: of SAM. repeats: alternated rounds after the warm-up.
        precision: None: fp32 on a CPU, bf16 on CUDA. threads: of torch, on the CPU.
    """

    sizes: tuple[int, ...] = Field(default=(512, 1024), min_length=1)
    layers: str | None = Field(default=None, pattern=r"^(all|[1-9]\d*)$")
    encoder: Literal["vit_b", "vit_l", "vit_h"] = "vit_b"
    repeats: int = Field(default=5, ge=1)
    precision: Literal["fp32", "bf16"] | None = None
    threads: int | None = Field(default=None, ge=1)
    device: str = Field(default="auto", pattern=DEVICE)
