"""Measurements and reports as tables for the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from dtnet.evidence.speed import AGAIN, EARLY, KEPT


def bench_tables(metrics: Mapping[str, Any]) -> Group:
    """What `benchmark.run_bench` measured."""
    encoder, decoder = metrics["layers"]
    title = f"Captions per second: d {metrics['d_model']}, {encoder} + {decoder} layers, on {metrics['device']}"
    table = Table(title=title, title_justify="left")
    last = ("speed-up", "predicted", "realised / predicted", "at most")
    for column in ("images at a time", KEPT, EARLY, AGAIN, *last):
        table.add_column(column, justify="right")
    for row in metrics["batches"]:
        rates = (f"{row['captions_per_second'][name]:.2f}" for name in (KEPT, EARLY, AGAIN))
        ratios = (
            f"{row['realised']:.2f} x",
            f"{row['predicted']:.2f} x",
            f"{row['realised_over_predicted']:.2f}",
            f"{row['most_that_can_be']:.2f} x",
        )
        table.add_row(str(row["batch"]), *rates, *ratios)
    counted = metrics["millions_of_macs"]
    lines = [f"Predicted by multiply-accumulates: {counted[KEPT]:,.0f} M a caption, {counted[AGAIN]:,.0f} M {AGAIN}."]
    lines.append(f"At most: {AGAIN} beside the products alone that no search of all steps can leave out.")
    if all(row["same_tokens"] for row in metrics["batches"]):
        lines.append("All three ways gave the same captions.")
    else:
        lines.append("Some captions differ: bfloat16 rounds the three ways differently.")
    return Group(table, *map(Text, lines))


def routing_tables(report: Mapping[str, Any]) -> Group:
    """What `analyze.report` found."""
    table = Table(title=f"Path weights over {report['images']:,} images", title_justify="left")
    for column in ("layer", "cell", "mean", "spread", "min", "max", "passed"):
        table.add_column(column, justify="left" if column == "cell" else "right")
    for row in report["cells"]:
        numbers = (f"{row[name]:.4f}" for name in ("mean", "spread", "min", "max"))
        table.add_row(str(row["layer"]), row["cell"].upper(), *numbers, f"{row['passed']:.0%}")
    counts = report["passed_cells"]
    lines = [f"An image passes {counts['mean']:.1f} of {counts['of']} cells ({counts['min']} to {counts['max']})."]
    for router in report.get("routers", ()):
        if not router["firing"]:
            lines.append(
                f"The {router['cells']} router of layer {router['layer']} is dead: none of its {router['units']} units "
                "fires for any image, so all images get the same weights."
            )
    if "kinds" in report:
        lines.append(f"{report['kinds']['share']:.0%} of the weights' variance lies between kinds of scenes.")
    if "swap" in report:
        swap = report["swap"]
        lines.append(
            f"Loss of a word: {swap['own']:.4f} by an image's own weights, {swap['another'] - swap['own']:+.4f} by "
            f"another image's, {swap['mean'] - swap['own']:+.4f} by the mean ones."
        )
        lines.append(f"Another image's weights move the encoder's output by {swap['memory_another']:.2%}.")
    return Group(table, *map(Text, lines))
