"""The attention statistics of a model as a table for the terminal."""

from __future__ import annotations

from rich.markup import escape
from rich.table import Table

from fitprune.evaluation.analysis import MEASURES, Analysis

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
    title = f"{escape(found.model)}: attention to the image, {samples} samples of {visual:.0f} visual tokens"
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
