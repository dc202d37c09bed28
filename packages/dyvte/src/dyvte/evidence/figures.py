"""The report's pictures: what an exit saves at full size, and what the miniature recorded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure as Canvas

from dyvte.costs import LLAMA_7B, kv_bytes, prefill_flops
from tenfold import UserError
from tenfold.ledger import Figure
from tenfold.runs import read_json

TOKENS, VISUAL = 640, 576


def all_figures(folder: Path, results: Path | None) -> list[Figure]:
    """Draw what there is; recorded results are left out where there are none.

    Raises:
        UserError: there is no such folder.
    """
    if not folder.is_dir():
        raise UserError("no such folder", folder)
    drawn = [savings(folder / "savings.png")]
    record = None if results is None else results / "mini-dynamic.json"
    if record is not None and record.is_file():
        drawn.insert(0, arms(read_json(record), folder / "miniature.png"))
    return drawn


def savings(path: Path) -> Figure:
    """Prefill FLOPs and KV cache left over the exit layer, LLaVA-1.5-7B."""
    canvas = Canvas(figsize=(5.5, 3), layout="constrained")
    axes = canvas.subplots()
    layers = range(-1, LLAMA_7B.layers)
    flops = prefill_flops(TOKENS, VISUAL, None, LLAMA_7B)
    cache = kv_bytes(TOKENS, VISUAL, None, LLAMA_7B)
    axes.plot(layers, [prefill_flops(TOKENS, VISUAL, e, LLAMA_7B) / flops for e in layers], label="prefill FLOPs")
    axes.plot(layers, [kv_bytes(TOKENS, VISUAL, e, LLAMA_7B) / cache for e in layers], "--", label="KV cache")
    axes.set(xlabel="exit layer, counted from 0", ylabel="share of dense", ylim=(0, 1.02))
    axes.legend()
    canvas.savefig(path, dpi=120, metadata={"Software": None})
    return Figure(path, "What an exit leaves of LLaVA-1.5-7B's decoder, 640 tokens of which 576 are visual.")


def arms(record: dict[str, Any], path: Path) -> Figure:
    """Accuracy over the mean exit layer: dynamic exits and their controls."""
    canvas = Canvas(figsize=(5.5, 3.4), layout="constrained")
    axes = canvas.subplots()
    curve = record["curve"]
    axes.plot([row["exit"] for row in curve], [row["accuracy"] for row in curve], marker="o", label="fixed exit")
    for name, mark in (("dynamic", "s"), ("shuffled", "x"), ("within_kind", "+"), ("fixed_mixture", "_")):
        rows = record["budgets"]
        axes.plot([r["mean_exit"] for r in rows], [r[name] for r in rows], mark, label=name.replace("_", " "))
    axes.set(xlabel="mean exit layer (-1: before the first)", ylabel="accuracy, %")
    axes.legend(fontsize=7)
    canvas.savefig(path, dpi=120, metadata={"Software": None})
    return Figure(path, "The miniature: dynamic exits beside their controls at the same mean exit layer.")
