"""ScienceQA: option letters by hand, the table against a second implementation."""

from __future__ import annotations

import random

import pytest

from tenfold import UserError
from tenfold.metrics import ScienceQAAnswer, option_letter, scienceqa_scores


@pytest.mark.parametrize(
    ("text", "choices", "option"),
    [
        ("A", 2, 0),
        ("B", 2, 1),
        ("C", 2, None),
        ("E", 5, 4),
        ("B. red", 3, 1),
        ("B: red", 3, None),
        ("B.red", 3, None),
        ("red", 3, None),
        ("", 3, None),
        ("b", 3, None),
        ("So. The answer is C.", 3, 2),
        ("The answer is C", 3, None),
        ("The answer is D.", 3, None),
        ("The answer is A. No: The answer is B.", 3, None),
        ("The answer is Z.", 3, None),
    ],
)
def test_option_letters_are_read_as_llava_does(text: str, choices: int, option: int | None) -> None:
    """Fails if one of the three forms is dropped, or if a letter beyond the choices counts."""
    assert option_letter(text, choices) == option


def test_choices_out_of_range_are_an_error() -> None:
    with pytest.raises(UserError, match="choices"):
        option_letter("A", 6)


def test_the_table_splits_by_subject_context_and_grade_by_hand() -> None:
    """Fails if a question with hint and image is missing from TXT or IMG, or one with neither from NO."""
    answers = [
        ScienceQAAnswer(0, 0, "natural science", "grade1", has_text=True, has_image=True),
        ScienceQAAnswer(1, 0, "natural science", "grade6", has_text=False, has_image=True),
        ScienceQAAnswer(None, 0, "social science", "grade7", has_text=True, has_image=False),
        ScienceQAAnswer(2, 2, "social science", "grade12", has_text=False, has_image=False),
    ]
    scores = scienceqa_scores(answers)
    columns = ("NAT", "SOC", "LAN", "TXT", "IMG", "NO", "G1-6", "G7-12", "average")
    assert tuple(scores.accuracy[name] for name in columns) == (0.5, 0.5, None, 0.5, 0.5, 1.0, 0.5, 0.5, 0.5)
    assert tuple(scores.count[name] for name in columns) == (2, 2, 0, 2, 2, 1, 2, 2, 4)


def test_the_table_equals_a_second_implementation() -> None:
    """Fails if a column counts other questions, or an unreadable prediction as right or not at all."""
    rng = random.Random(0)
    subjects = {"NAT": "natural science", "SOC": "social science", "LAN": "language science"}
    answers = [
        ScienceQAAnswer(
            predicted=rng.choice([None, 0, 1, 2]),
            answer=rng.randrange(3),
            subject=rng.choice(list(subjects.values())),
            grade=f"grade{rng.randint(1, 12)}",
            has_text=rng.random() < 0.5,
            has_image=rng.random() < 0.5,
        )
        for _ in range(500)
    ]
    right: dict[str, int] = {}
    total: dict[str, int] = {}
    for one in answers:
        columns = [name for name, subject in subjects.items() if subject == one.subject]
        columns += ["TXT"] * one.has_text + ["IMG"] * one.has_image
        columns += ["NO"] if not (one.has_text or one.has_image) else []
        columns += ["G1-6" if int(one.grade.removeprefix("grade")) < 7 else "G7-12", "average"]
        for column in columns:
            total[column] = total.get(column, 0) + 1
            right[column] = right.get(column, 0) + (one.predicted == one.answer)
    scores = scienceqa_scores(answers)
    assert scores.count == total
    assert scores.accuracy == {column: right[column] / total[column] for column in total}


def test_no_predictions_is_an_error() -> None:
    with pytest.raises(UserError, match="no predictions"):
        scienceqa_scores([])
