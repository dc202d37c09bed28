"""Tables for the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rich.table import Table

if TYPE_CHECKING:
    from eas.evaluation.demo import Demonstration
    from eas.result import SearchResult


def scores_table(title: str, metrics: Mapping[str, Any]) -> Table:
    """Scores of an evaluation, with what was skipped."""
    skip = metrics["skip"]
    table = Table(title=f"{title}, {metrics['split']}, {metrics['questions']} questions", title_justify="left")
    table.add_column("score")
    table.add_column("", justify="right")
    for name, value in metrics["scores"].items():
        shown = "–" if value is None else f"{value:.2f}" if isinstance(value, float) else str(value)
        table.add_row(name, shown)
    table.add_row("attentions skipped", f"{len(skip)}: {', '.join(map(str, skip))}" if skip else "none")
    if "macs_saved" in metrics:
        table.add_row("MACs of a prompt saved", f"{metrics['macs_saved']:.1%}")
    if "cache_share" in metrics:
        table.add_row("KV cache left", f"{metrics['cache_share']:.1%}")
    if "leaked_pictures" in metrics:
        table.add_row("attentions really gone", f"{metrics['removed']} of 24")
        table.add_row("pictures in the training set", f"{metrics['leaked_pictures']} ({metrics['training_set']})")
    return table


def demo_table(shown: Demonstration) -> Table:
    """A demonstration's questions and answers."""
    table = Table(title=f"Skips {list(shown.skip)} of {shown.layers}", title_justify="left")
    for column in ("question", "right", "host", "EAS"):
        table.add_column(column)
    for one in shown.rows[:8]:
        table.add_row(one.question.splitlines()[0], one.answer, one.host, one.eas)
    table.add_row("right of all", f"{len(shown.rows)}", f"{shown.host:.0f} %", f"{shown.eas:.0f} %")
    return table


def sensitivity_table(result: SearchResult) -> Table:
    """Losses of one attention at a time."""
    table = Table(title=f"Skip list: {list(result.skip)}", title_justify="left")
    for column in ("layer", "loss without its attention"):
        table.add_column(column, justify="right")
    for layer, preference in enumerate(result.preferences):
        table.add_row(str(layer), f"{-preference:.4f}")
    return table


def bench_table(record: Mapping[str, Any]) -> Table:
    """Seconds and ratios of a bench."""
    table = Table(title=record["title"], title_justify="left")
    for column in ("subject", "prefill s", "x", "predicted", "decode ms/token", "x", "predicted"):
        table.add_column(column, justify="right")
    for name, row in record["subjects"].items():
        cells = []
        for part, factor in (("prefill", 1), ("decode", 1000)):
            ratio = row[part]["speedup"]
            cells += [f"{row[part]['seconds'] * factor:.3f}", f"{ratio['realised']:.3f}", f"{ratio['predicted']:.3f}"]
        table.add_row(name, *cells)
    return table
