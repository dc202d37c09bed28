"""TextVQA accuracy as the M4C evaluator computes it, which LLaVA uses (Singh et al. 2019; Hu et al. 2020).

VQA's soft accuracy against ten humans, with two differences: answers are always normalised, also when the humans
agree, and the normalisation begins by dropping commas and question marks and setting "'s" apart.
"""

from __future__ import annotations

from collections.abc import Sequence

from tenfold.errors import UserError
from tenfold.metrics.vqa import normalise_answer

HUMANS = 10


def normalise_evalai(answer: str) -> str:
    """An answer in the form that the M4C evaluator compares, and that LLaVA submits to VQAv2's and VizWiz's servers."""
    text = answer.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()
    return normalise_answer(text.replace("\n", " ").replace("\t", " ").strip())


def textvqa_accuracy(prediction: str, answers: Sequence[str]) -> float:
    """How well one prediction agrees with the ten human answers, in [0, 1].

    Returns:
        The mean over left-out answers of min(1, matches among the other nine / 3).

    Raises:
        UserError: other than ten answers.
    """
    if len(answers) != HUMANS:
        raise UserError(f"{len(answers)} human answers", f"prediction {prediction!r}", str(HUMANS))
    predicted = normalise_evalai(prediction)
    matches = [normalise_evalai(answer) == predicted for answer in answers]
    total = sum(matches)
    return sum(min(1.0, (total - match) / 3) for match in matches) / HUMANS
