"""Which option a text chooses, and accuracy by type: multiple choice as in MMBench and SEED-Bench.

The reading is that of OpenCompass' exact matching (VLMEvalKit, `matching_util.py`), without its language model for
the texts that stay unreadable: those choose nothing.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tenfold.errors import UserError

LETTERS = ("A", "B", "C", "D", "E")
_MARKS = str.maketrans(dict.fromkeys(".()[],:;!*#{}", " "))
# An option's letter counts among this many last words: before them, "A" is more likely an article.
_LAST_WORDS = 4


def choice_letter(text: str, options: Sequence[str]) -> str | None:
    """The letter of the option that a model's text chooses, or None.

    Read are: the only option letter among the words ("B", "(B)", "The answer is B."), near the end; where no letter
    stands, the only option whose words the text contains ("It is a red circle.").

    Args:
        text: what the model wrote.
        options: their texts, two to five.

    Raises:
        UserError: fewer or more options.
    """
    if not 2 <= len(options) <= len(LETTERS):
        raise UserError("number of options out of range", str(len(options)), f"2 to {len(LETTERS)}")
    words = text.translate(_MARKS).split()
    letters = [letter for letter in LETTERS[: len(options)] if letter in words]
    if len(letters) == 1 and words.index(letters[0]) >= len(words) - _LAST_WORDS:
        return letters[0]
    lowered = text.lower()
    # A text much longer than all options together only talks about them.
    if len(lowered) > 2 * sum(len(option) for option in options):
        return None
    named = [letter for letter, option in zip(LETTERS, options, strict=False) if option.lower() in lowered]
    return named[0] if len(named) == 1 else None


@dataclass(frozen=True)
class ChoiceAnswer:
    """One answered question: the letter chosen (None: unreadable), the right one, and its type."""

    predicted: str | None
    answer: str
    kind: str


@dataclass(frozen=True)
class ChoiceScores:
    """Accuracy in [0, 1]: of all questions, and of each type in alphabetical order; `unread`: letters not found."""

    accuracy: float
    by_kind: dict[str, float]
    unread: int
    count: int


def choice_scores(answers: Iterable[ChoiceAnswer]) -> ChoiceScores:
    """Accuracy in total (over questions, not over types) and by type. Raises UserError without answers."""
    groups: dict[str, list[bool]] = defaultdict(list)
    unread = 0
    for one in answers:
        groups[one.kind].append(one.predicted == one.answer)
        unread += one.predicted is None
    if not groups:
        raise UserError("no predictions to score", "multiple choice", "at least one")
    count = sum(map(len, groups.values()))
    return ChoiceScores(
        accuracy=sum(map(sum, groups.values())) / count,
        by_kind={kind: sum(hits) / len(hits) for kind, hits in sorted(groups.items())},
        unread=unread,
        count=count,
    )
