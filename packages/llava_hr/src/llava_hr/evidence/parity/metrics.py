"""Golden case `metrics`: scores of made-up answers, and the order of the sampler."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from llava_hr.evidence.parity.text import compare_sampler
from tenfold.metrics import (
    box_ious,
    box_scores,
    normalise_evalai,
    ocrvqa_accuracy,
    parse_box,
    pope_scores,
    textvqa_accuracy,
)

if TYPE_CHECKING:
    from tenfold.ledger.goldens import Comparison, Computation

EXACT, SCORES = (0.0, 0.0), (1e-6, 0.0)
_POPE = ("accuracy", "precision", "recall", "f1", "yes_ratio")


def _metrics(case: Mapping[str, Any], tensors: Mapping[str, Tensor], compare: Comparison) -> None:
    config = case["config"]
    answers = [(one["pred_answer"], one["gt_answers"]) for one in config["textvqa"]]
    compare.equal("textvqa answers", [normalise_evalai(text) for text, _ in answers], config["processed"])
    _close(compare, tensors, "textvqa.scores", [textvqa_accuracy(text, humans) for text, humans in answers])

    predictions, books = zip(*config["ocrvqa"], strict=True)
    _close(compare, tensors, "ocrvqa.score", [ocrvqa_accuracy(predictions, books)])

    texts, labels = zip(*config["pope"], strict=True)
    scores = pope_scores(texts, labels)
    _close(compare, tensors, "pope", [getattr(scores, name) for name in _POPE])

    texts, boxes = zip(*config["rec"], strict=True)
    found = [parse_box(text) for text in texts]
    compare.close("rec.boxes", torch.tensor(found), tensors["out/rec.boxes"], EXACT)
    compare.close("rec.iou", torch.from_numpy(box_ious(found, boxes)), tensors["out/rec.iou"], SCORES)
    _close(compare, tensors, "rec.accuracy", [100 * box_scores(texts, boxes).accuracy])

    compare_sampler(case, tensors, compare)


def _close(compare: Comparison, tensors: Mapping[str, Tensor], name: str, ours: list[float]) -> None:
    compare.close(name, torch.tensor(ours, dtype=torch.float64), tensors[f"out/{name}"], SCORES)


COMPUTATIONS: dict[str, Computation] = {"metrics": _metrics}
