"""What `llava-hr eval` and `llava-hr demo` can be told, by option, by config file, and from a run record.

No torch here: the command line reads settings before it loads a model.
"""

from __future__ import annotations

from pydantic import Field

from tenfold.cli.settings import HostSettings

# All benchmarks that a data folder holds.
ALL = "all"


class EvalSettings(HostSettings):
    """Settings of `llava-hr eval`.

    Attributes:
        benchmark: by name, or "all" that the data folder holds.
        data: the benchmark's folder, or the folder of theirs (LLaVA's `playground/data/eval`); None: the miniature's
            held-out questions, for the mini model only.
        split: None: the one that the paper reports.
        limit: so many questions, spread evenly over all of them; None: all.
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
