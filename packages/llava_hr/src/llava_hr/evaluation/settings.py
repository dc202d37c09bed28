"""What `llava-hr eval` and `llava-hr demo` can be told, by option, by config file, and from a run record.

No torch here: the command line reads settings before it loads a model.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

# The model that ships with the package, by name.
MINI = "mini"
# All benchmarks that a data folder holds.
ALL = "all"


class HostSettings(BaseModel):
    """Which model, and how it is loaded.

    Attributes:
        model: "mini", a folder (this package's or an official release), or a hub id.
        device: "auto" takes CUDA where there is a device, else the CPU.
        dtype: "auto" is that of the checkpoint; the authors evaluate in float16; the mini model computes in float32.
        attention: the language model's and the ViT's attention implementation.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str = MINI
    device: str = Field(default="auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    attention: Literal["sdpa", "eager"] = "sdpa"


class EvalSettings(HostSettings):
    """Settings of `llava-hr eval`.

    Attributes:
        benchmark: by name, or "all" that the data folder holds.
        data: the benchmark's folder, or the folder of theirs (LLaVA's `playground/data/eval`); None: the miniature's
            held-out questions, for the mini model only.
        split: None: the one that the paper reports.
        limit: the first so many questions; None: all.
        batch: prompts at a time.
    """

    benchmark: str = ALL
    data: str | None = None
    split: str | None = None
    limit: int | None = Field(default=None, ge=1)
    batch: int = Field(default=8, ge=1)


class DemoSettings(HostSettings):
    """Settings of `llava-hr demo`.

    Attributes:
        image: a picture; None: a scene of the miniature.
        question: about the picture; None: the scene's own, a fine and a coarse one.
    """

    image: str | None = None
    question: str | None = None
