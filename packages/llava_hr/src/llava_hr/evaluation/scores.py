"""Scores that Tenfold lacks: ScienceQA as the authors read an answer, the miniature's questions by kind."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence

from tenfold.data.benchmark_scores import Scores
from tenfold.data.formats import ScienceQASample, VQAv2Sample

LETTERS = ("A", "B", "C", "D", "E")
# A text as short as this is a letter or nothing.
_SHORT = 3
_SENTENCE = re.compile(r"The answer is ([A-Z]).")


def scienceqa_letter(text: str, choices: int) -> int | None:
    """The option that a text chooses, as a place in the list of choices, or None.

    The authors' reading: a letter alone; else, in a text of three characters and more, its first character where that
    is a letter from A to E ("Blue" is B: LLaVA's own reading wants ". " behind it); else the only "The answer is B." of
    the text.

    Args:
        text: what the model wrote.
        choices: the number of options.
    """
    if text in LETTERS:
        letter = text
    elif len(text) >= _SHORT and text[0] in LETTERS:
        letter = text[0]
    else:
        found = _SENTENCE.findall(text)
        letter = found[0] if len(found) == 1 else ""
    return LETTERS.index(letter) if letter in LETTERS[:choices] else None


def score_scienceqa(samples: Sequence[ScienceQASample], texts: Sequence[str]) -> Scores:
    """Accuracy of the option, by the authors' reading of it."""
    chosen = [scienceqa_letter(text, len(sample.choices)) for sample, text in zip(samples, texts, strict=True)]
    hits = [letter == sample.answer for letter, sample in zip(chosen, samples, strict=True)]
    return {"accuracy": _mean(hits), "unread": sum(letter is None for letter in chosen), "count": len(samples)}


def score_mini(samples: Sequence[VQAv2Sample], texts: Sequence[str]) -> Scores:
    """Share of right words in total, of coarse and of fine questions, and by kind.

    A sample's question type is "coarse/shape" and so on; its answers are all the same word.
    """
    groups: dict[str, list[bool]] = defaultdict(list)
    for sample, text in zip(samples, texts, strict=True):
        if sample.annotation is None:
            return {}
        right = text.strip().rstrip(".").lower() == sample.annotation.answers[0].lower()
        kind = sample.annotation.question_type
        for group in dict.fromkeys(("accuracy", kind.partition("/")[0], kind)):
            groups[group].append(right)
    return {**{group: _mean(hits) for group, hits in groups.items()}, "count": len(samples)}


def _mean(hits: Sequence[bool]) -> float:
    return sum(hits) / len(hits)
