"""Metrics of the benchmarks, with the official answer handling; bootstrap intervals."""

from tenfold.metrics.boxes import BoxScores, box_ious, box_scores, parse_box
from tenfold.metrics.choice import ChoiceAnswer, ChoiceScores, choice_letter, choice_scores
from tenfold.metrics.gqa import GQAAnswer, GQAScores, gqa_scores
from tenfold.metrics.intervals import Interval, bootstrap
from tenfold.metrics.mmbench import MMBenchAnswer, MMBenchScores, mmbench_scores
from tenfold.metrics.mme import MMEAnswer, MMEScores, mme_answer, mme_scores
from tenfold.metrics.ocrvqa import ocrvqa_accuracy, ocrvqa_match
from tenfold.metrics.pope import PopeScores, mean_f1, pope_answer, pope_scores
from tenfold.metrics.retrieval import retrieval_recall
from tenfold.metrics.scienceqa import ScienceQAAnswer, ScienceQAScores, option_letter, scienceqa_scores
from tenfold.metrics.textvqa import normalise_evalai, textvqa_accuracy
from tenfold.metrics.vqa import exact_match, normalise_answer, vqa_accuracy

__all__ = [
    "BoxScores",
    "ChoiceAnswer",
    "ChoiceScores",
    "GQAAnswer",
    "GQAScores",
    "Interval",
    "MMBenchAnswer",
    "MMBenchScores",
    "MMEAnswer",
    "MMEScores",
    "PopeScores",
    "ScienceQAAnswer",
    "ScienceQAScores",
    "bootstrap",
    "box_ious",
    "box_scores",
    "choice_letter",
    "choice_scores",
    "exact_match",
    "gqa_scores",
    "mean_f1",
    "mmbench_scores",
    "mme_answer",
    "mme_scores",
    "normalise_answer",
    "normalise_evalai",
    "ocrvqa_accuracy",
    "ocrvqa_match",
    "option_letter",
    "parse_box",
    "pope_answer",
    "pope_scores",
    "retrieval_recall",
    "scienceqa_scores",
    "textvqa_accuracy",
    "vqa_accuracy",
]
