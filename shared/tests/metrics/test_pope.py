"""POPE: answers and scores by hand, and scores against a second implementation."""

from __future__ import annotations

import random

import pytest

from tenfold import UserError
from tenfold.metrics import mean_f1, pope_answer, pope_scores


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("Yes", "yes"),
        ("no", "no"),
        ("No, there is not.", "no"),
        ("There is not a dog. Yes.", "no"),
        ("Yes. No.", "yes"),
        ("There is none", "yes"),
        ("NO", "yes"),
        ("no!", "yes"),
        ("Well,no", "yes"),
        ("", "yes"),
        ("I do not know", "no"),
    ],
)
def test_answers_are_read_by_the_official_rule(text: str, answer: str) -> None:
    """Fails if more than the first sentence is read, or "no" is looked for inside words or in other cases."""
    assert pope_answer(text) == answer


def test_scores_are_as_by_hand() -> None:
    """Fails if precision and recall are exchanged, or the yes-ratio is that of the labels."""
    scores = pope_scores(["yes", "yes", "yes", "no", "no"], ["yes", "no", "no", "no", "yes"])
    assert (scores.accuracy, scores.precision, scores.recall) == (2 / 5, 1 / 3, 1 / 2)
    assert scores.f1 == pytest.approx(2 * (1 / 3) * (1 / 2) / (1 / 3 + 1 / 2))
    assert (scores.yes_ratio, scores.count) == (3 / 5, 5)


def test_scores_equal_a_second_implementation() -> None:
    """Fails if a cell of the confusion table is counted wrongly."""
    rng = random.Random(0)
    for _ in range(200):
        size = rng.randint(2, 30)
        predictions = [rng.choice(["yes", "no", "No, it is not", "Yes, it is"]) for _ in range(size)]
        labels = [rng.choice(["yes", "no"]) for _ in range(size)]
        cells = {(said, true): 0 for said in ("y", "n") for true in ("y", "n")}
        for text, label in zip(predictions, labels, strict=True):
            cells[text[0].lower(), label[0]] += 1
        scores = pope_scores(predictions, labels)
        assert scores.accuracy == pytest.approx((cells["y", "y"] + cells["n", "n"]) / size)
        # F1 in its other form, straight from the counts.
        mistakes = cells["y", "n"] + cells["n", "y"]
        expected = 2 * cells["y", "y"] / (2 * cells["y", "y"] + mistakes) if cells["y", "y"] else 0.0
        assert scores.f1 == pytest.approx(expected)
        assert scores.yes_ratio == pytest.approx((cells["y", "y"] + cells["y", "n"]) / size)


def test_a_model_that_never_says_yes_scores_zero_instead_of_failing() -> None:
    """Fails if a ratio is taken without looking at its denominator."""
    scores = pope_scores(["no", "no"], ["yes", "no"])
    assert (scores.precision, scores.recall, scores.f1) == (0.0, 0.0, 0.0)
    assert pope_scores(["yes"], ["no"]).recall == 0.0


def test_mean_f1_needs_and_averages_the_three_subsets() -> None:
    """Fails if a missing subset is passed over."""
    good, bad = pope_scores(["yes", "no"], ["yes", "no"]), pope_scores(["no", "yes"], ["yes", "no"])
    assert mean_f1({"random": good, "popular": good, "adversarial": bad}) == pytest.approx(2 / 3)
    with pytest.raises(UserError, match="adversarial"):
        mean_f1({"random": good, "popular": good})


@pytest.mark.parametrize(("predictions", "labels"), [([], []), (["yes"], ["yes", "no"]), (["yes"], ["maybe"])])
def test_predictions_that_do_not_fit_the_labels_are_an_error(predictions: list[str], labels: list[str]) -> None:
    with pytest.raises(UserError):
        pope_scores(predictions, labels)
