"""The scores of the three tasks, from the generated text only (section 7).

ScienceQA's official evaluation looks for the letter in prompt and answer together and guesses where it finds none; here
the answer alone is read, and one that cannot be read is wrong and counted apart.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from eas.data.records import Record
from eas.data.scienceqa import LETTERS, Problem
from tenfold.data.formats.scienceqa import ScienceQASample
from tenfold.metrics.scienceqa import ScienceQAAnswer, scienceqa_scores
from tenfold.metrics.vqa import normalise_answer

_SENTENCE = re.compile(r"answer is \(?([A-Z])\)?\b", re.IGNORECASE)
_LETTER = re.compile(r"\(?([A-E])\)?(?:[.:,)\s].*)?", re.DOTALL)


def option(text: str, choices: int) -> int | None:
    """The option that an answer names, as its place; None where it names none, or another one too.

    Read are "B", "B.", "(B)", "B. red" and one "The answer is B." of a text; letters beyond the choices are none.
    """
    found = {letter.upper() for letter in _SENTENCE.findall(text)}
    if not found and (whole := _LETTER.fullmatch(text.strip())):
        found = {whole[1]}
    letters = [letter for letter in found if letter in LETTERS[:choices]]
    return LETTERS.index(letters[0]) if len(found) == 1 and letters else None


def scienceqa(problems: Sequence[Problem], texts: Mapping[str, str]) -> dict[str, Any]:
    """Accuracy in per cent by subject, context and grade, and in all; how many answers could not be read."""
    samples = [one.sample for one in problems]
    return scienceqa_table(samples, {one.id: option(texts[one.id], len(one.choices)) for one in samples})


def scienceqa_table(samples: Sequence[ScienceQASample], chosen: Mapping[str, int | None]) -> dict[str, Any]:
    """The same of options that are known, as places; None: could not be read."""
    answers = [
        ScienceQAAnswer(
            predicted=chosen[one.id],
            answer=one.answer,
            subject=one.subject,
            grade=one.grade,
            has_text=bool(one.hint),
            has_image=one.picture is not None,
        )
        for one in samples
    ]
    table = scienceqa_scores(answers).accuracy
    found: dict[str, Any] = {name: None if value is None else 100 * value for name, value in table.items()}
    return {**found, "unread": sum(chosen[one.id] is None for one in samples)}


def aid(records: Sequence[Record], texts: Mapping[str, str]) -> dict[str, Any]:
    """Exact match in per cent, after VQA's normalisation."""
    right = [_normal(texts[record.id]) == _normal(record.answer) for record in records]
    return {"accuracy": 100 * fmean(right)}


def slake(records: Sequence[Record], texts: Mapping[str, str]) -> dict[str, Any]:
    """Per cent: open and closed answers that hold the right one; precision, recall and F1 of the open ones' words."""
    scores: dict[str, Any] = {}
    for kind in ("OPEN", "CLOSED"):
        asked = [record for record in records if record.answer_type == kind]
        held = [_normal(record.answer) in _normal(texts[record.id]) for record in asked]
        scores[kind.lower()] = 100 * fmean(held) if held else None
    held = [_normal(record.answer) in _normal(texts[record.id]) for record in records]
    scores["all"] = 100 * fmean(held)
    overlaps = [overlap(texts[one.id], one.answer) for one in records if one.answer_type == "OPEN"]
    for name, values in zip(("precision", "recall", "f1"), zip(*overlaps, strict=True), strict=False):
        scores[name] = 100 * fmean(values)
    return scores


def overlap(text: str, answer: str) -> tuple[float, float, float]:
    """Precision, recall and F1 of the words that a text shares with the answer."""
    ours, theirs = (Counter(_normal(one).split()) for one in (text, answer))
    shared = sum((ours & theirs).values())
    if not shared:
        return 0.0, 0.0, 0.0
    precision, recall = shared / sum(ours.values()), shared / sum(theirs.values())
    return precision, recall, 2 * precision * recall / (precision + recall)


def _normal(text: str) -> str:
    return normalise_answer(text).strip().lower()
