"""The picture of a pruned prompt: which patches of the image are left after which decoder layer."""

from __future__ import annotations

import io
import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

# A further panel is drawn when this share of the visual tokens has left since the last one.
VISIBLE_SHARE = 0.01
PANEL_PIXELS = 300
REMOVED = (0.71, 0.73, 0.76)  # what a removed patch fades to: apart from light and dark images alike
INK, QUIET, LINE = "#1f2430", "#6b7280", "#b9bec8"


@dataclass(frozen=True)
class Stage:
    """The visual tokens that are left at one depth, drawn as one panel.

    Attributes:
        first, last: the layers that removed tokens since the panel before; None for the whole image.
        left: ``[visual tokens]`` bool.
    """

    first: int | None
    last: int | None
    left: np.ndarray

    @property
    def title(self) -> str:
        if self.first is None:
            return "whole image"
        layers = f"layer {self.first}" if self.first == self.last else f"layers {self.first}–{self.last}"
        return f"after {layers}"


def patch_grid(inputs: Mapping[str, Any], visual_tokens: int) -> tuple[int, int] | None:
    """Rows and columns in which the visual tokens of a prompt cover its one image, or None where that is not known.

    Args:
        inputs: the prompt as the host's processor made it.
        visual_tokens: their number in the prompt.

    Hosts of the Qwen kind say it in ``image_grid_thw`` ``[1, 3]``, in patches before merging; for others a square
    number of tokens from a single picture ``[1, 3, height, width]`` is a square grid.
    """
    thw = inputs.get("image_grid_thw")
    if thw is not None:
        frames, rows, columns = thw[0].tolist()
        merge = math.isqrt(rows * columns // max(visual_tokens, 1))
        fits = len(thw) == 1 and frames == 1 and rows * columns == visual_tokens * merge**2
        return (rows // merge, columns // merge) if fits else None
    side = math.isqrt(visual_tokens)
    pixels = inputs.get("pixel_values")
    single = pixels is not None and pixels.ndim == 4 and pixels.shape[0] == 1
    return (side, side) if single and visual_tokens and side**2 == visual_tokens else None


def as_seen(image: Image.Image, inputs: Mapping[str, Any], processor: Any) -> Image.Image:
    """The part of the image that the patches cover.

    A processor may squash an image, crop its centre or pad it to a square. The candidate that resembles the pixels
    that the model was given is taken from the original, at its own resolution; if none does, the pixels themselves.
    """
    pixels = inputs["pixel_values"]
    if pixels.ndim != 4:
        return image  # a sequence of patches (the Qwen kind) covers the whole image
    settings = processor.image_processor
    mean, deviation = (np.array(values)[:, None, None] for values in (settings.image_mean, settings.image_std))
    given = pixels[0].float().cpu().numpy() * deviation + mean  # [3, height, width] in 0 .. 1
    given = given.clip(0, 1).transpose(1, 2, 0)
    height, width = given.shape[:2]

    def distance(candidate: Image.Image) -> float:
        small = candidate.resize((width, height), Image.Resampling.BICUBIC)
        return float(np.abs(np.asarray(small) / 255 - given).mean())

    filling = tuple(int(255 * value) for value in settings.image_mean)
    best = min((image, *_squares(image, filling)), key=distance)
    # A wrong crop differs by its content; another resampling filter only at edges.
    return best if distance(best) < 0.05 else Image.fromarray((255 * given).round().astype(np.uint8))


def stages(surviving: Tensor) -> list[Stage]:
    """The depths worth a panel: the whole image, then wherever at least one percent of its tokens has left.

    Args:
        surviving: ``[layers + 1, visual tokens]`` bool, present at the input of each layer and after the last one.
    """
    present = surviving.numpy()
    counts = present.sum(axis=1)
    last_layer = len(present) - 2
    found = [Stage(None, None, present[0])]
    start: int | None = None
    for layer in range(len(present) - 1):
        if counts[layer + 1] < counts[layer] and start is None:
            start = layer
        gone = found[-1].left.sum() - counts[layer + 1]
        if start is not None and (gone >= VISIBLE_SHARE * len(present[0]) or (layer == last_layer and gone)):
            last = max(k for k in range(start, layer + 1) if counts[k + 1] < counts[k])
            found.append(Stage(start, last, present[layer + 1]))
            start = None
    return found


def draw(image: Image.Image, grid: tuple[int, int], panels: Sequence[Stage], *, heading: str, caption: str) -> bytes:
    """Draw the panels.

    Args:
        image: the part of the image that the patches cover.
        grid: rows and columns of patches.
        panels: what is left at each depth.
        heading: one line above.
        caption: a line below it.

    Returns:
        A PNG file.
    """
    from matplotlib.figure import Figure

    picture = _fit_to_grid(image, grid)
    columns = len(panels) if len(panels) <= 4 else min(6, math.ceil(len(panels) / 2))
    rows = math.ceil(len(panels) / columns)
    panel, gap, margin, title = 2.1, 0.2, 0.3, 0.34  # inches
    panel_height = panel * picture.shape[0] / picture.shape[1]
    width = max(columns * (panel + gap) - gap, 3 * panel) + 2 * margin
    lines = textwrap.wrap(heading, int(9.5 * width)), textwrap.wrap(caption, int(12 * width))
    top = margin + 0.24 * len(lines[0]) + 0.175 * len(lines[1]) + 0.08
    height = top + rows * (panel_height + title + 0.1) + margin / 2

    figure = Figure(figsize=(width, height), dpi=150, facecolor="white")
    place: dict[str, Any] = {
        "x": margin / width,
        "va": "top",
        "linespacing": 1.3,
        "parse_math": False,
    }
    figure.text(y=1 - margin / height, s="\n".join(lines[0]), fontsize=12, weight="bold", color=INK, **place)
    below = margin + 0.24 * len(lines[0])
    figure.text(y=1 - below / height, s="\n".join(lines[1]), fontsize=9.5, color=QUIET, **place)
    for number, stage in enumerate(panels):
        row, column = divmod(number, columns)
        left = margin + column * (panel + gap)
        bottom = height - top - (row + 1) * (panel_height + title + 0.1) + 0.1
        axes = figure.add_axes((left / width, bottom / height, panel / width, panel_height / height))
        axes.imshow(_faded(picture, grid, stage.left), interpolation="nearest", aspect="auto")
        axes.set_xticks([])
        axes.set_yticks([])
        axes.spines[:].set_color(LINE)
        share = f"{stage.left.sum()} patches" if stage.first is None else f"{stage.left.sum()} left"
        axes.set_title(stage.title, fontsize=9.5, color=INK, loc="left", pad=4)
        axes.set_title(share, fontsize=9.5, color=QUIET, loc="right", pad=4)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def _squares(image: Image.Image, filling: tuple[int, ...]) -> tuple[Image.Image, Image.Image]:
    """The centre square of an image, and the image padded to a square."""
    width, height = image.size
    short, long = min(width, height), max(width, height)
    left, top = (width - short) // 2, (height - short) // 2
    padded = Image.new("RGB", (long, long), filling)
    padded.paste(image, ((long - width) // 2, (long - height) // 2))
    return image.crop((left, top, left + short, top + short)), padded


def _fit_to_grid(image: Image.Image, grid: tuple[int, int]) -> np.ndarray:
    """``[height, width, 3]`` in 0 .. 1, every patch a whole number of pixels."""
    rows, columns = grid
    patch = max(4, round(PANEL_PIXELS / max(rows, columns)))
    resized = image.convert("RGB").resize((columns * patch, rows * patch), Image.Resampling.LANCZOS)
    return np.asarray(resized, dtype=np.float32) / 255


def _faded(picture: np.ndarray, grid: tuple[int, int], left: np.ndarray) -> np.ndarray:
    """The picture with removed patches in pale grey."""
    patch = picture.shape[0] // grid[0]
    present = left.reshape(grid).repeat(patch, axis=0).repeat(patch, axis=1)[..., None]
    grey = picture.mean(axis=2, keepdims=True)
    pale = 0.2 * grey + 0.8 * np.array(REMOVED, dtype=np.float32)
    return np.where(present, picture, pale)
