"""Recipes and measurements as tables for the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from fitprune.costs import DecoderShape, prompt_flops
from fitprune.evaluation.analysis import MEASURES, Analysis
from fitprune.evaluation.compare import ALL_KINDS, UNPRUNED, Comparison, Row
from fitprune.evaluation.demo import Demonstration, saved
from fitprune.evaluation.published import published
from fitprune.evaluation.questions import paper_split
from fitprune.recipe import Recipe
from tenfold.metrics import Interval

if TYPE_CHECKING:
    from fitprune.evaluation.run import Evaluation

BAR = 36  # characters of a full bar


def layers_table(recipes: Sequence[Recipe], title: str) -> Table:
    """Tokens that leave in each layer, and those that are left after it, one pair of columns per recipe."""
    table = Table(title=title, title_justify="left")
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
    return recipe.model if recipe.ratio is None else f"{recipe.ratio:.0%}"


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
    facts = "\n".join(line for line in (facts, pruning, equal, left_out) if line)
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


def eval_tables(evaluations: Sequence[Evaluation]) -> Group:
    """One row for each benchmark: the figure that papers report, theirs beside ours, and what the prompts cost; for a
    single benchmark, all its scores too."""
    first = evaluations[0]
    pruned = "unpruned" if first.recipe is None else f"recipe for {first.recipe.summary()}"
    table = Table(title=f"{first.model}, {pruned}", title_justify="left")
    for heading in ("benchmark", "split", "questions", "score"):
        table.add_column(heading)
    rows = [(one, *_scores(one)) for one in evaluations]
    in_papers = any(papers for *_, papers in rows)
    for heading in ("ours", *(["papers"] if in_papers else []), "visual GFLOPs", "whole prompt, GFLOPs"):
        table.add_column(heading, justify="right")
    for one, name, ours, papers in rows:
        metrics = one.metrics
        asked = f"{metrics['questions']}, spread" if one.limited else str(metrics["questions"])
        theirs = [papers] if in_papers else []
        table.add_row(one.benchmark.title, metrics["split"], asked, name, ours, *theirs, *_costs(metrics))
    return Group(table, _all_scores(first)) if len(evaluations) == 1 and first.metrics["scores"] else Group(table)


def _scores(one: Evaluation) -> tuple[str, str, str]:
    main = one.benchmark.main
    comparable = one.metrics["split"] == paper_split(one.benchmark)
    theirs = published(one.model, one.recipe, one.benchmark.name) if comparable else []
    papers = "\n".join(f"{number.value:g} {number.unit} ({number.source})" for number in theirs)
    if main is None or main not in one.metrics["scores"]:  # a server or a judge reads the submission
        return "by its judge", "–", papers
    value = one.metrics["scores"][main]
    return main, f"{100 * value:.2f} %" if one.benchmark.percent else f"{value:.1f}", papers


def _costs(metrics: Any) -> tuple[str, str]:
    def change(name: str) -> str:
        saved = metrics[f"{name}_reduction"]
        if saved is None:
            return ""
        return f"{metrics[f'{name}_unpruned_gflops']:.4g} → {metrics[f'{name}_gflops']:.4g} (-{saved:.1%})"

    return change("visual"), change("prompt")


def _all_scores(one: Evaluation) -> Table:
    table = Table(title=f"{one.benchmark.title}, {one.metrics['split']}", title_justify="left")
    table.add_column("metric")
    table.add_column("value", justify="right")
    for name, value in one.metrics["scores"].items():
        table.add_row(name, "–" if value is None else f"{value:.6g}")
    return table


HEADINGS = {
    "cross_mass": "cross mass",
    "self_mass": "self mass",
    "cross_top": "cross, top tenth",
    "self_top": "self, top tenth",
    "self_place": "self score ~ place",
}


def analysis_table(found: Analysis) -> Table:
    """One row a layer: mean ± standard deviation over the samples, and what the recipe removes."""
    samples, visual = len(found.visual_tokens), sum(found.visual_tokens) / len(found.visual_tokens)
    title = f"{found.model}: attention to the image, {samples} samples of {visual:.0f} visual tokens"
    table = Table(title=title, title_justify="left")
    table.add_column("layer", justify="right")
    for measure in MEASURES:
        table.add_column(HEADINGS[measure], justify="right")
    if found.recipe is not None:
        table.add_column("removed", justify="right")
    columns = [zip(found.mean(measure), found.spread(measure), strict=True) for measure in MEASURES]
    for layer, cells in enumerate(zip(*columns, strict=True)):
        removed = [] if found.recipe is None else [str(found.recipe.remove[layer])]
        table.add_row(str(layer), *(f"{mean:.3f} ± {spread:.3f}" for mean, spread in cells), *removed)
    return table


def demo_tables(shown: Demonstration) -> Group:
    """Both answers, what was saved, and how many tokens the recipe leaves at each layer."""
    metrics, recipe = shown.metrics, shown.recipe
    drawn = "none: how this host's visual tokens lie in the image is not known"
    facts = Table.grid(padding=(0, 2))
    for label, value in (
        ("question", shown.question.text),
        (f"answer, all {recipe.visual_tokens} visual tokens", metrics["answer"]),
        (f"answer, pruned to {recipe.alive()[-1]}", metrics["answer_pruned"]),
        ("right answer", shown.question.gold),
        ("FLOPs saved", saved(metrics)),
        ("picture", drawn if shown.picture is None else str(shown.picture)),
    ):
        if value is not None:
            facts.add_row(label, Text(value, style="bold", overflow="fold"))
    return Group(layers_table([recipe], f"Visual tokens under the recipe of {recipe.model}"), facts)
