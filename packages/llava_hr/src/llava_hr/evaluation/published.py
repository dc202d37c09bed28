"""The numbers of the paper's tables, to stand beside ours. No torch here.

    published("LLaVA-HR-7B", 1024, "textvqa")       # [Published(67.1, "%", "tables 4 and 5 [v1]"), ...]

Sources: [v1] is the first version on arXiv, whose tables are 1 (resolutions), 2 (other ways to 760 pixels), 3
(ablations at 768 pixels) and 4-5 (other models); [readme] the authors' README after they had put right the evaluation
of ScienceQA and MM-Vet in April 2024, which had run without the padding used in training.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

# MME counts points; all other scores are percentages.
POINTS = ("mme",)


@dataclass(frozen=True)
class Row:
    """A line of a table.

    Attributes:
        table: such as "table 1 [v1]".
        model: as the table names it.
        pixels: of the image's edge.
        scores: benchmark -> score, by the names of `llava_hr.evaluation.benchmarks`.
        costs: "tokens" (visual, computed), "train hours", "memory GB" (of a GPU in training), "tokens/s".
    """

    table: str
    model: str
    pixels: int
    scores: Mapping[str, float]
    costs: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Published:
    """A number from a paper: `value` in `unit`, from `source`."""

    value: float
    unit: str
    source: str


_FOUR = ("vqav2", "textvqa", "mme", "pope")
_COSTS = ("tokens", "train hours", "memory GB", "tokens/s")
_WIDE = (
    "mme", "pope", "seed_all", "mmvet", "vqav2", "gqa", "okvqa", "ocrvqa", "scienceqa", "vizwiz", "textvqa",
)  # fmt: skip
_ONE, _TWO, _THREE = "table 1 [v1]", "table 2 [v1]", "table 3 [v1]"
_FOURTH, _README = "tables 4 and 5 [v1]", "README [readme]"


def _row(table: str, model: str, pixels: int, names: tuple[str, ...], *values: float | None) -> Row:
    found = {name: value for name, value in zip((*names, *_COSTS), values, strict=False) if value is not None}
    scores = {name: value for name, value in found.items() if name not in _COSTS}
    return Row(table, model, pixels, scores, {name: value for name, value in found.items() if name in _COSTS})


TABLES: tuple[Row, ...] = (
    # In this table LLaVA-1.5 trains its vision encoder too.
    _row(_ONE, "LLaVA-1.5-7B", 336, _FOUR, 80.44, 59.41, 1461.17, 86.2, 576, 15.6, 28, 23.8),
    _row(_ONE, "LLaVA-HR-7B", 384, _FOUR, 80.47, 59.63, 1522.28, 86.3, 576, 17.6, 34, 23.8),
    _row(_ONE, "LLaVA-1.5-7B", 448, _FOUR, 81.17, 62.17, 1493.12, 87.2, 1024, 19.4, 49, 19.9),
    _row(_ONE, "LLaVA-HR-7B", 768, _FOUR, 81.80, 64.36, 1524.75, 88.0, 576, 18.2, 38, 23.5),
    _row(_ONE, "LLaVA-1.5-7B", 672, _FOUR, 81.54, 64.23, 1498.71, 87.9, 2304, 31.8, 79, 12.7),
    _row(_ONE, "LLaVA-HR-7B", 1024, _FOUR, 81.90, 67.11, 1554.90, 87.6, 1024, 20.7, 40, 19.7),
    _row(_ONE, "LLaVA-1.5-7B", 1022, _FOUR, 74.20, 37.80, 1266.90, 84.4, 5329, 69.4, None, 5.6),
    _row(_ONE, "LLaVA-HR-7B", 1536, _FOUR, 81.82, 67.96, 1480.62, 87.7, 2304, 29.8, 52, 12.6),
    _row(_TWO, "ViT + MLP", 760, _FOUR, 81.0, 63.2, 1436.1, 87.6, None, None, None, 10.7),
    _row(_TWO, "Conv + MLP", 760, _FOUR, 80.3, 64.6, 1415.9, 86.6, None, None, None, 23.7),
    _row(_TWO, "ViT + Resampler", 760, _FOUR, 79.8, 58.9, 1403.8, 85.8, None, None, None, 27.6),
    _row(_TWO, "ViT + Pooling + MLP", 760, _FOUR, 80.6, 59.6, 1480.6, 86.5, None, None, None, 23.9),
    _row(_TWO, "MRA", 760, _FOUR, 81.8, 64.4, 1524.8, 88.0, None, None, None, 23.5),
    _row(_THREE, "default", 768, _FOUR, 81.8, 64.4, 1524.8, 88.0),
    _row(_THREE, "low-res path: none", 768, _FOUR, 80.3, 64.6, 1415.9, 86.6),
    _row(_THREE, "low-res path: ViT-G", 768, _FOUR, 81.7, 65.3, 1469.7, 87.9),
    _row(_THREE, "high-res path: none", 768, _FOUR, 80.4, 59.4, 1461.2, 86.2),
    _row(_THREE, "high-res path: ConvNeXt-XXL", 768, _FOUR, 82.3, 66.5, 1479.2, 87.9),
    _row(_THREE, "direction: low to high", 768, _FOUR, 81.0, 62.8, 1463.5, 87.3),
    _row(_THREE, "fusion: concat", 768, _FOUR, 81.7, 64.7, 1508.8, 87.3),
    _row(_THREE, "structure: conv-conv", 768, _FOUR, 81.6, 64.6, 1499.0, 87.7),
    _row(_THREE, "structure: conv-mlp", 768, _FOUR, 81.5, 64.2, 1517.9, 87.6),
    _row(_THREE, "gate: sigmoid", 768, _FOUR, 81.7, 64.3, 1567.9, 86.9),
    _row(_THREE, "gate: hard sigmoid", 768, _FOUR, 81.6, 64.4, 1525.9, 87.8),
    _row(_FOURTH, "LLaVA-1.5-7B", 336, _WIDE, 1510.7, 85.9, 58.6, 30.5, 78.5, 62.0, None, None, 66.8, 50.0, 58.2,
         None, None, None, 23.8),
    _row(_FOURTH, "LLaVA-1.5-13B", 336, _WIDE, 1531.3, 85.9, 61.6, 35.4, 80.0, 63.3, None, None, 71.6, 53.6, 61.3),
    _row(_FOURTH, "Qwen-VL-Chat", 448, _WIDE, 1487.5, None, 58.2, None, 78.2, 57.5, 56.6, 70.5, 68.2, 38.9, 61.5,
         None, None, None, 17.0),
    _row(_FOURTH, "mPLUG-Owl2", 448, _WIDE, 1450.2, None, 57.8, 36.2, 79.4, 56.1, 57.7, None, 68.7, 54.5, 58.2,
         None, None, None, 19.6),
    _row(_FOURTH, "LLaVA-HR-7B", 1024, _WIDE, 1554.9, 87.6, 64.2, 31.2, 81.9, 64.2, 58.9, 68.4, 65.1, 48.7, 67.1,
         None, None, None, 19.7),
    _row(_FOURTH, "LLaVA-HR-13B", 1024, _WIDE, 1540.9, 87.8, 64.5, 34.8, 82.3, 64.8, 60.7, 67.7, 68.1, 57.9, 68.1,
         None, None, None, 15.0),
    _row(_FOURTH, "LLaVA-HR-X-13B", 1024, _WIDE, 1487.3, 88.0, 65.3, 35.5, 82.6, 65.2, 61.5, 69.0, 68.0, 56.6, 70.9,
         None, None, None, 12.9),
    _row(_README, "LLaVA-HR-7B", 1024, ("mmvet", "scienceqa"), 31.5, 67.9),
    _row(_README, "LLaVA-HR-X-13B", 1024, ("mmvet", "scienceqa"), 40.3, 69.7),
)  # fmt: skip


def published(model: str | None, pixels: int, benchmark: str) -> list[Published]:
    """What was published for a model at a resolution, in the order of the tables.

    Args:
        model: as `paper_model` names it; None: not one of the paper's.
        pixels: of the image's edge.
        benchmark: by its name in `llava_hr.evaluation.benchmarks`.
    """
    unit = "points" if benchmark in POINTS else "%"
    return [
        Published(row.scores[benchmark], unit, row.table)
        for row in TABLES
        if (row.model, row.pixels) == (model, pixels) and benchmark in row.scores
    ]


def paper_model(config: Any) -> str | None:
    """The paper's name for a model of these sizes, "LLaVA-HR-7B" and so on; None: another one.

    Args:
        config: a `LlavaHrConfig`.
    """
    text, vision = config.text_config, config.vision_config
    size = {(4096, 32): "7B", (5120, 40): "13B"}.get((text.hidden_size, text.num_hidden_layers))
    trunk = {(1536, 27): "", (3072, 30): "X-"}.get((vision.high_res_dims[-1], vision.high_res_depths[2]))
    low = vision.low_res_config
    known = (low.hidden_size, low.num_hidden_layers) == (1024, 24) and vision.adapters
    name = f"LLaVA-HR-{trunk}{size}"
    return name if known and name in {row.model for row in TABLES} else None
