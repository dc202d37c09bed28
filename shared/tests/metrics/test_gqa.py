"""GQA accuracy by hand."""

from __future__ import annotations

import pytest

from tenfold import UserError
from tenfold.metrics import GQAAnswer, gqa_scores


def test_accuracies_are_as_by_hand() -> None:
    """Fails if open and binary questions are exchanged, or the total is their mean instead of that of the questions."""
    scores = gqa_scores(
        [
            GQAAnswer("Yes.", "yes", "verify"),
            GQAAnswer("no", "yes", "logical"),
            GQAAnswer("left", "left", "choose"),
            GQAAnswer("Tree", "tree", "query"),
            GQAAnswer("a tree", "tree", "query"),
            GQAAnswer("cat", "cat", None),
        ]
    )
    assert (scores.accuracy, scores.open, scores.binary, scores.count) == (4 / 6, 1 / 2, 2 / 3, 6)


def test_types_that_do_not_occur_have_no_accuracy() -> None:
    """Fails if a ratio is taken without looking at its denominator."""
    scores = gqa_scores([GQAAnswer("cat", "dog")])
    assert (scores.accuracy, scores.open, scores.binary) == (0.0, None, None)
    with pytest.raises(UserError, match="no predictions"):
        gqa_scores([])
