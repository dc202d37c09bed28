"""The numbers of the paper's tables, to stand beside ours (sheet section 8). No torch here.

    published("FlashSloth", "textvqa")       # 64.6

The models of the main table were tuned on a private mixture of 3.7 million samples.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

SOURCE = "main table [readme]"
BENCHMARKS = (
    "pope", "mme", "mmbench", "mmvet", "seed", "mmmu", "mathvista", "gqa", "scienceqa", "textvqa", "ai2d", "chartqa",
    "docvqa", "realworldqa",
)  # fmt: skip
TABLE: Mapping[str, Mapping[str, float]] = {
    "FlashSloth": dict(zip(
        BENCHMARKS,
        (86.3, 1702.0, 73.0, 41.9, 68.0, 39.7, 42.5, 61.1, 88.6, 64.6, 72.5, 51.0, 48.6, 54.8), strict=True,
    )),
    "FlashSloth-HD": dict(zip(
        BENCHMARKS,
        (87.2, 1745.0, 75.7, 49.0, 71.2, 37.8, 40.6, 62.5, 91.1, 71.0, 75.3, 69.8, 74.8, 59.9), strict=True,
    )),
}  # fmt: skip


def published(model: str | None, benchmark: str) -> float | None:
    """The paper's value; None: it has none for that model."""
    return TABLE.get(model or "", {}).get(benchmark)


def paper_model(config: Any) -> str | None:
    """The paper's name for a model of these sizes; None: another one.

    Args:
        config: a `FlashSlothConfig`.
    """
    text, vision = config.text_config, config.vision_config
    full = (text.hidden_size, text.num_hidden_layers, vision.hidden_size) == (2560, 32, 1152)
    return None if not full else "FlashSloth-HD" if config.views > 1 else "FlashSloth"
