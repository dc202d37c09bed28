"""Boxes in texts and their IoU: by hand, against a second implementation, and what is refused."""

from __future__ import annotations

import random

import numpy as np
import pytest

from tenfold import UserError
from tenfold.metrics import box_ious, box_scores, ocrvqa_accuracy, ocrvqa_match, parse_box


@pytest.mark.parametrize(
    ("text", "box"),
    [
        ("[0.1, 0.2, 0.5, 0.6]", (0.1, 0.2, 0.5, 0.6)),
        ("The box is [0, .1, 1, 0.5].", (0, 0.1, 1, 0.5)),
        ("[0.4,0.4,0.9,0.9] or [0,0,1,1]", (0.4, 0.4, 0.9, 0.9)),
        ("[ 0.1 , 0.2,0.5 ,0.6 ]", (0.1, 0.2, 0.5, 0.6)),
        ("no box", (0, 0, 0, 0)),
        ("[0.1, 0.2, 0.5]", (0, 0, 0, 0)),
        ("[0.1, 0.2, 0.5, 0.6, 0.7]", (0, 0, 0, 0)),
        ("[-0.1, 0.2, 0.5, 0.6]", (0, 0, 0, 0)),
        ("[man] [0.1, 0.2, 0.5, 0.6]", (0, 0, 0, 0)),
        ("0.1, 0.2, 0.5, 0.6", (0, 0, 0, 0)),
        ("[0.1 0.2 0.5 0.6]", (0, 0, 0, 0)),
        ("", (0, 0, 0, 0)),
    ],
)
def test_the_first_brackets_are_read(text: str, box: tuple[float, ...]) -> None:
    """Fails if a later box is taken, a sign is lost, or numbers outside brackets count."""
    assert parse_box(text) == box


def test_iou_by_hand() -> None:
    """Fails if the union is the sum of the areas, or an empty box divides by nothing."""
    pairs = [
        ((0, 0, 1, 1), (0, 0, 1, 1), 1.0),
        ((0, 0, 0.5, 1), (0.25, 0, 1, 1), 0.25),  # common 1/4 of a whole
        ((0.1, 0.2, 0.5, 0.6), (0.12, 0.2, 0.5, 0.63), 0.152 / 0.1714),
        ((0, 0, 0.2, 0.2), (0.5, 0.5, 1, 1), 0.0),
        ((0, 0, 0.5, 0.5), (0.5, 0, 1, 0.5), 0.0),  # they touch
        ((0, 0, 0, 0), (0.1, 0.1, 0.2, 0.2), 0.0),
        ((0, 0, 0, 0), (0, 0, 0, 0), 0.0),
        ((0.8, 0.8, 0.2, 0.2), (0, 0, 1, 1), 0.0),  # the wrong way round
    ]
    found = box_ious([one for one, _, _ in pairs], [other for _, other, _ in pairs])
    assert found == pytest.approx([iou for _, _, iou in pairs], abs=1e-6)


def test_iou_equals_counted_cells() -> None:
    """A second implementation: boxes on a grid, IoU by counting its cells."""
    rng = random.Random(0)
    boxes = []
    for _ in range(60):
        (left, right), (top, bottom) = (sorted(rng.sample(range(21), 2)) for _ in "xy")
        boxes.append((left, top, right, bottom))
    grids = np.zeros((60, 20, 20), dtype=bool)
    for grid, (left, top, right, bottom) in zip(grids, boxes, strict=True):
        grid[top:bottom, left:right] = True
    counted = [(a & b).sum() / (a | b).sum() for a, b in zip(grids[:30], grids[30:], strict=True)]
    scaled = [tuple(edge / 20 for edge in box) for box in boxes]
    assert box_ious(scaled[:30], scaled[30:]) == pytest.approx(counted, abs=1e-5)


def test_one_half_is_not_enough() -> None:
    """Fails if the threshold is met by equality, or unread texts are left out of the mean."""
    texts = ["[0, 0, 0.5, 1]", "[0, 0, 0.51, 1]", "nowhere", "[0, 0, 1, 1]"]
    scores = box_scores(texts, [(0, 0, 1, 1)] * 4)
    assert (scores.accuracy, scores.unread, scores.count) == (0.5, 1, 4)
    assert scores.mean_iou == pytest.approx((0.5 + 0.51 + 0 + 1) / 4)


@pytest.mark.parametrize(("texts", "boxes"), [([], []), (["x"], [])])
def test_texts_that_do_not_fit_the_boxes_are_an_error(texts: list[str], boxes: list[tuple[float, ...]]) -> None:
    with pytest.raises(UserError, match="texts do not match boxes"):
        box_scores(texts, boxes)


def test_ocrvqa_matches_but_for_space_and_capitals() -> None:
    """Fails if marks are stripped too, or only one side is lowered."""
    assert ocrvqa_match("John Doe ", " john DOE")
    assert not ocrvqa_match("John Doe.", "John Doe") and not ocrvqa_match("John", "John Doe")
    assert ocrvqa_accuracy(["A Tale", "no", "2"], [" a tale", "Yes", "2"]) == pytest.approx(2 / 3)
    with pytest.raises(UserError, match="predictions do not match answers"):
        ocrvqa_accuracy([], [])
