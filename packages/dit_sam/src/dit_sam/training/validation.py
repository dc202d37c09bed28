"""mIoU of a part by the official protocol, shared by all ranks and counted exactly."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

from dit_sam.data.samples import Sample
from dit_sam.model import DITSam
from dit_sam.predictor import DitPredictor
from dit_sam.scores import Overlap, overlap, referring_scores
from tenfold.runs.ranks import Ranks


def overlaps(predictor: DitPredictor, samples: Sequence[Sample]) -> list[Overlap]:
    """Prediction against truth, one sentence a sample, in passes of the predictor's batch size."""
    found = []
    for start in range(0, len(samples), predictor.batch_size):
        some = samples[start : start + predictor.batch_size]
        images = [sample.image() for sample in some]
        predictor.set_images(images)
        predictions = predictor.predict(text=[[sample.sentences[0]] for sample in some])
        for sample, image, prediction in zip(some, images, predictions, strict=True):
            found.append(overlap(prediction.masks[0], sample.mask(image) > 0))
    return found


def validate(model: DITSam, samples: Sequence[Sample], batch: int, ranks: Ranks) -> dict[str, float]:
    """mIoU, oIoU and P@X in per cent; the model is in eval mode afterwards. Every sentence counts once."""
    predictor = DitPredictor(model, batch_size=batch, protocol="official")
    mine = overlaps(predictor, samples[ranks.rank :: ranks.world])
    return referring_scores(list(chain.from_iterable(ranks.gather(mine))))
