"""ScienceQA accuracy: LLaVA's reading of an option letter, and the official table (`evaluate_acc.py`).

The table splits the test set by subject (NAT, SOC, LAN), by context (TXT: a text hint, IMG: an image, NO: neither;
a question with both counts in TXT and in IMG) and by grade (G1-6, G7-12).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tenfold.errors import UserError

LETTERS = ("A", "B", "C", "D", "E")
# The official pattern's last full stop is no escaped one: any character will do, but one must follow the letter.
_SENTENCE = re.compile(r"The answer is ([A-Z]).")

_SUBJECTS = {"NAT": "natural science", "SOC": "social science", "LAN": "language science"}
_LOWER = frozenset(f"grade{number}" for number in range(1, 7))
_UPPER = frozenset(f"grade{number}" for number in range(7, 13))
COLUMNS = ("NAT", "SOC", "LAN", "TXT", "IMG", "NO", "G1-6", "G7-12", "average")


@dataclass(frozen=True)
class ScienceQAAnswer:
    """One scored question: the option chosen (None: unreadable), the right one, and what the table splits by."""

    predicted: int | None
    answer: int
    subject: str
    grade: str
    has_text: bool
    has_image: bool


@dataclass(frozen=True)
class ScienceQAScores:
    """Accuracy in [0, 1] and number of questions per column of COLUMNS; a column without questions has None."""

    accuracy: dict[str, float | None]
    count: dict[str, int]


def option_letter(text: str, choices: int) -> int | None:
    """The option that a model's text chooses, as a place in the list of choices, or None.

    Read are: a letter alone ("B"), a letter with its option ("B. red"), and the only "The answer is B." of a text.

    Args:
        text: what the model wrote.
        choices: the number of options, 1 to 5.

    Raises:
        UserError: `choices` outside [1, 5].
    """
    if not 1 <= choices <= len(LETTERS):
        raise UserError("number of choices out of range", str(choices), f"1 to {len(LETTERS)}")
    letter: str | None
    if text in LETTERS:
        letter = text
    elif text[:1] in LETTERS and text[1:3] == ". ":
        letter = text[0]
    else:
        found = _SENTENCE.findall(text)
        letter = found[0] if len(found) == 1 else None
    return LETTERS.index(letter) if letter and letter in LETTERS[:choices] else None


def scienceqa_scores(answers: Iterable[ScienceQAAnswer]) -> ScienceQAScores:
    """The official table. An unreadable prediction is wrong.

    Raises:
        UserError: no answers.
    """
    answers = list(answers)
    if not answers:
        raise UserError("no predictions to score", "ScienceQA", "at least one")
    groups: dict[str, Sequence[ScienceQAAnswer]] = {
        column: [one for one in answers if one.subject == subject] for column, subject in _SUBJECTS.items()
    }
    groups["TXT"] = [one for one in answers if one.has_text]
    groups["IMG"] = [one for one in answers if one.has_image]
    groups["NO"] = [one for one in answers if not one.has_text and not one.has_image]
    groups["G1-6"] = [one for one in answers if one.grade in _LOWER]
    groups["G7-12"] = [one for one in answers if one.grade in _UPPER]
    groups["average"] = answers
    return ScienceQAScores(
        accuracy={column: _accuracy(groups[column]) for column in COLUMNS},
        count={column: len(groups[column]) for column in COLUMNS},
    )


def _accuracy(answers: Sequence[ScienceQAAnswer]) -> float | None:
    return sum(one.predicted == one.answer for one in answers) / len(answers) if answers else None
