"""The report's picture: the variants of the miniature, as recorded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tenfold.cli import find_package_file
from tenfold.ledger import Figure
from tenfold.runs import read_json


def report_figures(folder: Path) -> list[Figure]:
    """Bars of every variant's right answers about crowded and sparse scenes; none before a record is there."""
    results = find_package_file("flashsloth", "results")
    path = None if results is None else results / "mini-gate.json"
    if path is None or not path.is_file():
        return []
    from matplotlib.figure import Figure as Canvas

    table: list[dict[str, Any]] = read_json(path)["table"]
    canvas = Canvas(figsize=(7, 3), layout="constrained")
    panel: Any = canvas.subplots()
    for number, one in enumerate(table):
        panel.bar(number - 0.2, one["mean"], 0.4, yerr=one["spread"], color="#3b6ea5", label="crowded" * (not number))
        panel.bar(number + 0.2, one["sparse"], 0.4, color="#c0c8d2", label="sparse" * (not number))
    panel.set_xticks(range(len(table)), [f"{one['name']}\n{one['tokens']} tokens" for one in table], fontsize=8)
    panel.set_ylabel("shapes right, %")
    panel.axhline(100 / 6, color="black", linewidth=0.8, linestyle=":")
    panel.legend(frameon=False, fontsize=8)
    target = folder / "flashsloth-miniature.png"
    canvas.savefig(target, dpi=120, metadata={"Software": None})
    return [Figure(target, "Shapes told right by the miniature's variants; the dotted line is chance.")]
