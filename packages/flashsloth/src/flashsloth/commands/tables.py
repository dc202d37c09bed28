"""Evaluations, benches and plans as tables for the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Group
from rich.table import Table

from flashsloth.evaluation.published import SOURCE, published

if TYPE_CHECKING:
    from flashsloth.evaluation.run import Evaluation
    from flashsloth.training.plan import DryRun


def eval_tables(evaluations: Sequence[Evaluation]) -> Group:
    """One row for each benchmark, the paper's value beside ours; for a single benchmark, all its scores too."""
    table = Table(title=evaluations[0].model, title_justify="left")
    for heading in ("benchmark", "split", "questions", "score"):
        table.add_column(heading)
    for heading in ("ours", "paper", "visual tokens", "new tokens"):
        table.add_column(heading, justify="right")
    for one in evaluations:
        metrics, main = one.metrics, one.benchmark.main
        value = metrics["scores"].get(main) if main else None
        theirs = published(one.paper_model, one.benchmark.name) if metrics["split"] == one.benchmark.split else None
        shown = "by its judge" if value is None else f"{100 * value:.2f} %"
        if value is not None and not one.benchmark.bench.percent:
            shown = f"{value:.1f}"
        table.add_row(
            one.benchmark.title,
            str(metrics["split"]),
            f"{metrics['questions']}, spread" if one.limited else str(metrics["questions"]),
            main or "–",
            shown,
            "–" if theirs is None else f"{theirs:g} ({SOURCE})".replace("[", "\\["),
            f"{metrics['visual_tokens']:.0f}",
            f"{metrics['new_tokens']:.1f}",
        )
    if len(evaluations) > 1 or not evaluations[0].metrics["scores"]:
        return Group(table)
    every = Table()
    every.add_column("metric")
    every.add_column("value", justify="right")
    for name, value in evaluations[0].metrics["scores"].items():
        every.add_row(name, f"{value:.6g}")
    return Group(table, every)


def bench_tables(figures: Mapping[str, Any]) -> Group:
    """What was measured, and a table for each part."""
    from flashsloth.evidence.speed import PARTS, summary

    dims = figures["dimensions"]
    size = "whole" if dims["full"] else f"{dims['layers']} decoder and {dims['vision_layers']} vision layers"
    facts = (
        f"{size}, full width, {dims['dtype']} on {dims['device']}, random weights, batch 1, one image, a question of "
        f"{dims['question']} tokens.\nTime to the first token: {dims['ttft']}. Ratios are over uncompressed."
    )
    tables = []
    for part in PARTS:
        table = Table(title=part, title_justify="left")
        for heading in ("arm", "median", "fastest – slowest", "predicted", "realised", "realised / predicted"):
            table.add_column(heading, justify="left" if heading == "arm" else "right")
        for name, row in figures[part].items():
            ratios = [f"{row[key]:.2f}" for key in ("predicted", "realised", "realised_over_predicted")]
            table.add_row(name, _time(row["seconds"]), f"{_time(row['fastest'])} – {_time(row['slowest'])}", *ratios)
        tables.append(table)
    return Group(facts, *tables, _memory_table(figures["ttft"]), summary(dict(figures)))


def _memory_table(first: Mapping[str, Any]) -> Table:
    """Of the prefill of each arm."""
    table = Table(title="memory of the prefill", title_justify="left")
    for heading in ("arm", "tokens", "KV cache", "peak (CUDA)"):
        table.add_column(heading, justify="left" if heading == "arm" else "right")
    for name, row in first.items():
        peak = "–" if row["peak_bytes"] is None else f"{row['peak_bytes'] / 2**30:.2f} GiB"
        table.add_row(name, f"{row['tokens']:,}", f"{row['cache_bytes'] / 2**20:.1f} MiB", peak)
    return table


def plan_tables(dry: DryRun) -> Group:
    """What `train --dry-run` prints."""
    models = Table(title="Model", title_justify="left")
    for heading in ("stage", "parameters", "trainable", "visual tokens", "longest sequence"):
        models.add_column(heading)
    stages = Table(title="Stages", title_justify="left")
    for heading in ("stage", "samples", "batch", "steps", "warm-up", "learning rate", "sampler", "DeepSpeed"):
        stages.add_column(heading)
    for count in dry.stages:
        plan, settings = count.plan, count.plan.settings
        models.add_row(
            plan.name, f"{count.parameters:,}", f"{count.trainable:,}", str(count.visual_tokens), f"{count.positions:,}"
        )
        batch = f"{settings.per_device} x {plan.accumulation} x {plan.gpus} = {settings.batch}"
        stages.add_row(
            plan.name,
            f"{plan.samples:,}",
            batch,
            f"{plan.steps:,}",
            f"{plan.warmup:,}",
            f"0 → {settings.learning_rate:g} → 0",
            settings.sampler,
            settings.deepspeed or "no",
        )
    counted = "counted in the data" if dry.counted else "expected by the config"
    return Group(models, stages, f"Samples are {counted}. Batch: a GPU's, accumulated, GPUs.")


def _time(seconds: float) -> str:
    return f"{seconds:.3f} s" if seconds >= 1 else f"{1000 * seconds:.4g} ms"
