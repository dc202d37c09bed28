"""Evaluations as tables for the terminal, with what the paper gives beside ours."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Group
from rich.markup import escape
from rich.table import Table

from llava_hr.evaluation.published import published

if TYPE_CHECKING:
    from llava_hr.evaluation.run import Evaluation


def eval_tables(evaluations: Sequence[Evaluation]) -> Group:
    """One row for each benchmark: the score that the paper reports, its value beside ours; for a single benchmark, all
    its scores too."""
    first = evaluations[0]
    table = Table(title=escape(f"{first.model}, {first.pixels} pixels"), title_justify="left")
    for heading in ("benchmark", "split", "questions", "score"):
        table.add_column(heading)
    for heading in ("ours", "paper", "visual tokens", "new tokens"):
        table.add_column(heading, justify="right")
    for one in evaluations:
        metrics = one.metrics
        asked = f"first {metrics['questions']}" if one.limited else str(metrics["questions"])
        tokens = f"{metrics['visual_tokens']:.0f}", f"{metrics['new_tokens']:.1f}"
        table.add_row(one.benchmark.title, metrics["split"], asked, *_scores(one), *tokens)
    return Group(table, _all_scores(first)) if len(evaluations) == 1 and first.metrics["scores"] else Group(table)


def _scores(one: Evaluation) -> tuple[str, str, str]:
    bench = one.benchmark
    comparable = one.metrics["split"] == bench.split
    theirs = published(one.paper_model, one.pixels, bench.name) if comparable else []
    paper = "\n".join(f"{number.value:g} {number.unit} ({number.source})" for number in theirs) or "–"
    if bench.main is None or bench.main not in one.metrics["scores"]:  # a server or a judge reads the submission
        return "by its judge", "–", escape(paper)
    value = one.metrics["scores"][bench.main]
    return bench.main, f"{100 * value:.2f} %" if bench.percent else f"{value:.1f}", escape(paper)


def _all_scores(one: Evaluation) -> Table:
    table = Table(title=escape(f"{one.benchmark.title}, {one.metrics['split']}"), title_justify="left")
    table.add_column("metric")
    table.add_column("value", justify="right")
    for name, value in one.metrics["scores"].items():
        table.add_row(escape(name), "–" if value is None else f"{value:.6g}")
    return table
