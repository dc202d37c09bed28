"""Golden cases around the network: sentences, pictures, schedules, measures, REFER's conversion, names of weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dit_sam.data.refer import converted, parse_annotations, parse_references
from dit_sam.data.words import swapped
from dit_sam.frame import Frame, fit, foreground, picture, target
from dit_sam.scores import overlap, referring_scores
from dit_sam.text_encoder import Vocabulary
from dit_sam.training.schedule import cosine_rate, step_rate, warm_cosine_rate
from tenfold.ledger.goldens import Comparison

Case = Mapping[str, Any]
Tensors = Mapping[str, Tensor]


def double(numbers: Any) -> Tensor:
    """Python's numbers without rounding them to float32, as a tensor of them would by default."""
    return torch.tensor(numbers, dtype=torch.float64)


def _text(case: Case, tensors: Tensors, compare: Comparison) -> None:
    given = case["config"]
    sentences = Vocabulary(given["vocab"], case["case"]).encode(given["sentences"], given["max_token"])
    compare.equal("ids", sentences.ids, tensors["out/input_ids"])
    compare.equal("mask", sentences.mask, tensors["out/attention_mask"])


def _schedule(case: Case, tensors: Tensors, compare: Comparison) -> None:
    given = case["config"]
    per_epoch = given["iters_per_epoch"]
    steps, warmup, peak = given["epochs"] * per_epoch, given["warmup_epochs"] * per_epoch, given["lr"]
    decay = [epoch * per_epoch for epoch in given["decay_epochs"]]
    rates = {
        "wcosine": lambda step: warm_cosine_rate(step, steps, warmup, peak, given["min_lr"], given["warmup_lr"]),
        "cosine": lambda step: cosine_rate(step, steps, peak),
        "step": lambda step: step_rate(step, warmup, peak, decay, given["decay_rate"]),
    }
    for name, golden in ((key.removeprefix("out/"), value) for key, value in tensors.items()):
        compare.close(name, double([rates[name](step) for step in range(len(golden))]), golden, "rates")


def _numbers(tensors: Tensors, prefix: str) -> list[int]:
    return sorted(int(name.removeprefix(prefix)) for name in tensors if name.startswith(prefix))


def _preprocess(case: Case, tensors: Tensors, compare: Comparison) -> None:
    """Pictures and masks as they enter the net; boxes are in the files, and DIT reads none."""
    size = case["config"]["input_size"]
    for i in _numbers(tensors, "in/image_"):
        image, mask = Image.fromarray(tensors[f"in/image_{i}"].numpy()), tensors[f"in/mask_{i}"].numpy()
        ways = [("val", size, image, mask)]
        if f"out/flip_image_{i}" in tensors:
            flipped = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
            ways.append(("flip", size - 8, flipped, np.ascontiguousarray(mask[:, ::-1])))
        for name, long_side, shown, its_mask in ways:
            frame = fit(its_mask.shape[0], its_mask.shape[1], size, long_side)
            compare.close(f"{name} picture {i}", picture(shown, frame), tensors[f"out/{name}_image_{i}"], "pictures")
            compare.close(f"{name} mask {i}", target(its_mask, frame), tensors[f"out/{name}_mask_{i}"], "pictures")
            compare.equal(f"{name} place {i}", _info(frame), tensors[f"out/{name}_info_{i}"])
    for sentence, other in case["flipped_text"].items():
        compare.equal(f"flipped {sentence!r}", swapped(sentence), other)


def _info(frame: Frame) -> list[int]:
    """As the authors write it."""
    return [frame.height, frame.width, frame.inner_height, frame.inner_width, frame.left, frame.top]


def _metrics(case: Case, tensors: Tensors, compare: Comparison) -> None:
    size, samples = case["config"]["input_size"], []
    for i in _numbers(tensors, "in/pred_"):
        height, width, inner_height, inner_width, left, top, _ = tensors[f"in/info_{i}"].tolist()
        frame = Frame(height, width, inner_height, inner_width, top, left, size)
        shown = foreground(tensors[f"in/pred_{i}"].numpy() > 0, frame)
        compare.equal(f"foreground {i}", torch.from_numpy(shown).long(), tensors[f"out/foreground_{i}"].long())
        samples.append(overlap(shown, tensors[f"in/gt_{i}"].numpy() > 0.5))
    compare.equal("intersections", [one.intersection for one in samples], tensors["out/intersection"])
    compare.equal("unions", [one.union for one in samples], tensors["out/union"])
    compare.close("IoU", double([one.iou for one in samples]), tensors["out/iou"], "metrics")
    thresholds = tensors["in/thresholds"].tolist()
    scores = referring_scores(samples, thresholds)
    # The authors average each batch in float32, and then the batches; ours is one sum in float64.
    batches = torch.tensor([one.iou for one in samples], dtype=torch.float32).split(case["config"]["batch"])
    theirs = sum(100 * batch.mean().item() * len(batch) for batch in batches) / len(samples)
    compare.close("mIoU, averaged in float32 by batches", double(theirs), tensors["out/mIoU"][0], "metrics")
    compare.close("mIoU", double(scores["mIoU"]), double(theirs), (0.0, 1e-6))
    compare.close("oIoU", double(scores["oIoU"]), tensors["out/oIoU"][0], "metrics")
    compare.close("P@X", double([scores[f"P@{x:g}"] for x in thresholds]), tensors["out/precision"], "metrics")


def _refer_conversion(case: Case, tensors: Tensors, compare: Comparison) -> None:
    references = parse_references(case["refs"], case["case"])
    annotations = parse_annotations(case["instances"], case["case"])
    compare.equal("records", converted(references, annotations), case["expected_json"])
    for i in _numbers(tensors, "out/mask_"):
        reference = next(one for one in references if one.ref_id == i)
        mask = annotations[reference.ann_id].mask(case["case"])
        compare.equal(f"mask {i}", torch.from_numpy(mask).long(), tensors[f"out/mask_{i}"].long())


COMPUTATIONS = {
    "text": _text,
    "schedule": _schedule,
    "preprocess": _preprocess,
    "metrics": _metrics,
    "refer_conversion": _refer_conversion,
}
