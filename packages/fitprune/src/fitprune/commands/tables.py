"""Recipes and measurements as tables for the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Group
from rich.markup import escape
from rich.table import Table

from fitprune.costs import DecoderShape, prompt_flops
from fitprune.recipe import Recipe

BAR = 36  # characters of a full bar


def layers_table(recipes: Sequence[Recipe], title: str) -> Table:
    """Tokens that leave in each layer, and those that are left after it, one pair of columns per recipe."""
    table = Table(title=escape(title), title_justify="left")
    table.add_column("layer", justify="right")
    for recipe in recipes:
        table.add_column("removed" if len(recipes) == 1 else f"{_label(recipe)} removed", justify="right")
        table.add_column("left", justify="right", style="bold")
    if len(recipes) == 1:
        table.add_column("")
    for layer in range(recipes[0].num_layers):
        cells = [(str(r.remove[layer]) if r.remove[layer] else "·", str(r.alive()[layer + 1])) for r in recipes]
        bar = [_bar(r.alive()[layer + 1] / r.visual_tokens) for r in recipes[:1] if len(recipes) == 1]
        table.add_row(str(layer), *(cell for pair in cells for cell in pair), *bar)
    return table


def costs_table(recipes: Sequence[Recipe], shape: DecoderShape | None, text_tokens: float | None) -> Table:
    """What recipes cost: asked and delivered visual FLOPs, and those of a whole prompt with so much text.

    Args:
        shape: the decoder's dimensions, None when they are not known.
        text_tokens: tokens of the prompt that are not visual, None when they are not known.
    """
    table = Table(title="FLOPs by the official formula", title_justify="left")
    for column in ("recipe", "visual tokens", "asked", "delivered", "visual GFLOPs"):
        table.add_column(column, justify="left" if column == "recipe" else "right")
    whole = shape is not None and text_tokens is not None
    if whole:
        table.add_column(f"whole prompt, {round(text_tokens or 0)} text tokens", justify="right")
    for recipe in recipes:
        cells = [_label(recipe), f"{recipe.visual_tokens} → {recipe.alive()[-1]}"]
        cells.append("" if recipe.ratio is None else f"{recipe.ratio:.0%}")
        if recipe.macs:
            cells.append(f"{recipe.reduction:.1%}")
            cells.append(f"{flops(2 * recipe.macs['base'])} → {flops(2 * recipe.macs['delivered'])}")
        else:
            cells += ["", ""]
        if whole and shape is not None:
            before, after = (
                prompt_flops(remove, recipe.visual_tokens, round(text_tokens or 0), shape)
                for remove in ([0] * recipe.num_layers, recipe.remove)
            )
            cells.append(f"{flops(before)} → {flops(after)}  (-{1 - after / before:.1%})")
        table.add_row(*cells)
    return table


def flops(count: float) -> str:
    """GFLOPs with four digits: ``8998``, ``0.03714``."""
    return f"{count / 1e9:.4g}" if count < 1e13 else f"{count / 1e9:.0f}"


def _bar(share: float) -> str:
    return "█" * round(BAR * share) or "▏"


def _label(recipe: Recipe) -> str:
    return escape(recipe.model) if recipe.ratio is None else f"{recipe.ratio:.0%}"


def bench_tables(figures: Mapping[str, Any]) -> Group:
    """The figures of `fitprune.evidence.speed.run_bench`."""
    host, recipe, scoring, search = (figures[name] for name in ("host", "recipe", "scoring", "search"))
    tokens = host["tokens"]
    facts = (
        f"LLaVA-1.5-7B's decoder, {host['layers']} of {host['of']} layers, hidden {host['hidden']}, {host['dtype']}, "
        f"random weights; batch {host['batch']}, prompt of {tokens['prefix']} prefix, {tokens['visual']} visual "
        f"and {tokens['text']} text tokens."
    )
    removed = recipe["remove"] if len(recipe["remove"]) <= 8 else "as released"
    pruning = f"Recipe {recipe['released']}, removals {removed}: {recipe['visual_reduction']:.1%} of the visual FLOPs."
    if host["layers"] < host["of"]:
        pruning += f" Each layer removes what the {host['of']} / {host['layers']} layers that it stands for remove."
    scored = (
        f"Scores and selection take {_time(scoring)} of the pruned prefill ({scoring['share_of_pruned_prefill']:.1%}), "
        f"{flops(scoring['flops'])} GFLOPs that are not in the prediction."
    )
    searched = "\n".join(_searched(row) for row in (search, search.get("larger")) if row)
    knobs = "; ".join(f"{name} {knob}" for name, knob in figures.get("knobs", {}).items())
    equal = f"At the same visual FLOPs: {knobs}." if knobs else ""
    left_out = "\n".join(f"Left out: {name}: {reason}" for name, reason in figures.get("left_out", {}).items())
    facts = "\n".join(escape(line) for line in (facts, pruning, equal, left_out) if line)
    prefill = _bench_table("Prefill", figures["prefill"], "GFLOPs", "flops")
    decode = _bench_table("Decode, per token", figures["decode"], "GB read", "bytes")
    return Group(facts, prefill, scored, decode, searched)


def _searched(search: Mapping[str, Any]) -> str:
    line = (
        f"Search: {search['milliseconds']:.3f} ms per selection among {search['visual_tokens']} tokens, the O(V²) loop "
        f"{search['loop_milliseconds']:.2f} ms: {search['ratio']:.0f} times faster"
    )
    if "at_once_ratio" in search:
        line += f" ({search['at_once_ratio']:.0f} with all layers and tolerances in one call)"
    return f"{line}, same tokens in all {search['selections']} selections."


def _bench_table(title: str, rows: Mapping[str, Any], cost: str, field: str) -> Table:
    table = Table(title=title, title_justify="left")
    table.add_column("variant")
    headings = ["median", "fastest – slowest", cost, "predicted", "realised", "realised / predicted"]
    peak = any(row.get("peak_bytes") for row in rows.values())
    for heading in headings + (["peak memory"] if peak else []):
        table.add_column(heading, justify="right")
    for variant, row in rows.items():
        memory = [f"{row['peak_bytes'] / 2**30:.2f} GiB"] if peak else []
        speed = (f"{row[name]:.2f}" for name in ("predicted", "realised", "realised_over_predicted"))
        span = f"{row['fastest']:.4g} – {row['slowest']:.4g}"
        table.add_row(variant, _time(row), span, flops(row[field]), *speed, *memory)
    return table


def _time(row: Mapping[str, Any]) -> str:
    return f"{row['seconds']:.4g} s" if "seconds" in row else f"{row['milliseconds']:.4g} ms"
