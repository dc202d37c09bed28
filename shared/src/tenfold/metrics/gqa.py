"""GQA accuracy: exact match, and its official split into open and binary questions (Hudson and Manning 2019)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tenfold.errors import UserError
from tenfold.metrics.vqa import exact_match

# The structural type of open questions; all others ask for yes or no, or for one of two.
OPEN = "query"


@dataclass(frozen=True)
class GQAAnswer:
    """One answered question; `structural` is its type ("query", "verify", ...) or None where unknown."""

    prediction: str
    answer: str
    structural: str | None = None


@dataclass(frozen=True)
class GQAScores:
    """Accuracies in [0, 1]; `open` and `binary` are None without questions of that type."""

    accuracy: float
    open: float | None
    binary: float | None
    count: int


def gqa_scores(answers: Iterable[GQAAnswer]) -> GQAScores:
    """Exact match after a trailing full stop is taken off the prediction, in lower case.

    Raises:
        UserError: no answers.
    """
    answers = list(answers)
    if not answers:
        raise UserError("no predictions to score", "GQA", "at least one")
    known = [one for one in answers if one.structural is not None]
    return GQAScores(
        accuracy=sum(exact_match(one.prediction, one.answer) for one in answers) / len(answers),
        open=_accuracy([one for one in known if one.structural == OPEN]),
        binary=_accuracy([one for one in known if one.structural != OPEN]),
        count=len(answers),
    )


def _accuracy(answers: Sequence[GQAAnswer]) -> float | None:
    return sum(exact_match(one.prediction, one.answer) for one in answers) / len(answers) if answers else None
