"""Metrics of the benchmarks, with the official answer handling: VQA, ScienceQA, POPE; bootstrap intervals."""

from tenfold.metrics.intervals import Interval, bootstrap
from tenfold.metrics.pope import PopeScores, mean_f1, pope_answer, pope_scores
from tenfold.metrics.scienceqa import ScienceQAAnswer, ScienceQAScores, option_letter, scienceqa_scores
from tenfold.metrics.vqa import exact_match, normalise_answer, vqa_accuracy

__all__ = [
    "Interval",
    "PopeScores",
    "ScienceQAAnswer",
    "ScienceQAScores",
    "bootstrap",
    "exact_match",
    "mean_f1",
    "normalise_answer",
    "option_letter",
    "pope_answer",
    "pope_scores",
    "scienceqa_scores",
    "vqa_accuracy",
]
