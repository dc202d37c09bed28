"""POPE: does a model see objects that are not there? (Li et al. 2023, `evaluate.py`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tenfold.errors import UserError

SUBSETS = ("random", "popular", "adversarial")


@dataclass(frozen=True)
class PopeScores:
    """Scores of one subset in [0, 1], "yes" being the positive class.

    A ratio whose denominator is 0 (no "yes" predicted: precision; no "yes" among the labels: recall) is 0.
    """

    accuracy: float
    precision: float
    recall: float
    f1: float
    yes_ratio: float
    count: int


def pope_answer(text: str) -> str:
    """A model's text as "yes" or "no": "no" if its first sentence has the word No, no or not, else "yes"."""
    words = text.split(".")[0].replace(",", "").split(" ")
    return "no" if {"No", "no", "not"} & set(words) else "yes"


def pope_scores(predictions: Sequence[str], labels: Sequence[str]) -> PopeScores:
    """Scores of one subset.

    Args:
        predictions: the model's texts, in the order of the questions; read by `pope_answer`.
        labels: "yes" or "no" each.

    Raises:
        UserError: no predictions, not one per label, or a label that is neither "yes" nor "no".
    """
    if not predictions or len(predictions) != len(labels):
        given = f"{len(predictions)} predictions, {len(labels)} labels"
        raise UserError("predictions do not match labels", given, "one prediction for each label, at least one")
    if unknown := set(labels) - {"yes", "no"}:
        raise UserError("unknown POPE label", repr(sorted(unknown)[0]), '"yes" or "no"')
    said_yes = [pope_answer(text) == "yes" for text in predictions]
    is_yes = [label == "yes" for label in labels]
    hits = sum(said and true for said, true in zip(said_yes, is_yes, strict=True))
    precision = hits / sum(said_yes) if any(said_yes) else 0.0
    recall = hits / sum(is_yes) if any(is_yes) else 0.0
    return PopeScores(
        accuracy=sum(said == true for said, true in zip(said_yes, is_yes, strict=True)) / len(labels),
        precision=precision,
        recall=recall,
        f1=2 * precision * recall / (precision + recall) if hits else 0.0,
        yes_ratio=sum(said_yes) / len(said_yes),
        count=len(labels),
    )


def mean_f1(subsets: Mapping[str, PopeScores]) -> float:
    """POPE's single figure: the mean F1 of the random, popular and adversarial subset.

    Raises:
        UserError: a subset is missing.
    """
    missing = [name for name in SUBSETS if name not in subsets]
    if missing:
        raise UserError("POPE subset missing", ", ".join(missing), ", ".join(SUBSETS))
    return sum(subsets[name].f1 for name in SUBSETS) / len(SUBSETS)
