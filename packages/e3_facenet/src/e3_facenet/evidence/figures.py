"""The report's pictures: recorded arms as dots with every seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def draw_arms(table: Sequence[Mapping[str, Any]], path: Path) -> Path:
    """Mean and seeds of every arm; writes a PNG and returns its path.

    Args:
        table: rows with "name", "mean", "seeds" and, for the paper's own arm, "ours".
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(7, 0.5 * len(table) + 0.8))
    for place, one in enumerate(reversed(table)):
        colour = "tab:blue" if one.get("ours") else "tab:gray"
        axis.plot(one["seeds"], [place] * len(one["seeds"]), "o", color=colour, alpha=0.4)
        axis.plot([one["mean"]], [place], "|", color=colour, markersize=18)
    axis.set_yticks(range(len(table)), [one["name"] for one in reversed(table)])
    axis.grid(axis="x", alpha=0.3)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
    return path
