"""Tables of results for the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from gamma_mod.evaluation.demo import Demonstration
    from gamma_mod.evaluation.layers import Ranking
    from gamma_mod.evaluation.run import Evaluation


def eval_tables(evaluations: Sequence[Evaluation]) -> Group:
    """Scores, the realised skip (apart from the routing ratio), and what prompts cost."""
    table = Table(title="Evaluation", title_justify="left")
    for column in ("benchmark", "split", "questions", "score", "skip: prompts", "decoding", "all", "GFLOPs", "dense"):
        table.add_column(column)
    for one in evaluations:
        found = one.metrics
        scores, main = found["scores"], one.benchmark.main
        score = (
            "-" if main is None or main not in scores else f"{scores[main] * (100 if one.benchmark.percent else 1):.1f}"
        )
        skip = found["skip"]
        table.add_row(
            one.benchmark.title,
            str(found["split"]),
            f"{found['questions']}{' (limited)' if one.limited else ''}",
            score,
            *(percent(skip[name]) for name in ("prefill", "decode", "total")),
            f"{found['prompt_gflops']:.3g}",
            f"{found['prompt_gflops_dense']:.3g}",
        )
    layers = evaluations[0].metrics["skip"]["per_layer"]
    rows = [table]
    if layers:
        rows.append(skip_table(layers, f"Realised skip of prompts, layer by layer: {evaluations[0].benchmark.title}"))
    return Group(*rows)


def skip_table(per_layer: Mapping[str, float], title: str) -> Table:
    """Layer -> realised skip."""
    table = Table(title=title, title_justify="left")
    for layer in per_layer:
        table.add_column(layer)
    table.add_row(*(percent(value) for value in per_layer.values()))
    return table


def demo_table(shown: Demonstration) -> Group:
    """The question, both answers, and the skip of every layer."""
    metrics = shown.metrics
    facts = Table.grid(padding=(0, 2))
    drawn = "none: how this host's visual tokens lie in the image is not known"
    for label, value in (
        ("question", shown.question),
        ("answer, dense", metrics["answer_dense"]),
        ("answer, converted", metrics["answer"]),
        ("skipped of the prompt", percent(metrics["skip"])),
        ("picture", drawn if shown.picture is None else str(shown.picture)),
    ):
        if value is not None:
            facts.add_row(label, Text(str(value), style="bold", overflow="fold"))
    layers = {str(layer): shown.skips.ratio("prefill", layer=layer) or 0.0 for layer in shown.skips.layers}
    return Group(skip_table(layers, "Realised skip of the prompt, layer by layer"), facts)


def ranking_table(ranking: Ranking) -> Table:
    """ARank of every layer."""
    table = Table(title="ARank", title_justify="left")
    for column in ("layer", "ARank", ""):
        table.add_column(column)
    for layer, rank in enumerate(ranking.ranks):
        table.add_row(str(layer), f"{rank:.2f}", "convert" if layer in ranking.layers else "dense")
    return table


def bench_table(figures: Mapping[str, Any]) -> Group:
    """Seconds, and the speed-up beside what was predicted."""
    host = figures["host"]
    table = Table(
        title=f"{host['layers']} of {host['of']} layers, {host['tokens']} tokens, {host['dtype']}, {figures['device']}",
        title_justify="left",
    )
    for column in ("phase", "dense", "converted", "realised", "predicted", "realised / predicted"):
        table.add_column(column)
    for phase in ("prefill", "decode", "training"):
        found = figures.get(phase)
        if found is None:
            continue
        seconds = (f"{found[name]['seconds']:.4g} s" for name in ("dense", "converted"))
        table.add_row(
            phase,
            *seconds,
            f"{found['realised']:.2f} x",
            f"{found['predicted']:.2f} x",
            f"{found['realised_over_predicted']:.2f}",
        )
    return Group(
        table, f"Skipped: {figures['skip']['prefill']:.1%} of the prompt, {figures['skip']['decode']:.1%} of steps."
    )


def percent(value: float | None) -> str:
    """A share in percent, "-" where there is none."""
    return "-" if value is None else f"{100 * value:.1f} %"
