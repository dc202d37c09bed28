"""Evaluations as tables for the terminal, with what papers give beside ours."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Group
from rich.markup import escape
from rich.table import Table

from fitprune.evaluation.published import published
from fitprune.evaluation.questions import paper_split

if TYPE_CHECKING:
    from fitprune.evaluation.run import Evaluation


def eval_tables(evaluations: Sequence[Evaluation]) -> Group:
    """One row for each benchmark: the figure that papers report, theirs beside ours, and what the prompts cost; for a
    single benchmark, all its scores too."""
    first = evaluations[0]
    pruned = "unpruned" if first.recipe is None else f"recipe for {first.recipe.summary()}"
    table = Table(title=escape(f"{first.model}, {pruned}"), title_justify="left")
    for heading in ("benchmark", "split", "questions", "score"):
        table.add_column(heading)
    rows = [(one, *_scores(one)) for one in evaluations]
    in_papers = any(papers for *_, papers in rows)
    for heading in ("ours", *(["papers"] if in_papers else []), "visual GFLOPs", "whole prompt, GFLOPs"):
        table.add_column(heading, justify="right")
    for one, name, ours, papers in rows:
        metrics = one.metrics
        asked = f"first {metrics['questions']}" if one.limited else str(metrics["questions"])
        theirs = [papers] if in_papers else []
        table.add_row(one.benchmark.title, metrics["split"], asked, name, ours, *theirs, *_costs(metrics))
    return Group(table, _all_scores(first)) if len(evaluations) == 1 and first.metrics["scores"] else Group(table)


def _scores(one: Evaluation) -> tuple[str, str, str]:
    main = one.benchmark.main
    comparable = one.metrics["split"] == paper_split(one.benchmark)
    theirs = published(one.model, one.recipe, one.benchmark.name) if comparable else []
    papers = "\n".join(f"{number.value:g} {number.unit} ({number.source})" for number in theirs)
    if main is None or main not in one.metrics["scores"]:  # a server or a judge reads the submission
        return "by its judge", "–", escape(papers)
    value = one.metrics["scores"][main]
    return main, f"{100 * value:.2f} %" if one.benchmark.percent else f"{value:.1f}", escape(papers)


def _costs(metrics: Any) -> tuple[str, str]:
    def change(name: str) -> str:
        saved = metrics[f"{name}_reduction"]
        if saved is None:
            return ""
        return f"{metrics[f'{name}_unpruned_gflops']:.4g} → {metrics[f'{name}_gflops']:.4g} (-{saved:.1%})"

    return change("visual"), change("prompt")


def _all_scores(one: Evaluation) -> Table:
    table = Table(title=escape(f"{one.benchmark.title}, {one.metrics['split']}"), title_justify="left")
    table.add_column("metric")
    table.add_column("value", justify="right")
    for name, value in one.metrics["scores"].items():
        table.add_row(escape(name), "–" if value is None else f"{value:.6g}")
    return table
