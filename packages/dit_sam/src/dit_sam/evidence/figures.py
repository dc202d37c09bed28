"""Pictures for the report: what the shipped model finds, and the recorded comparison of arms."""

from __future__ import annotations

import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

from dit_sam.evaluation.demo import run_demo
from dit_sam.evaluation.settings import DemoSettings
from tenfold import UserError
from tenfold.cli import find_package_file
from tenfold.ledger import Figure
from tenfold.runs import read_json

COMPARISON = "mini-layer-wise"


def draw(folder: Path) -> list[Figure]:
    """The figures that can be drawn here: without a shipped model or a record there are fewer."""
    drawn = []
    with suppress(UserError), tempfile.TemporaryDirectory(prefix="dit-sam-figures-") as place:
        demo = run_demo(DemoSettings(), Path(place, "demo"))
        (folder / "demo.png").write_bytes(demo.picture.read_bytes())
        caption = f"The mini model on scenes that no training saw, a colour a sentence; mIoU {demo.scores['mIoU']:.0f}."
        drawn.append(Figure(folder / "demo.png", caption))
    recorded = find_package_file("dit_sam", f"results/{COMPARISON}.json")
    if recorded is not None:
        table = read_json(recorded)["table"]
        caption = "P@0.5 of the arms of the miniature, encoder frozen; a dot a seed."
        drawn.append(Figure(draw_arms(table, folder / "arms.png"), caption))
    return drawn


def draw_arms(table: list[dict[str, Any]], path: Path) -> Path:
    """Bars of the arms' means, by kind of sentence, with every seed's value. Needs the extra `report`."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as Drawing

    drawing = Drawing(figsize=(6.4, 3.2), layout="constrained")
    FigureCanvasAgg(drawing)
    axes = drawing.subplots()
    parts = ("all", "look", "place")
    for i, row in enumerate(table):
        for k, part in enumerate(parts):
            values, x = row[f"{part} P@0.5"], i + 0.27 * (k - 1)
            label = part if not i else None
            axes.bar(x, sum(values) / len(values), 0.25, color=("#444444", "#e69f00", "#56b4e9")[k], label=label)
            axes.plot([x] * len(values), values, ".", color="black", markersize=4)
    axes.set_xticks(range(len(table)), [row["arm"] for row in table], fontsize=8)
    axes.set_ylabel("P@0.5, per cent")
    axes.legend(frameon=False, fontsize=8)
    drawing.savefig(path, dpi=120)
    return path
