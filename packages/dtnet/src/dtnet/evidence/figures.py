"""The report's pictures of the recorded miniature: its gates, its trainings' curves, and the arms' losses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dtnet.evidence.findings import HEADROOM, HIGHEST, LABELS, LOWEST, POOLED, SINGLE
from tenfold.ledger import Figure
from tenfold.runs import read_json

OURS, OTHER, LIMIT = "#0b5c6b", "#9aa5ab", "#c8553d"
# Points of a curve whose mean is drawn.
SMOOTH = 4


def draw_record(results: Path, folder: Path) -> list[Figure]:
    """The pictures that the recorded findings in `results` allow."""
    if not (results / "mini-gates.json").is_file():
        return []
    record = read_json(results / "mini-gates.json")
    return [
        Figure(draw_gates(record, folder / "gates.png"), "Gates of the miniature; a dot a seed, limits in red."),
        Figure(draw_curves(record["curves"], folder / "curves.png"), "Training loss by arm, mean of the seeds."),
        Figure(
            draw_arms(record["table"], folder / "arms.png"), "Loss of a word on unseen scenes by arm; a dot a seed."
        ),
    ]


def draw_gates(record: Mapping[str, Any], path: Path) -> Path:
    """Signal, reference and headroom beside their limits.

    Args:
        record: of the claim mini-gates: "signal", "right", "blind" and "headroom".
    """
    figure = _canvas(8, 2.6)
    signal, right, headroom = figure.subplots(1, 3)
    values = [record["signal"][name] for name in ("pooled", "single")]
    signal.bar(["mean over\npositions", "one position"], values, color=[OURS, OTHER], width=0.6)
    for place, limit in enumerate((POOLED, SINGLE)):
        signal.plot([place - 0.4, place + 0.4], [limit, limit], color=LIMIT)
    signal.set_ylim(0.4, 1.02)
    signal.set_title("how well the tag is seen", fontsize=9)
    right.axhspan(LOWEST, HIGHEST, color=LIMIT, alpha=0.12)
    for name, colour in (("right", OURS), ("blind", OTHER)):
        right.plot(range(len(record[name])), record[name], "o", color=colour)
    right.set_ylim(0, 100)
    right.set_title("words right: uniform, blind, %", fontsize=9)
    headroom.axhline(HEADROOM, color=LIMIT)
    headroom.axhline(0, color=OTHER, linewidth=0.8)
    headroom.plot(range(len(record["headroom"])), record["headroom"], "o", color=OURS)
    headroom.set_title("oracle over uniform, nats a word", fontsize=9)
    for axes in (right, headroom):
        axes.set_xlabel("seed", fontsize=8)
    for axes in (signal, right, headroom):
        axes.tick_params(labelsize=8)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)
    return path


def draw_curves(curves: Mapping[str, Sequence[float]], path: Path) -> Path:
    """The loss of every arm's training.

    Args:
        curves: arm -> mean losses of equally many steps each.
    """
    figure = _canvas(7, 3.4)
    axes = figure.subplots()
    for number, (arm, curve) in enumerate(curves.items()):
        points = [sum(part) / len(part) for at in range(0, len(curve), SMOOTH) if (part := curve[at : at + SMOOTH])]
        places = [min((at + 1) * SMOOTH, len(curve)) / len(curve) for at in range(len(points))]
        width = 2.4 if arm == "joint" else 1.2
        axes.plot(places, points, color=f"C{number}", linewidth=width, label=LABELS.get(arm, arm))
    axes.set_yscale("log")
    axes.set_xlabel("share of the training")
    axes.set_ylabel("nats a word")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=7)
    figure.savefig(path, dpi=150)
    return path


def draw_arms(table: Sequence[Mapping[str, Any]], path: Path) -> Path:
    """Mean and seeds of every arm.

    Args:
        table: rows with "name", "mean", "seeds" and, for the paper's own arm, "ours".
    """
    figure = _canvas(7, 0.36 * len(table) + 0.9)
    axes = figure.subplots()
    for place, one in enumerate(reversed(table)):
        colour = OURS if one.get("ours") else OTHER
        axes.plot(one["seeds"], [place] * len(one["seeds"]), "o", color=colour, alpha=0.5, markersize=4)
        axes.plot([one["mean"]], [place], "|", color=colour, markersize=16)
    axes.set_yticks(range(len(table)), [one["name"] for one in reversed(table)], fontsize=8)
    axes.set_xlabel("nats a word")
    axes.grid(axis="x", alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)
    return path


def _canvas(width: float, height: float) -> Any:
    # Without pyplot: no window, no global state.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as Canvas

    figure = Canvas(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure
