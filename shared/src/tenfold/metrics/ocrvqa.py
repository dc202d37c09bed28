"""OCR-VQA accuracy as the M4C evaluator computes it: equal after stripping, in lower case (Mishra et al. 2019)."""

from __future__ import annotations

from collections.abc import Sequence

from tenfold.errors import UserError


def ocrvqa_match(prediction: str, answer: str) -> bool:
    """Whether a prediction is the answer, but for space around it and capitals."""
    return prediction.strip().lower() == answer.strip().lower()


def ocrvqa_accuracy(predictions: Sequence[str], answers: Sequence[str]) -> float:
    """The share of predictions that match, in [0, 1].

    Raises:
        UserError: no predictions, or not one for each answer.
    """
    if not predictions or len(predictions) != len(answers):
        given = f"{len(predictions)} predictions, {len(answers)} answers"
        raise UserError("predictions do not match answers", given, "one prediction for each answer, at least one")
    return sum(map(ocrvqa_match, predictions, answers)) / len(answers)
