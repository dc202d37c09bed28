"""MMBench's CircularEval (Liu et al. 2023): a question is right only if it is in every order of its options.

Rows whose index is equal modulo one million ask the same question, with the options turned round.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from tenfold.errors import UserError

CIRCLE = 1_000_000


@dataclass(frozen=True)
class MMBenchAnswer:
    """One answered row: its index, the letter chosen (None: unreadable), the right one, and the leaderboard's types."""

    index: int
    predicted: str | None
    answer: str
    category: str = ""
    l2_category: str = ""


@dataclass(frozen=True)
class MMBenchScores:
    """Ratios in [0, 1].

    Args:
        circular: questions right in every row over questions: the published figure.
        vanilla: the same over first rows only (index below one million); None without such rows.
        by_category, by_l2: `circular` by type.
        questions, rows: how many.
        unread: rows without a readable letter; they are wrong.
    """

    circular: float
    vanilla: float | None
    by_category: dict[str, float]
    by_l2: dict[str, float]
    questions: int
    rows: int
    unread: int


def mmbench_scores(answers: Iterable[MMBenchAnswer]) -> MMBenchScores:
    """CircularEval. Raises UserError without answers."""
    answers = list(answers)
    if not answers:
        raise UserError("no predictions to score", "MMBench", "at least one")
    circles: dict[int, list[MMBenchAnswer]] = defaultdict(list)
    for one in answers:
        circles[one.index % CIRCLE].append(one)
    by_category: dict[str, list[bool]] = defaultdict(list)
    by_l2: dict[str, list[bool]] = defaultdict(list)
    hits = []
    for rows in circles.values():
        hit = all(row.predicted == row.answer for row in rows)
        hits.append(hit)
        by_category[rows[0].category].append(hit)
        by_l2[rows[0].l2_category].append(hit)
    first = [one.predicted == one.answer for one in answers if one.index < CIRCLE]
    return MMBenchScores(
        circular=sum(hits) / len(hits),
        vanilla=sum(first) / len(first) if first else None,
        by_category=_means(by_category),
        by_l2=_means(by_l2),
        questions=len(hits),
        rows=len(answers),
        unread=sum(one.predicted is None for one in answers),
    )


def _means(groups: dict[str, list[bool]]) -> dict[str, float]:
    return {name: sum(hits) / len(hits) for name, hits in sorted(groups.items())}
