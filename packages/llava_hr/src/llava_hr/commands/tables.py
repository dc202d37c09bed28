"""Evaluations as tables for the terminal, with what the paper gives beside ours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Group
from rich.table import Table

from llava_hr.evaluation.published import published

if TYPE_CHECKING:
    from llava_hr.evaluation.run import Evaluation


def eval_tables(evaluations: Sequence[Evaluation]) -> Group:
    """One row for each benchmark: the score that the paper reports, its value beside ours; for a single benchmark, all
    its scores too."""
    first = evaluations[0]
    table = Table(title=f"{first.model}, {first.pixels} pixels", title_justify="left")
    for heading in ("benchmark", "split", "questions", "score"):
        table.add_column(heading)
    for heading in ("ours", "paper", "visual tokens", "new tokens"):
        table.add_column(heading, justify="right")
    for one in evaluations:
        metrics = one.metrics
        asked = f"{metrics['questions']}, spread" if one.limited else str(metrics["questions"])
        tokens = f"{metrics['visual_tokens']:.0f}", f"{metrics['new_tokens']:.1f}"
        table.add_row(one.benchmark.title, metrics["split"], asked, *_scores(one), *tokens)
    return Group(table, _all_scores(first)) if len(evaluations) == 1 and first.metrics["scores"] else Group(table)


def _scores(one: Evaluation) -> tuple[str, str, str]:
    bench = one.benchmark
    comparable = one.metrics["split"] == bench.split
    theirs = published(one.paper_model, one.pixels, bench.name) if comparable else []
    paper = "\n".join(f"{number.value:g} {number.unit} ({number.source})" for number in theirs) or "–"
    if bench.main is None or bench.main not in one.metrics["scores"]:  # a server or a judge reads the submission
        return "by its judge", "–", paper
    value = one.metrics["scores"][bench.main]
    return bench.main, f"{100 * value:.2f} %" if bench.percent else f"{value:.1f}", paper


def _all_scores(one: Evaluation) -> Table:
    table = Table(title=f"{one.benchmark.title}, {one.metrics['split']}", title_justify="left")
    table.add_column("metric")
    table.add_column("value", justify="right")
    for name, value in one.metrics["scores"].items():
        table.add_row(name, "–" if value is None else f"{value:.6g}")
    return table


TITLES = {
    "vision": "Vision: pixels to visual tokens",
    "prefill": "Prefill: the prompt to its first token",
    "decode": "Decode, per token",
    "answer": "Answer of {new_tokens} tokens: all three",
    "generate": "The same by generate()",
}


def bench_tables(figures: Mapping[str, Any]) -> Group:
    """What was measured, and a table for each part."""
    dimensions = figures["dimensions"]
    size = (
        "LLaVA-HR-7B and LLaVA-1.5-7B, whole"
        if dimensions["full"]
        else (
            f"Not the whole models: {dimensions['decoder_layers']} decoder layers of width {dimensions['hidden']}, "
            f"{dimensions['vit_layers']} ViT layers, ConvNeXt of {'/'.join(map(str, dimensions['conv_depths']))} blocks"
        )
    )
    tokens = ", ".join(f"{name}: {model['visual_tokens']:,}" for name, model in figures["models"].items())
    prompt = f"one image and {dimensions['text_tokens']} text tokens"
    facts = (
        f"{size}; {dimensions['dtype']}, random weights, batch 1, {prompt}.\n"
        f"Visual tokens: {tokens}.\n"
        "Speed-ups are over LLaVA-1.5 at equal resolution. Predicted ones are for exactly what runs: by FLOPs, for "
        "decoding by the bytes that are read."
    )
    tables = [_table(part, title, figures, dimensions) for part, title in TITLES.items() if part in figures]
    return Group(facts, *tables, *_lines(figures))


def _table(part: str, title: str, figures: Mapping[str, Any], dimensions: Mapping[str, Any]) -> Table:
    rows = figures[part]
    table = Table(title=title.format(**dimensions), title_justify="left")
    table.add_column("model")
    decoding = part == "decode"
    headings = ["median", "fastest – slowest", "GB read" if decoding else "TFLOPs"]
    headings += ["predicted", "realised", "realised / predicted"]
    speed = part == "answer"
    peak = any(row.get("peak_bytes") for row in rows.values())
    for heading in headings + (["tokens/s"] if speed else []) + (["peak memory"] if peak else []):
        table.add_column(heading, justify="right")
    for name, row in rows.items():
        cost = row["bytes"] / 1e9 if decoding else row["flops"] / 1e12
        cells = [_time(row["seconds"]), f"{_time(row['fastest'])} – {_time(row['slowest'])}", f"{cost:.4g}"]
        cells += [f"{row[key]:.2f}" for key in ("predicted", "realised", "realised_over_predicted")]
        if speed:
            cells.append(f"{row['tokens_per_second']:.1f}")
        if peak:
            cells.append(f"{row['peak_bytes'] / 2**30:.2f} GiB")
        table.add_row(name, *cells)
    return table


def _lines(figures: Mapping[str, Any]) -> list[str]:
    reuse = figures["further_question"]
    lines = [
        f"A further question on the same image, its visual tokens kept: {_time(reuse['kept']['seconds'])} to the first "
        f"token instead of {_time(reuse['encoded_again']['seconds'])}: {reuse['realised']:.2f} times faster (predicted "
        f"{reuse['predicted']:.2f}); the whole answer {reuse['answer']:.2f} times."
    ]
    for name, way in figures.get("towers", {}).items():
        if name != "plain":
            lines.append(f"Vision tower, {name}: {_time(way['seconds'])}, saves {way['saved']:.1%}.")
    return lines


def _time(seconds: float) -> str:
    return f"{seconds:.3f} s" if seconds >= 1 else f"{1000 * seconds:.4g} ms"
