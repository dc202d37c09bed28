"""Option letters in texts, accuracy by type, and CircularEval, by hand."""

from __future__ import annotations

import random
from itertools import groupby

import pytest

from tenfold import UserError
from tenfold.metrics import ChoiceAnswer, MMBenchAnswer, choice_letter, choice_scores, mmbench_scores

OPTIONS = ("red circle", "blue square", "cross")


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("B", "B"),
        ("B.", "B"),
        ("(B)", "B"),
        ("B. blue square", "B"),
        ("The answer is C.", "C"),
        ("Answer: A", "A"),
        # The letter counts among the last four words only.
        ("A is what I would say", None),
        ("It is a blue square", "B"),
        ("BLUE SQUARE", "B"),
        ("crossing", "C"),
        ("red circle or blue square", None),
        ("A or B", None),
        ("D", None),
        ("b", None),
        ("green", None),
        ("", None),
        # Longer than twice all the options (26 characters): no more read for the options' words.
        ("I can see in this picture that there is a blue square.", None),
    ],
)
def test_letters_are_read_as_by_hand(text: str, letter: str | None) -> None:
    """Fails if two letters or none count as one, an article is taken for A, or an option that is not offered counts."""
    assert choice_letter(text, OPTIONS) == letter


def test_a_letter_wins_over_the_options_words() -> None:
    """Fails if the words are looked at first."""
    assert choice_letter("B. cross", OPTIONS) == "B"
    for options in ((), ("one",), tuple("abcdef")):
        with pytest.raises(UserError, match="number of options"):
            choice_letter("A", options)


def test_accuracy_by_type_is_as_by_hand() -> None:
    """Fails if the total is the mean of the types: SEED-Bench's is that of the questions."""
    answers = [
        ChoiceAnswer("A", "A", "count"), ChoiceAnswer("B", "A", "count"), ChoiceAnswer(None, "A", "count"),
        ChoiceAnswer("C", "C", "place"),
    ]  # fmt: skip
    scores = choice_scores(answers)
    assert (scores.accuracy, scores.unread, scores.count) == (2 / 4, 1, 4)
    assert scores.by_kind == {"count": 1 / 3, "place": 1.0}
    with pytest.raises(UserError, match="no predictions"):
        choice_scores([])


def test_circular_evaluation_is_as_by_hand() -> None:
    """Fails if a question counts that is right in some orders only, or rows are grouped by something else."""
    rows = [
        MMBenchAnswer(5, "A", "A", "x", "l"), MMBenchAnswer(1_000_005, "B", "B", "x", "l"),
        MMBenchAnswer(6, "A", "A", "y", "l"), MMBenchAnswer(1_000_006, "A", "B", "y", "l"),
        MMBenchAnswer(7, "B", "B", "y", "m"), MMBenchAnswer(1_000_007, None, "A", "y", "m"),
        MMBenchAnswer(8, "B", "B", "x", "m"),
    ]  # fmt: skip
    scores = mmbench_scores(rows)
    assert (scores.circular, scores.vanilla) == (2 / 4, 4 / 4)
    assert scores.by_category == {"x": 1.0, "y": 0.0}
    assert scores.by_l2 == {"l": 1 / 2, "m": 1 / 2}
    assert (scores.questions, scores.rows, scores.unread) == (4, 7, 1)
    assert mmbench_scores(rows[1:2]).vanilla is None
    with pytest.raises(UserError, match="no predictions"):
        mmbench_scores([])


def test_circular_evaluation_equals_a_second_implementation() -> None:
    """Sorted and grouped, in any order of the rows. Fails if the order of rows matters."""
    rng = random.Random(0)
    for _ in range(50):
        rows = [
            MMBenchAnswer(turn * 1_000_000 + question, rng.choice("AAAB"), "A")
            for question in range(rng.randint(1, 8))
            for turn in range(rng.randint(1, 4))
        ]
        ordered = sorted(rows, key=lambda row: str(row.index)[-6:].zfill(6))
        groups = [list(group) for _, group in groupby(ordered, key=lambda row: str(row.index)[-6:].zfill(6))]
        right = [set(row.predicted for row in group) == {"A"} for group in groups]
        rng.shuffle(rows)
        assert mmbench_scores(rows).circular == pytest.approx(sum(right) / len(groups))
