"""A comparison as tables for the terminal."""

from __future__ import annotations

from rich.console import Group
from rich.table import Table
from rich.text import Text

from fitprune.evaluation.compare import ALL_KINDS, UNPRUNED, Comparison, Row
from tenfold.metrics import Interval


def comparison_tables(found: Comparison) -> Group:
    """One table a budget, all questions, and one of the kinds of questions where there are several."""
    rows = found.summary()
    everything = [row for row in rows if row.kind == ALL_KINDS]
    unpruned = next(row for row in everything if row.method == UNPRUNED)
    parts: list[Table | Text] = []
    for ratio in dict.fromkeys(row.ratio for row in everything if row.method != UNPRUNED):
        here = [unpruned, *(row for row in everything if row.ratio == ratio and row.method != UNPRUNED)]
        title = f"{ratio:.0%} of the visual FLOPs saved, {unpruned.questions} questions"
        parts.append(_budget_table(title, here))
        kinds = [row for row in rows if row.kind != ALL_KINDS and row.ratio in (0.0, ratio)]
        if kinds and unpruned.accuracy is not None:
            parts.append(_kinds_table(kinds))
    parts += [Text(f"left out: {name}: {reason}") for name, reason in found.left_out.items()]
    note = (
        "Brackets: 95 % paired bootstrap intervals over the questions; of the change in accuracy, and of the agreement."
    )
    return Group(*parts, Text(note))


def _budget_table(title: str, rows: list[Row]) -> Table:
    table = Table(title=title, title_justify="left")
    table.add_column("method", no_wrap=True)
    table.add_column("knobs", overflow="fold")
    headings = ["asked", "visual", "whole prompt", "accuracy", "change", "same as unpruned"]
    for heading in headings:
        table.add_column(heading, justify="right")
    for row in rows:
        unpruned = row.method == UNPRUNED
        table.add_row(
            row.method,
            row.knobs,
            "" if unpruned else f"{row.ratio:.0%}",
            "" if unpruned else f"-{row.visual_reduction:.1%}",
            "" if unpruned else f"-{row.prompt_reduction:.1%}",
            "" if row.accuracy is None else f"{row.accuracy:.1%}",
            "" if unpruned or row.change is None else _interval(row.change, sign="+"),
            "" if unpruned else _interval(row.agreement),
        )
    return table


def _kinds_table(rows: list[Row]) -> Table:
    kinds = list(dict.fromkeys(row.kind for row in rows))
    counts = {row.kind: row.questions for row in rows}
    table = Table(title="Accuracy by kind of question", title_justify="left")
    table.add_column("method", no_wrap=True)
    for kind in kinds:
        table.add_column(f"{kind} ({counts[kind]})", justify="right")
    for method in dict.fromkeys(row.method for row in rows):
        found = {row.kind: row.accuracy for row in rows if row.method == method}
        cells = ("" if (share := found.get(kind)) is None else f"{share:.1%}" for kind in kinds)
        table.add_row(method, *cells)
    return table


def _interval(interval: Interval, sign: str = "") -> str:
    value, low, high = (100 * part for part in (interval.value, interval.low, interval.high))
    return f"{value:{sign}.1f} [{low:{sign}.1f}, {high:{sign}.1f}]"
