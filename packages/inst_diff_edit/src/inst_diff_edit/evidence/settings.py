"""What `inst-diff-edit bench` can be told. No torch here."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from tenfold.cli.settings import DEVICE


class BenchSettings(BaseModel):
    """Settings of `inst-diff-edit bench`.

    Attributes:
        repeats: rounds that count, after one that does not.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    device: str = Field(default="auto", pattern=DEVICE)
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    repeats: int = Field(default=3, ge=1)
