"""Pictures of what was skipped: the patches of a prompt's image, layer by layer."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from gamma_mod.report import Skips


def skipped_patches(
    image: Image.Image, skips: Skips, visual: Tensor, path: Path, overlap: Mapping[tuple[int, int], float]
) -> Path | None:
    """Draw an image once a converted layer, skipped patches dark; titles say how alike neighbouring layers route.

    Args:
        skips: of one prompt, with tensors.
        visual: ``[1, tokens]`` bool.
        overlap: of `Skips.overlap`.

    Returns:
        The file; None where the visual tokens are no square of patches, so that their places are not known.
    """
    count = int(visual.sum())
    side = round(count**0.5)
    if side * side != count:
        return None
    picture = np.asarray(image.convert("RGB").resize((side * 32, side * 32))) / 255
    layers = skips.layers
    columns = min(4, len(layers))
    rows = -(-len(layers) // columns)
    figure = Figure(figsize=(2.4 * columns, 2.7 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    for index, layer in enumerate(layers):
        kept = skips.kept["prefill", layer][0][visual].reshape(side, side).cpu().numpy()
        shade = np.kron(np.where(kept, 1.0, 0.25), np.ones((32, 32)))[..., None]
        axes = figure.add_subplot(rows, columns, index + 1)
        axes.imshow(picture * shade)
        title = f"layer {layer}: {1 - kept.mean():.0%} skipped"
        if index:
            title += f"\noverlap {overlap[layers[index - 1], layer]:.2f}"
        axes.set_title(title, fontsize=8)
        axes.set_axis_off()
    figure.savefig(path, dpi=120)
    return path


def rank_bars(ranks: list[float], converted: tuple[int, ...], path: Path) -> Path:
    """Draw the ARank of every layer; the converted ones stand out."""
    figure = Figure(figsize=(max(4.0, 0.25 * len(ranks)), 3.0), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    colours = ["#4c72b0" if layer in converted else "#c44e52" for layer in range(len(ranks))]
    axes.bar(range(len(ranks)), ranks, color=colours)
    axes.set_xlabel("layer (blue: converted, red: stays dense)")
    axes.set_ylabel("ARank")
    figure.savefig(path, dpi=120)
    return path
