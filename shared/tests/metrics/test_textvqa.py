"""TextVQA accuracy of the M4C evaluator: normalisation and soft accuracy by hand, and where it differs from VQA's."""

from __future__ import annotations

import pytest

from tenfold import UserError
from tenfold.metrics import normalise_answer, normalise_evalai, textvqa_accuracy, vqa_accuracy


@pytest.mark.parametrize(
    ("answer", "normal"),
    [
        ("Dr. Pepper", "dr pepper"),
        ("The Daily News", "daily news"),
        ("a", ""),
        ("Two", "2"),
        ("none", "0"),
        ("eleven", "eleven"),
        ("1,000", "1000"),
        ("red, blue", "red blue"),
        ("red,blue", "redblue"),
        ("What?", "what"),
        ("what?now", "whatnow"),
        ("Nikon's", "nikon 's"),
        ("it's", "it 's"),
        ("dont", "don't"),
        ("couldnt've", "couldn't've"),
        ("12:30", "12:30"),
        ("3.5", "3.5"),
        ("u.s.a.", "usa"),
        ("coca-cola", "coca cola"),
        ("$5 - $10", "$5 $10"),
        ("50%", "50%"),
        (" new\nyork\ttimes ", "new york times"),
    ],
)
def test_answers_are_normalised_as_by_hand(answer: str, normal: str) -> None:
    """Fails if commas and question marks stay, "'s" is not set apart, or a step of VQA's normalisation is left out."""
    assert normalise_evalai(answer) == normal


@pytest.mark.parametrize(
    ("prediction", "answers", "expected"),
    [
        ("nokia", ["nokia"] * 10, 1.0),
        ("Nokia.", ["nokia"] * 4 + ["unanswerable"] * 6, 1.0),
        # 3 agree: leaving one of them out (3 ways of 10) leaves 2.
        ("nokia", ["nokia"] * 3 + ["x"] * 7, (3 * 2 / 3 + 7) / 10),
        ("nokia", ["nokia"] * 2 + ["x"] * 8, (2 * 1 / 3 + 8 * 2 / 3) / 10),
        ("nokia", ["nokia"] + ["x"] * 9, 0.3),
        ("sony", ["nokia"] * 10, 0.0),
        # Different spellings of one answer are one answer.
        ("two", ["2", "two", "Two", "the two"] + ["x"] * 6, 1.0),
        ("", ["a"] * 10, 1.0),
    ],
)
def test_accuracy_is_as_by_hand(prediction: str, answers: list[str], expected: float) -> None:
    """Fails if no answer is left out, the cap is missing, or spellings are counted apart."""
    assert textvqa_accuracy(prediction, answers) == pytest.approx(expected, abs=1e-12)


def test_unanimous_answers_are_normalised_too() -> None:
    """The difference from VQA's rule. Fails if TextVQA is scored by `vqa_accuracy`."""
    assert (textvqa_accuracy("Two", ["two"] * 10), vqa_accuracy("Two", ["two"] * 10)) == (1.0, 0.0)
    assert (normalise_evalai("red,blue"), normalise_answer("red,blue")) == ("redblue", "red blue")


@pytest.mark.parametrize("count", [0, 1, 9, 11])
def test_other_than_ten_answers_are_an_error(count: int) -> None:
    with pytest.raises(UserError, match=f"{count} human answers"):
        textvqa_accuracy("red", ["red"] * count)
