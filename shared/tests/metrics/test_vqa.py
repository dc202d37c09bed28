"""VQA accuracy against hand-computed values and a second implementation of the official rules."""

from __future__ import annotations

import hashlib
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tenfold import UserError
from tenfold.metrics import exact_match, normalise_answer, vqa_accuracy
from tenfold.metrics import vqa as module


@pytest.mark.parametrize(
    ("answer", "normal"),
    [
        ("The red circle.", "red circle"),
        ("a", ""),
        ("An Apple", "apple"),
        ("none", "0"),
        ("Ten", "10"),
        ("eleven", "eleven"),
        ("dont", "don't"),
        ("couldnt've", "couldn't've"),
        ("couldn'tve", "couldn't've"),
        ("1,000", "1000"),
        ("1,000 km/h", "1000 kmh"),
        ("red,blue", "red blue"),
        ("red, blue", "red blue"),
        ("black/white", "black white"),
        ("black / white", "black white"),
        ("t-shirt", "t shirt"),
        ("yes!", "yes"),
        ("3.5", "3.5"),
        ("3.", "3"),
        ("u.s.a.", "usa"),
        ("mr.5", "mr.5"),
        ("  two \t dogs ", "2 dogs"),
        ("what's", "what's"),
        ("it's 5 o'clock", "it's 5 o'clock"),
        ("oclock", "o'clock"),
        ("50%", "50%"),
    ],
)
def test_answers_are_normalised_as_by_hand(answer: str, normal: str) -> None:
    """Fails if a step of the normalisation is left out or done in another order."""
    assert normalise_answer(answer) == normal


DIGEST_ENTRIES = 118
DIGEST = "d014a77f6b8ca83c9706477ab40d0bb1b1aaeda26d7fcb50a20e76c9c9abe8cd"


def test_contractions_are_the_official_ones() -> None:
    """The digest was taken from the table of the official evaluation, without its two entries that change nothing.

    Fails if one contraction is lost or spelt differently.
    """
    table = sorted(module._CONTRACTED.items())
    assert len(table) == DIGEST_ENTRIES
    assert hashlib.sha256(repr(table).encode()).hexdigest() == DIGEST


def second_implementation(text: str) -> str:
    """The official steps, written once more, character by character."""
    number_with_comma = any(
        mark == "," and before.isdecimal() and after.isdecimal()
        for before, mark, after in zip(text, text[1:], text[2:], strict=False)
    )
    padded = f"\0{text}\0"
    touching = {m for left, m, right in zip(padded, padded[1:], padded[2:], strict=False) if " " in (left, right)}
    out = ""
    for character in text:
        if character not in '()[]{}<>;/"=+\\_-@`,?!':
            out += character
        elif character not in touching and not number_with_comma:
            out += " "
    kept = ""
    for place, character in enumerate(out):
        followed_by_digit = place + 1 < len(out) and re.match(r"\d", out[place + 1])
        if character != "." or followed_by_digit:
            kept += character
    numbers = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
    words = []
    for word in kept.lower().split():
        if word == "none":
            word = "0"
        elif word in numbers:
            word = str(numbers.index(word))
        if word not in ("a", "an", "the"):
            words.append({"dont": "don't", "isnt": "isn't", "whats": "what's"}.get(word, word))
    return " ".join(words)


PIECES = st.sampled_from(
    [*"ab 1, .'-/?!;(\"", " the ", " a ", "two", "dont", "isnt", "whats", "1,000", "3.5", "None", "\n", "\t", "é", "²"]
)


@settings(max_examples=500, deadline=None)
@given(st.lists(PIECES, max_size=14).map("".join))
def test_normalisation_equals_a_second_implementation(text: str) -> None:
    """Fails if a mark, a full stop or a comma in a number is treated otherwise than the official code does."""
    assert normalise_answer(text) == second_implementation(text)


def test_only_the_first_32_full_stops_go_as_officially() -> None:
    """Fails if the `count` of the substitution is dropped: the official call passes re.UNICODE, 32, in its place."""
    assert normalise_answer("x. " * 40).split().count("x.") == 8


@pytest.mark.parametrize(
    ("prediction", "answers", "expected"),
    [
        ("red", ["red"] * 10, 1.0),
        ("red", ["red"] * 4 + ["blue"] * 6, 1.0),
        # 3 agree: 3 times out of 10 only 2 are left, else 3.
        ("red", ["red"] * 3 + ["blue"] * 7, (3 * 2 / 3 + 7) / 10),
        ("red", ["red"] * 2 + ["blue"] * 8, (2 * 1 / 3 + 8 * 2 / 3) / 10),
        ("red", ["red"] + ["blue"] * 9, 9 / 3 / 10),
        ("green", ["red"] * 10, 0.0),
        # Fewer than ten humans: the same rule.
        ("red", ["red"] * 4, 1.0),
        ("red", ["red"] * 3, 2 / 3),
        ("red", ["red", "blue"], (0 + 1 / 3) / 2),
        ("red", ["red"], 0.0),
        # Answers are normalised when the humans disagree, and only then.
        ("The RED!", ["red"] * 9 + ["a red"], 1.0),
        ("2", ["two"] * 5 + ["2"] * 5, 1.0),
        ("2", ["two"] * 10, 0.0),
        ("two\n", ["two"] * 10, 1.0),
        ("two", [" two"] * 10, 1.0),
    ],
)
def test_accuracy_is_as_by_hand(prediction: str, answers: list[str], expected: float) -> None:
    """Fails if no answer is left out, if the cap is missing, or if unanimous answers are normalised."""
    assert vqa_accuracy(prediction, answers) == pytest.approx(expected, abs=1e-12)


def test_no_human_answers_is_an_error() -> None:
    with pytest.raises(UserError, match="no human answers"):
        vqa_accuracy("red", [])


def test_exact_match_ignores_case_and_a_last_full_stop() -> None:
    """Fails if the prediction's full stop or its case counts."""
    assert exact_match("Red.", "red")
    assert exact_match(" red ", "red")
    assert not exact_match("dark red", "red")
