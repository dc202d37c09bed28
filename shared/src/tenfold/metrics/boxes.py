"""Boxes in a model's text, and how far they cover the right ones: referring expressions as LLaVA-HR scores them.

A box is left, top, right, bottom, of any unit. One is found when its IoU with the right box is above 0.5.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tenfold.errors import UserError

Box = tuple[float, float, float, float]
NO_BOX: Box = (0.0, 0.0, 0.0, 0.0)
THRESHOLD = 0.5
_NUMBER = r"\s*(\d*\.?\d+)\s*"
_BOX = re.compile(rf"\[{_NUMBER},{_NUMBER},{_NUMBER},{_NUMBER}\]")
_BRACKETS = re.compile(r"\[.*?\]")


@dataclass(frozen=True)
class BoxScores:
    """Scores of some boxes: share with IoU above 0.5, mean IoU, both in [0, 1], and texts without a box."""

    accuracy: float
    mean_iou: float
    unread: int
    count: int


def parse_box(text: str) -> Box:
    """The box that a model's text names first, such as "[0.1, .2, 0.5, 1]"; (0, 0, 0, 0) when the first pair of
    brackets holds anything but four numbers without sign."""
    brackets = _BRACKETS.search(text)
    found = _BOX.fullmatch(brackets[0]) if brackets else None
    if found is None:
        return NO_BOX
    left, top, right, bottom = map(float, found.groups())
    return left, top, right, bottom


def box_ious(boxes: Sequence[Box], others: Sequence[Box]) -> NDArray[np.float32]:
    """Intersection over union of pairs of boxes, in [0, 1]; 0 where one is empty or the wrong way round.

    In float32 and thousandths, as the official script computes it: what lies at 0.5 falls on the same side.

    Returns:
        ``[boxes]`` float32.
    """
    one, other = (np.asarray(some, dtype=np.float32).reshape(-1, 4) * np.float32(1000) for some in (boxes, others))
    sides = np.minimum(one[:, 2:], other[:, 2:]) - np.maximum(one[:, :2], other[:, :2])
    common = np.prod(np.maximum(sides, 0), axis=1)
    areas = [np.prod(some[:, 2:] - some[:, :2], axis=1) for some in (one, other)]
    return np.where(common > 0, common / np.where(common > 0, areas[0] + areas[1] - common, 1), 0).astype(np.float32)


def box_scores(texts: Sequence[str], boxes: Sequence[Box]) -> BoxScores:
    """Scores of a model's texts; one without a box is wrong.

    Args:
        texts: in the order of the boxes; read by `parse_box`.
        boxes: the right ones, left, top, right, bottom.

    Raises:
        UserError: no texts, or not one for each box.
    """
    if not texts or len(texts) != len(boxes):
        given = f"{len(texts)} texts, {len(boxes)} boxes"
        raise UserError("texts do not match boxes", given, "one text for each box, at least one")
    predicted = [parse_box(text) for text in texts]
    ious = box_ious(predicted, boxes)
    return BoxScores(
        accuracy=float((ious > THRESHOLD).mean()),
        mean_iou=float(ious.mean(dtype=np.float64)),
        unread=sum(box == NO_BOX for box in predicted),
        count=len(ious),
    )
