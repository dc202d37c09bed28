"""Which models, and how they are loaded. No torch here: the command line reads settings before it loads a model."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from tenfold.cli.settings import DEVICE

# The model that ships with the package, by name.
MINI = "mini"


class ModelSettings(BaseModel):
    """Which models, and how they are loaded.

    Attributes:
        model: "mini", a folder in diffusers' layout, or a hub id.
        inpaint: the inpainting model that finishes pictures; None: latents are decoded directly.
        device: "auto" takes CUDA where there is a device, else the CPU.
        dtype: of all models.
        offload: move each model to the GPU only while it works (needs accelerate).
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    model: str = MINI
    inpaint: str | None = None
    device: str = Field(default="auto", pattern=DEVICE)
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    offload: bool = False
