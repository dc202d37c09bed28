"""What the verbs show on the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from dyvte.evaluation.published import published

if TYPE_CHECKING:
    from dyvte.evaluation.demo import Demonstration
    from dyvte.evaluation.run import Evaluation
    from dyvte.evaluation.study import Study


def eval_table(evaluations: Sequence[Evaluation]) -> Table:
    """Scores, exits and savings, a benchmark a row; the paper's number where it has one."""
    table = Table("benchmark", "score", "paper", "questions", "mean exit", "GFLOPs", "dense", "saved")
    for one in evaluations:
        metrics, main = one.metrics, one.benchmark.main
        score = metrics["scores"].get(main) if main else None
        scale = 100 if one.benchmark.percent else 1
        said = None if one.limited else published(one.model, one.benchmark.name)
        exits = metrics["mean_exit"]
        table.add_row(
            one.benchmark.title,
            "submission" if score is None else f"{scale * score:.1f}",
            "" if said is None else f"{said:g}",
            str(metrics["questions"]),
            "" if exits is None else f"{exits:.2f}",
            f"{metrics['exit_gflops']:.4g}",
            f"{metrics['dense_gflops']:.4g}",
            f"{metrics['saved']:.1%}",
        )
    return table


def demo_table(shown: Demonstration) -> Group:
    """The answers, and what each gate said."""
    facts = Table.grid(padding=(0, 2))
    left = "never" if shown.exit_layer is None else f"after layer {shown.exit_layer} of {shown.metrics['layers']}"
    for label, value in (
        ("question", shown.question),
        ("answer, dense", shown.dense),
        ("answer, with exit", shown.exited),
        ("right answer", shown.gold),
        ("visual tokens left", left),
        ("prefill FLOPs saved", f"{shown.saved:.1%}"),
    ):
        if value is not None:
            facts.add_row(label, Text(value, style="bold", overflow="fold"))
    gates = Table("layer", "exit - keep", title="What the gates said")
    for layer, margin in enumerate(shown.margins):
        gates.add_row(str(layer), f"{margin:+.2f}")
    return Group(facts, gates) if shown.margins else Group(facts)


def study_table(found: Study) -> Table:
    """The study layer by layer."""
    stages = found.stages
    title = f"{found.samples} samples; early fusion until layer {stages.fusion}, reasoning from {stages.reasoning}"
    names = ("layer", "W_c", "W_v", "W_t", "E cross", "E text", "right if the image leaves after it", "exit labels")
    table = Table(*names, title=title)
    table.add_row("none", "", "", "", "", "", f"{found.answers[0]:.1%}", "")
    for layer, label in enumerate(found.exits):
        means = [found.measures[name][layer][0] for name in ("w_cross", "w_visual", "w_text")]
        means += [found.measures[name][layer][0] for name in ("entropy_cross", "entropy_text")]
        cells = [f"{value:.2f}" for value in means]
        table.add_row(str(layer), *cells, f"{found.answers[layer + 1]:.1%}", f"{label:.0%}")
    return table


def bench_table(found: dict[str, Any]) -> Table:
    """Prefill and decoding, dense and with an exit."""
    title = f"{found['layers']} layers, exit after {found['exit_layer']}, {found['tokens']} tokens, {found['device']}"
    table = Table("", "dense s", "exit s", "predicted", "realised", "realised / predicted", title=title)
    for part in ("prefill", "decode"):
        row = found[part]
        table.add_row(
            part,
            f"{row['dense']['seconds']:.4g}",
            f"{row['exit']['seconds']:.4g}",
            f"{row['predicted']:.3f} x",
            f"{row['realised']:.3f} x",
            f"{row['realised_over_predicted']:.3f}",
        )
    return table
