"""Pictures of routing: weights by cell and layer, the paths of a few images, and comparisons of trained models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from textwrap import fill
from typing import Any

from PIL import Image

from dtnet.config import DTNetConfig
from dtnet.router import Paths

INK, PASSED, PALE, LINE = "#1b2a33", "#0b5c6b", "#dfe6e9", "#9aa5ab"
NAMES = {"lmc": "local", "amc": "axial", "gmc": "global", "cac": "ch. attention", "cpc": "ch. projection"}


def draw_weights(rows: Sequence[Mapping[str, Any]], path: Path, title: str = "") -> Path:
    """Two heat maps, cells by layers: the mean weight and its spread over images. Rows as of `analyze.cell_rows`."""
    cells = list(dict.fromkeys(row["cell"] for row in rows))
    layers = sorted({row["layer"] for row in rows})
    by_place = {(row["cell"], row["layer"]): row for row in rows}
    figure = _canvas(2.2 + 1.4 * len(layers), 1.4 + 0.42 * len(cells))
    for axes, what, top in zip(figure.subplots(1, 2, sharey=True), ("mean", "spread"), (1.0, None), strict=True):
        values = [[by_place[cell, layer][what] for layer in layers] for cell in cells]
        # A spread is drawn against the largest one, and against 0.05 where all are smaller: noise should look pale.
        largest = top or max(0.05, *(value for row in values for value in row))
        axes.imshow(values, cmap="YlGnBu", vmin=0, vmax=largest, aspect="auto")
        for y, row in enumerate(values):
            for x, value in enumerate(row):
                colour = "white" if value > 0.6 * largest else INK
                axes.text(x, y, f"{value:.3f}", ha="center", va="center", fontsize=8, color=colour)
        axes.set_xticks(range(len(layers)), [f"layer {layer}" for layer in layers])
        axes.set_yticks(range(len(cells)), [NAMES.get(cell, cell) for cell in cells])
        axes.set_title("mean weight" if what == "mean" else "spread over images", fontsize=9)
        axes.tick_params(length=0, labelsize=8)
    if title:
        figure.suptitle(title, fontsize=9)
    figure.savefig(path, dpi=150)
    return path


def draw_paths(
    images: Sequence[Image.Image | None],
    captions: Sequence[str],
    paths: Sequence[Paths | None],
    config: DTNetConfig,
    path: Path,
    threshold: float | None = None,
) -> Path:
    """A row for each image: the picture, and its cells from the first layer to the last, as in the paper's figures.

    Args:
        images: None where there is only a caption.
        captions: of each image.
        paths: of each image, `[layers, cells]`.
        threshold: the least weight of a passed cell, which is filled; None: 1 / P of P cells. A node's size is the
            weight.
        path: a PNG.
    """
    figure = _canvas(3.2 + 1.9 * config.encoder_layers, 1.5 * len(images) + 0.4)
    grid = figure.add_gridspec(len(images), 2, width_ratios=[1.6, 1.9 * config.encoder_layers])
    for row, (image, caption, weights) in enumerate(zip(images, captions, paths, strict=True)):
        left = figure.add_subplot(grid[row, 0])
        left.set_axis_off()
        if image is not None:
            left.imshow(image)
        left.set_title(fill(caption, 34), fontsize=7, color=INK)
        _graph(figure.add_subplot(grid[row, 1]), weights, config, threshold, names=row == 0)
    figure.savefig(path, dpi=150)
    return path


def _graph(axes: Any, weights: Paths | None, config: DTNetConfig, threshold: float | None, names: bool) -> None:
    assert weights is not None
    axes.set_axis_off()
    columns: list[list[tuple[str, float, bool]]] = []
    for layer in range(config.encoder_layers):
        for cells, part in zip((config.spatial_cells, config.channel_cells), weights, strict=True):
            least = (threshold or 1 / len(cells)) - 1e-6
            values = part[layer].tolist()
            columns.append([(cell, value, value >= least) for cell, value in zip(cells, values, strict=True)])
    places = [
        [(x, (len(column) - 1) / 2 - y, value, passing) for y, (_, value, passing) in enumerate(column)]
        for x, column in enumerate(columns)
    ]
    for before, after in pairwise(places):
        for x, y, _, passing in before:
            for x2, y2, _, passing2 in after:
                if passing and passing2:
                    axes.plot([x, x2], [y, y2], color=PASSED, linewidth=1, alpha=0.5, zorder=1)
    for column, place in zip(columns, places, strict=True):
        for (cell, value, passing), (x, y, _, _) in zip(column, place, strict=True):
            face = PASSED if passing else PALE
            axes.scatter([x], [y], s=30 + 220 * value, color=face, edgecolor=PASSED if passing else LINE, zorder=2)
            axes.text(x + 0.14, y, f"{value:.2f}", ha="left", va="center", fontsize=6, color=INK)
            if names and x < 2:
                axes.text(x, y + 0.36, NAMES.get(cell, cell), ha="center", va="center", fontsize=6, color=INK)
    for layer in range(config.encoder_layers if names else 0):
        axes.text(2 * layer + 0.5, 1.8, f"layer {layer}", ha="center", va="center", fontsize=7, color=INK)
    axes.set_xlim(-0.6, len(columns) - 0.4)
    axes.set_ylim(-1.4, 1.9)


def draw_comparison(table: Sequence[Mapping[str, Any]], path: Path, label: str = "CIDEr-D") -> Path:
    """Bars of a recorded table (rows with "name", "mean" and "seeds"); a dot for each training seed."""
    rows = list(reversed(table))
    figure = _canvas(7, 0.42 * len(rows) + 1)
    axes = figure.subplots()
    colours = [PASSED if row.get("ours") else LINE for row in rows]
    axes.barh([row["name"] for row in rows], [row["mean"] for row in rows], color=colours)
    for place, row in enumerate(rows):
        axes.plot(row["seeds"], [place] * len(row["seeds"]), ".", color=INK, markersize=4)
    axes.set_xlabel(f"{label}; dots: training seeds")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)
    return path


def _canvas(width: float, height: float) -> Any:
    # Without pyplot: no window, no global state.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure
