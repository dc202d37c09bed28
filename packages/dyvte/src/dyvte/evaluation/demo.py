"""`dyvte demo`: one image and one question, answered dense and with an exit, and what every gate said."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from dyvte.costs import DecoderShape, prefill_flops
from dyvte.evaluation.model import ExitingHost, open_exiting
from dyvte.evaluation.settings import DemoSettings
from tenfold import UserError
from tenfold.cli.settings import MINI
from tenfold.data.pictures import open_picture
from tenfold.hosts.answers import encode_batch
from tenfold.runs import fingerprint, run

MAX_NEW_TOKENS = 64
MINI_SAMPLE = 3


@dataclass(frozen=True)
class Demonstration:
    """What a demonstration showed.

    Attributes:
        question, gold: what was asked, and the right answer where it is known.
        dense, exited: the answers without and with the exit.
        exit_layer: after which the visual tokens left; None: never.
        margins: what each gate said before the exit, exit - keep.
        saved: share of the decoder's prefill FLOPs.
        metrics: as in the run's record.
    """

    question: str
    gold: str | None
    dense: str
    exited: str
    exit_layer: int | None
    margins: list[float]
    saved: float
    metrics: dict[str, Any]


def run_demo(settings: DemoSettings, seed: int, output: Path) -> Demonstration:
    """Answer one question with and without the exit; write ``run.json`` into ``output``.

    Raises:
        UserError: model, gates or image cannot be used, or an image without a question.
    """
    image, question, gold = _asked(settings, seed)
    answering = open_exiting(settings)
    if answering.exit is None:
        raise UserError("a demonstration of no exit", "--gates none", "gates, or --exit-at LAYER")
    data = {"model": answering.host.fingerprint}
    data |= {"image": fingerprint(Path(settings.image))} if settings.image else {}
    config = settings.model_dump(mode="json")
    with run("dyvte", "demo", config=config, seed=seed, output=output, data=data) as current:
        (exited,) = answering.answers([image], [question], MAX_NEW_TOKENS)
        (dense,) = ExitingHost(answering.host, None, answering.protocol).answers([image], [question], MAX_NEW_TOKENS)
        margins = _margins(answering, image, question)
        shape = DecoderShape.of(answering.host.model.config)
        visual, left = exited["visual_tokens"], exited["exit_layer"]
        tokens = visual + exited["text_tokens"]
        costs = [prefill_flops(tokens, visual, e, shape) for e in (left, None)]
        current.metrics.update(
            answer_dense=dense["text"],
            answer=exited["text"],
            exit_layer=left,
            layers=shape.layers,
            saved=1 - costs[0] / costs[1],
        )
    saved = 1 - costs[0] / costs[1]
    return Demonstration(question, gold, dense["text"], exited["text"], left, margins, saved, current.metrics)


def _asked(settings: DemoSettings, seed: int) -> tuple[Image.Image, str, str | None]:
    if settings.image is not None:
        if not settings.question:
            raise UserError("an image without a question", settings.image, "--question TEXT")
        return open_picture(settings.image), settings.question, None
    if settings.model != MINI:
        raise UserError("no image", settings.model, "--image FILE --question TEXT")
    from dyvte.data.samples import mini_samples

    sample = mini_samples(seed + 2_000_000, MINI_SAMPLE + 1)[MINI_SAMPLE]
    if settings.question:
        return sample.image(), settings.question, None
    return sample.image(), sample.question, sample.answer


@torch.inference_mode()
def _margins(answering: ExitingHost, image: Image.Image, question: str) -> list[float]:
    """exit - keep of every gate that was asked."""
    exit, model, processor = answering.exit, answering.host.model, answering.host.processor
    assert exit is not None
    inputs = encode_batch(processor, model, [answering.protocol.prompt(processor, image, question)])
    with exit(model):
        trace: list[Any] = []
        exit.trace = trace
        model(**inputs, use_cache=False)
    return [float(logits[0, 1] - logits[0, 0]) for _, logits in trace]
