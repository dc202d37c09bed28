"""What `llava-hr bench` can be told. No torch here: the command line reads settings before it loads a model."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from tenfold.cli.settings import DEVICE


class BenchSettings(BaseModel):
    """Settings of `llava-hr bench`.

    Attributes:
        device: "auto" takes CUDA where there is a device, else the CPU.
        dtype: "auto" is bfloat16 on CUDA and float32 on the CPU, where bfloat16 is often emulated, slowly.
        layers: of the decoder; None: all 32 on CUDA, 2 on the CPU.
        vit_layers: of the ViT, a multiple of 4; None: all 24 on CUDA, 4 on the CPU.
        conv_depths: blocks of ConvNeXt's stages; None: 3, 3, 27, 3 on CUDA, 1, 1, 3, 1 on the CPU.
        image_size: of LLaVA-HR, in pixels.
        llava_sizes: of LLaVA-1.5; the first is the baseline.
        text_tokens: of the prompt, besides the visual ones.
        new_tokens: of an answer, the first from the prefill: 10 in the official speed script.
        repeats: rounds that count, after one that does not; each runs every model once.
        generate: also time `generate` as a whole; None: on CUDA.
        overlap: also measure both pathways on two CUDA streams, and the adapters' three products in one; None: on CUDA.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    device: str = Field(default="auto", pattern=DEVICE)
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    layers: int | None = Field(default=None, ge=1)
    vit_layers: int | None = Field(default=None, ge=4, multiple_of=4)
    conv_depths: tuple[int, int, int, int] | None = None
    image_size: int = Field(default=1024, ge=32, multiple_of=32)
    llava_sizes: tuple[int, ...] = Field(default=(1022, 336), min_length=1)
    text_tokens: int = Field(default=60, ge=2)
    new_tokens: int = Field(default=10, ge=2)
    repeats: int = Field(default=3, ge=1)
    generate: bool | None = None
    overlap: bool | None = None
