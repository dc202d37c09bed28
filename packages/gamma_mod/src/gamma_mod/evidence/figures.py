"""The report's figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from gamma_mod.costs import NOMINAL, VICUNA_7B, VICUNA_13B, model_flops

_PRINTED = {
    "LLaVA-HR-7B": (VICUNA_7B, "llava-hr", ((0, 19.2), (0.164, 16.3), (0.379, 12.6), (0.577, 9.3), (0.743, 6.5))),
    "LLaVA-HR-13B": (VICUNA_13B, "llava-hr", ((0, 37.1), (0.349, 25.1), (0.551, 18.4))),
    "LLaVA-7B": (VICUNA_7B, "llava", ((0, 10.7), (0.31, 7.7), (0.564, 5.3))),
    "Mini-Gemini-HD-7B": (VICUNA_7B, "mini-gemini-hd", ((0, 60.2), (0.362, 39.4), (0.581, 27.8))),
}


def published_flops(path: Path) -> Path:
    """The formula as lines, the paper's numbers as dots."""
    figure, axes = _figure()
    skips = [step / 100 for step in range(81)]
    for name, (shape, prompt, printed) in _PRINTED.items():
        line = [model_flops(shape, NOMINAL[prompt], skip) / 1e12 for skip in skips]
        (drawn,) = axes.plot(skips, line, label=name)
        axes.scatter(*zip(*printed, strict=True), color=drawn.get_color(), s=18)
    axes.set_xlabel("realised skip of converted layers")
    axes.set_ylabel("TFLOPs of a prompt")
    axes.legend(frameon=False)
    return _save(figure, path)


def arms(table: Sequence[Mapping[str, Any]], path: Path) -> Path:
    """Mean accuracy of every arm, seeds as dots."""
    figure, axes = _figure(height=0.35 * len(table) + 1.2)
    for place, row in enumerate(reversed(table)):
        axes.barh(place, row["mean"], color="#4c72b0", alpha=0.5)
        axes.scatter(row["seeds"], [place] * len(row["seeds"]), color="black", s=10, zorder=3)
    axes.set_yticks(range(len(table)), [row["name"] for row in reversed(table)])
    axes.set_xlabel("accuracy, %")
    return _save(figure, path)


def ranks(values: Sequence[float], path: Path) -> Path:
    """ARank of every layer."""
    figure, axes = _figure()
    axes.bar(range(len(values)), values, color="#4c72b0")
    axes.set_xlabel("layer")
    axes.set_ylabel("ARank")
    return _save(figure, path)


def _figure(height: float = 3.6) -> tuple[Figure, Any]:
    figure = Figure(figsize=(6.4, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.add_subplot()


def _save(figure: Figure, path: Path) -> Path:
    figure.savefig(path, dpi=120)
    return path
