"""What `eas bench` can be told. No torch here."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from tenfold.cli.settings import DEVICE, Settings


class BenchSettings(Settings):
    """Settings of `eas bench`.

    Attributes:
        host: "llava", or "lavin": the paper's 2.2x by its parts.
        layers: of the decoder, at full width; 0: 4 on the CPU and all 32 on CUDA.
        removed: K; 0: 12 of 32, in proportion.
        prompt: tokens; the LLaVA host's mean prompt on AID has 636.
        tokens: decoded ones that are timed. rounds: alternated, behind one that does not count.
        adapter, pia: ranks.
    """

    host: Literal["llava", "lavin"] = "llava"
    device: str = Field(default="auto", pattern=DEVICE)
    dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16"
    layers: int = Field(default=0, ge=0)
    removed: int = Field(default=0, ge=0)
    prompt: int = Field(default=636, ge=2)
    tokens: int = Field(default=8, ge=1)
    rounds: int = Field(default=5, ge=1)
    adapter: int = Field(default=128, ge=2)
    pia: int = Field(default=128, ge=2)
