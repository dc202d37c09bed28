"""The measures of referring segmentation (section 7), and those of gRefCOCO.

    mIoU  the mean of the samples' IoU, in per cent
    oIoU  the sum of intersections over the sum of unions, in per cent
    P@X   the share of samples with IoU > X, in per cent

IoU is (I + 1e-10) / (U + 1e-10): two empty masks agree. One sample is one sentence about one object.
gRefCOCO, whose sentences may refer to several objects or to none (as its authors' ReLA counts):

    gIoU  mean IoU, where a sentence without a target counts 1 if nothing is predicted, else 0
    cIoU  sum I / sum U, where a sentence without a target that gets a prediction adds its pixels to U
    N-acc, T-acc  sentences without and with a target that are recognised as such
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from tenfold import UserError

_SMOOTH = 1e-10
THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.9)
# Of gRefCOCO, where the threshold itself counts.
GENERAL_THRESHOLDS = (0.7, 0.8, 0.9)


class Overlap(NamedTuple):
    """Pixels of one sample.

    Attributes:
        intersection, union: of prediction and truth. predicted, truth: of each.
    """

    intersection: int
    union: int
    predicted: int
    truth: int

    @property
    def iou(self) -> float:
        """(I + 1e-10) / (U + 1e-10)."""
        return (self.intersection + _SMOOTH) / (self.union + _SMOOTH)


def overlap(predicted: np.ndarray, truth: np.ndarray) -> Overlap:
    """Count the pixels of two bool masks of one shape."""
    both = int(np.count_nonzero(predicted & truth))
    ours, theirs = int(np.count_nonzero(predicted)), int(np.count_nonzero(truth))
    return Overlap(both, ours + theirs - both, ours, theirs)


def referring_scores(samples: Sequence[Overlap], thresholds: Iterable[float] = THRESHOLDS) -> dict[str, float]:
    """mIoU, oIoU and P@X in per cent.

    Raises:
        UserError: no sample.
    """
    _some(samples)
    ious = [sample.iou for sample in samples]
    union = sum(sample.union for sample in samples)
    overall = (sum(sample.intersection for sample in samples) + _SMOOTH) / (union + _SMOOTH)
    precision = {f"P@{x:g}": 100 * sum(iou > x for iou in ious) / len(ious) for x in thresholds}
    return {"mIoU": 100 * math.fsum(ious) / len(ious), "oIoU": 100 * overall, **precision}


def general_scores(samples: Sequence[Overlap]) -> dict[str, float]:
    """gIoU, cIoU, N-acc, T-acc and Pr@X in per cent; an accuracy without samples of its kind is left out.

    Raises:
        UserError: no sample.
    """
    _some(samples)
    ious, intersection, union = [], 0, 0
    for sample in samples:
        if not sample.truth:
            ious.append(0.0 if sample.predicted else 1.0)
        else:
            ious.append(sample.intersection / sample.union)
        intersection += sample.intersection
        union += sample.union
    scores = {"gIoU": 100 * math.fsum(ious) / len(ious), "cIoU": 100 * intersection / union if union else 100.0}
    empty = [sample for sample in samples if not sample.truth]
    aimed = [(sample, iou) for sample, iou in zip(samples, ious, strict=True) if sample.truth]
    if empty:
        scores["N-acc"] = 100 * sum(not sample.predicted for sample in empty) / len(empty)
    if aimed:
        scores["T-acc"] = 100 * sum(sample.predicted > 0 for sample, _ in aimed) / len(aimed)
        scores |= {f"Pr@{x:g}": 100 * sum(iou >= x for _, iou in aimed) / len(aimed) for x in GENERAL_THRESHOLDS}
    return scores


def _some(samples: Sequence[Overlap]) -> None:
    if not samples:
        raise UserError("nothing to score", "evaluation", "at least one sentence")
