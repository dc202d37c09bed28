"""The report's pictures: an edit's masks over its steps, and what is recorded of gates, curves and masks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

from inst_diff_edit.evaluation.picture import draw_steps
from tenfold.cli import find_package_file
from tenfold.ledger import Figure
from tenfold.runs import atomic_write_bytes, read_json

OURS, QUIET, PASSED, MISSED = "#0b5c6b", "#9aa5ab", "#2e7d32", "#c62828"
# Steps that a point of a recorded curve is the mean of.
CURVE = 100


def draw(folder: Path) -> list[Figure]:
    """The figures that can be drawn here: without a record there is one."""
    drawn = [Figure(draw_steps(folder / "steps.png"), "The mini model edits a picture: masks over the steps.")]
    gate, masks = (find_package_file("inst_diff_edit", f"results/{name}.json") for name in ("mini-gate", "mini-iou"))
    if gate is not None:
        found = read_json(gate)
        caption = "Validity gates of the miniature: a dot a training seed, the bound as a line."
        drawn.append(Figure(draw_gates(found["gates"], folder / "gates.png"), caption))
        if found.get("curves"):
            caption = "The miniature's trainings: loss, and attention to words and to end and padding; a line a seed."
            drawn.append(Figure(draw_curves(found["curves"], folder / "curves.png"), caption))
    if masks is not None:
        caption = "Mask IoU with the true masks, a dot a training seed; UNet forwards for one picture's mask."
        drawn.append(Figure(draw_masks(read_json(masks)["table"], folder / "iou.png"), caption))
    return drawn


def draw_gates(gates: Mapping[str, Mapping[str, Any]], path: Path) -> Path:
    """Every gate's values over the seeds between 0 and 1, and its bound.

    Args:
        gates: name -> {"values", "passed", "bounds": (least, most)}.
    """
    canvas, axis = _canvas(8, 0.5 * len(gates) + 0.9)
    names = list(gates)[::-1]
    for place, name in enumerate(names):
        gate = gates[name]
        colour = PASSED if gate["passed"] else MISSED
        least, most = gate["bounds"]
        bound = least if least is not None else most
        axis.plot([bound, bound], [place - 0.35, place + 0.35], color="black", linewidth=1.5)
        axis.annotate("≥" if least is not None else "<", (bound, place + 0.36), fontsize=8, ha="center")
        axis.plot(gate["values"], [place] * len(gate["values"]), "o", color=colour, alpha=0.7)
    axis.set_yticks(range(len(names)), names, fontsize=8)
    axis.set_xlim(min(0.0, *(value for gate in gates.values() for value in gate["values"])) - 0.02, 1.02)
    axis.grid(axis="x", alpha=0.3)
    return _saved(canvas, path)


def draw_curves(curves: Mapping[str, Mapping[str, Sequence[float]]], path: Path) -> Path:
    """Loss and shares of attention over the training, a line a seed.

    Args:
        curves: seed -> {"loss", "attention_to_words", "attention_to_end"}, means over `CURVE` steps.
    """
    from matplotlib.figure import Figure as Drawing

    canvas = Drawing(figsize=(9, 2.8), layout="constrained", dpi=150)
    panels = canvas.subplots(1, 3)
    for axis, name in zip(panels, ("loss", "attention_to_words", "attention_to_end"), strict=True):
        for seed, curve in curves.items():
            steps = [CURVE * (place + 1) for place in range(len(curve[name]))]
            axis.plot(steps, curve[name], linewidth=1, label=f"seed {seed}")
        axis.set_title(name.replace("_", " "), fontsize=9, loc="left")
        axis.set_xlabel("step", fontsize=8)
        axis.spines[["top", "right"]].set_visible(False)
    panels[0].set_yscale("log")
    panels[2].legend(frameon=False, fontsize=8)
    return _saved(canvas, path)


def draw_masks(table: Sequence[Mapping[str, Any]], path: Path) -> Path:
    """Bars of mask IoU by rule, the best on top, with every training seed's value.

    Args:
        table: rows with "name", "mean", "seeds" and "forwards".
    """
    rows = sorted(table, key=lambda one: one["mean"])
    canvas, axis = _canvas(8, 0.34 * len(rows) + 1)
    names = [f"{one['name']} ({one['forwards']})" for one in rows]
    colours = [OURS if one["name"].startswith("method") else QUIET for one in rows]
    axis.barh(names, [one["mean"] for one in rows], color=colours)
    for place, one in enumerate(rows):
        axis.plot(one["seeds"], [place] * len(one["seeds"]), "k.", markersize=4)
    axis.set_xlabel("mask IoU; dots: training seeds; in brackets: UNet forwards for one picture's mask")
    axis.spines[["top", "right"]].set_visible(False)
    return _saved(canvas, path)


def _canvas(width: float, height: float) -> tuple[Any, Any]:
    from matplotlib.figure import Figure as Drawing

    canvas = Drawing(figsize=(width, height), layout="constrained", dpi=150)
    return canvas, canvas.subplots()


def _saved(canvas: Any, path: Path) -> Path:
    drawn = BytesIO()
    canvas.savefig(drawn, format="png", metadata={"Software": None})
    atomic_write_bytes(path, drawn.getvalue())
    return path
