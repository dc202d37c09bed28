"""The picture of the demonstration: one image as both pathways see it, the answers, the gates."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from llava_hr.image_processing import IMAGE_MEAN, IMAGE_STD

INK, QUIET, LINE, BAR, BACK = "#1f2430", "#6b7280", "#b9bec8", "#2f6f9f", "#e6e9ee"
# Inches.
_PANEL, _GAP, _MARGIN, _TITLE, _GATE = 3.4, 0.3, 0.3, 0.3, 0.24


@dataclass(frozen=True)
class View:
    """What one pathway sees.

    Attributes:
        title: above the panel.
        pixels: ``[height, width, 3]`` in 0 .. 1.
    """

    title: str
    pixels: np.ndarray

    @classmethod
    def of(cls, title: str, pixel_values: Tensor) -> View:
        """From a normalised image ``[3, height, width]``."""
        mean, std = (np.array(values)[:, None, None] for values in (IMAGE_MEAN, IMAGE_STD))
        pixels = pixel_values.float().cpu().numpy() * std + mean
        return cls(title, pixels.transpose(1, 2, 0).clip(0, 1))

    def detail(self, title: str, box: Sequence[float]) -> View:
        """The part in a box of left, top, right, bottom, each from 0 to 1; at least a pixel."""
        height, width = self.pixels.shape[:2]
        left, top = int(box[0] * width), int(box[1] * height)
        right, bottom = max(left + 1, round(box[2] * width)), max(top + 1, round(box[3] * height))
        return View(title, self.pixels[top:bottom, left:right])


def draw(views: Sequence[View], gates: Mapping[int, float], *, heading: str, lines: Sequence[str]) -> bytes:
    """Draw the views side by side, and a bar for each gate.

    Args:
        views: drawn with every pixel visible, whatever their size.
        gates: ViT layer after which an adapter stands, from 1 -> its gate, -1 to 1; may be empty.
        heading: one line above.
        lines: below it: questions and answers.

    Returns:
        A PNG file.
    """
    from matplotlib.figure import Figure

    width = len(views) * (_PANEL + _GAP) - _GAP + 2 * _MARGIN
    wrapped = [part for line in lines for part in textwrap.wrap(line, int(12.5 * width)) or [""]]
    top = _MARGIN + 0.3 + 0.19 * len(wrapped) + 0.12
    below = _GATE * len(gates) + 0.45 if gates else 0.0
    height = top + _TITLE + _PANEL + below + _MARGIN

    figure = Figure(figsize=(width, height), dpi=130, facecolor="white")
    place = {"x": _MARGIN / width, "va": "top", "linespacing": 1.35, "parse_math": False}  # a "$" is a dollar
    figure.text(y=1 - _MARGIN / height, s=heading, fontsize=12, weight="bold", color=INK, **place)
    figure.text(y=1 - (_MARGIN + 0.3) / height, s="\n".join(wrapped), fontsize=9.5, color=INK, **place)
    for number, view in enumerate(views):
        left, bottom = _MARGIN + number * (_PANEL + _GAP), height - top - _TITLE - _PANEL
        axes = figure.add_axes((left / width, bottom / height, _PANEL / width, _PANEL / height))
        axes.imshow(view.pixels, interpolation="nearest", aspect="equal")
        axes.set_xticks([])
        axes.set_yticks([])
        axes.spines[:].set_color(LINE)
        axes.set_title(view.title, fontsize=9.5, color=QUIET, loc="left", pad=4)
    if gates:
        _bars(figure, gates, (_MARGIN, _MARGIN, width - 2 * _MARGIN, _GATE * len(gates)), (width, height))
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def _bars(
    figure: object, gates: Mapping[int, float], box: tuple[float, float, float, float], size: tuple[float, float]
) -> None:
    left, bottom, width, height = box
    label = 1.5
    axes = figure.add_axes(  # type: ignore[attr-defined]
        ((left + label) / size[0], bottom / size[1], (width - label - 0.6) / size[0], height / size[1])
    )
    rows = range(len(gates))
    axes.barh(rows, [2] * len(gates), left=-1, height=0.55, color=BACK)
    axes.barh(rows, list(gates.values()), height=0.55, color=BAR)
    for row, gate in zip(rows, gates.values(), strict=True):
        axes.text(1.02, row, f"{gate:+.3f}", va="center", fontsize=9, color=INK)
    axes.axvline(0, color=LINE, linewidth=0.8)
    axes.set_xlim(-1, 1)
    axes.set_ylim(len(gates) - 0.5, -0.5)
    axes.set_yticks(list(rows), [f"gate after layer {layer}" for layer in gates], fontsize=9, color=QUIET)
    axes.set_xticks([])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
