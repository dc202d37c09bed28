"""MME: the reading of answers by hand, scores by hand and against a second implementation of the official script."""

from __future__ import annotations

import random

import pytest

from tenfold import UserError
from tenfold.metrics import MMEAnswer, mme_answer, mme_scores
from tenfold.metrics.mme import COGNITION, PERCEPTION, SUBTASKS


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("Yes", "yes"),
        ("yes.", "yes"),
        ("Yes, there is.", "yes"),
        ("NO", "no"),
        ("No, it is not.", "no"),
        (" no", "no"),
        ("Not", "no"),
        ("Know", "no"),
        ("I do not", "other"),
        ("The answer is yes", "other"),
        (" yes", "yes"),
        ("  yes", "other"),
        ("noyes", "no"),
        ("", "other"),
    ],
)
def test_answers_are_read_by_the_official_rule(text: str, answer: str) -> None:
    """Fails if more or fewer than four characters are read, or blanks are taken off."""
    assert mme_answer(text) == answer


def test_scores_are_as_by_hand() -> None:
    """Three images of a subtask: both right, one right, none. Fails if accuracy+ counts questions instead of images."""
    rows = [
        ("color", "1.jpg", "Yes", "yes"), ("color", "1.jpg", "No", "no"),
        ("color", "2.jpg", "yes", "yes"), ("color", "2.jpg", "Yes", "no"),
        ("color", "3.jpg", "perhaps", "yes"), ("color", "3.jpg", "yes", "no"),
        ("OCR", "1.jpg", "yes", "yes"), ("OCR", "1.jpg", "no", "no"),
        ("code_reasoning", "1.jpg", "no", "yes"), ("code_reasoning", "1.jpg", "no", "no"),
    ]  # fmt: skip
    scores = mme_scores(MMEAnswer(*row) for row in rows)
    assert scores.accuracy == {"color": 3 / 6, "OCR": 1.0, "code_reasoning": 1 / 2}
    assert scores.accuracy_plus == {"color": 1 / 3, "OCR": 1.0, "code_reasoning": 0.0}
    assert scores.points["color"] == pytest.approx(50 + 100 / 3)
    assert scores.perception == pytest.approx(50 + 100 / 3 + 200)
    assert (scores.cognition, scores.other, scores.count) == (50.0, 1, 10)


def test_scores_equal_a_second_implementation() -> None:
    """As the official script: lines of a subtask, two by two. Fails if a subtask goes into the wrong sum."""
    rng = random.Random(0)
    for _ in range(20):
        answers, perception, cognition = [], 0.0, 0.0
        for subtask in SUBTASKS:
            said = [rng.choice(["yes", "no", "Yes, it is", "maybe"]) for _ in range(2 * rng.randint(1, 6))]
            lines = list(zip(said, ["yes", "no"] * (len(said) // 2), strict=True))
            right = [text[:3].lower().rstrip(",") == label for text, label in lines]
            pairs = list(zip(right[::2], right[1::2], strict=True))
            points = 100 * sum(right) / len(right) + 100 * sum(a and b for a, b in pairs) / len(pairs)
            if subtask in (
                "commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning",
            ):  # fmt: skip
                cognition += points
            else:
                perception += points
            answers += [MMEAnswer(subtask, f"{n // 2}.jpg", text, label) for n, (text, label) in enumerate(lines)]
        rng.shuffle(answers)
        scores = mme_scores(answers)
        assert (scores.perception, scores.cognition) == (pytest.approx(perception), pytest.approx(cognition))


def test_a_perfect_model_has_2000_and_800_points() -> None:
    """Fails if a subtask is missing."""
    answers = [
        MMEAnswer(subtask, "1.jpg", label, label) for subtask in (*PERCEPTION, *COGNITION) for label in ("yes", "no")
    ]
    scores = mme_scores(answers)
    assert (scores.perception, scores.cognition) == (2000.0, 800.0)
    assert mme_scores(answers[:2]).cognition is None


@pytest.mark.parametrize(
    "answers",
    [[], [MMEAnswer("smell", "1.jpg", "yes", "yes")], [MMEAnswer("OCR", "1.jpg", "yes", "Yes")]],
)
def test_no_answers_unknown_subtasks_and_labels_are_errors(answers: list[MMEAnswer]) -> None:
    with pytest.raises(UserError):
        mme_scores(answers)
