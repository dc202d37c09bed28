"""`dit-sam eval`: masks for the sentences of a part, scored by the published protocol (section 7).

    run_eval(EvalSettings(model="my-dit", data="data/refer", set="refcoco", part="testA"), Path("runs/eval"))

Every sentence counts once, also over several ranks: the pixels of each are kept as they are made, and rank 0 scores
them all. A run that was killed goes on where it stopped. The folder holds predictions.jsonl (a line a sentence, its
mask as COCO's compressed run lengths), metrics.json and run.json.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as coco

from dit_sam.data.mini import write_mini
from dit_sam.data.samples import Sample
from dit_sam.data.sets import ReferringSet
from dit_sam.data.settings import MiniSettings
from dit_sam.data.words import kind
from dit_sam.evaluation.model import model_folder, open_predictor
from dit_sam.evaluation.published import published
from dit_sam.evaluation.settings import EvalSettings
from dit_sam.predictor import DitPredictor
from dit_sam.scores import Overlap, general_scores, overlap, referring_scores
from tenfold import UserError
from tenfold.runs import RunRecord, fingerprint, track
from tenfold.runs.evaluation import (
    PROGRESS,
    answer_left,
    finished_before,
    forget,
    open_log,
    shared_run,
    write_predictions,
)
from tenfold.runs.progress import Progress
from tenfold.runs.ranks import ranks

logger = logging.getLogger(__name__)

# Scenes of the mini world that neither the shipped model nor the experiments saw.
MINI_SCENES = MiniSettings(train=1, val=40, test=40, seed=7)
MINI_DATA = "checkpoint-data"


@dataclass(frozen=True)
class Evaluation:
    """A finished evaluation.

    Attributes:
        metrics: as in the run's record. sentences: how many. settings: of it.
        paper: the authors' number for this set and part, in per cent; None where there is none.
        output: the folder.
    """

    metrics: dict[str, Any]
    sentences: int
    settings: EvalSettings
    paper: float | None
    output: Path


def run_eval(settings: EvalSettings, output: Path, seed: int = 0, progress: Progress = track) -> Evaluation | None:
    """Segment and score into a folder; under `torchrun` every rank calls this.

    Args:
        settings: of the evaluation.
        output: for predictions, scores and record; all ranks must see the same one. What an unfinished evaluation left
            in it is kept.
        seed: nothing here is random; the record has one.
        progress: wraps the batches of rank 0.

    Returns:
        What came out, on rank 0; None on the others.

    Raises:
        UserError: model or data cannot be used; `output` holds a finished run of something else.
    """
    config = settings.model_dump(mode="json")
    with ranks() as group:
        folder = group.from_lead(lambda: _data_folder(settings, output))
        data = ReferringSet(folder, "mini" if settings.data is None else settings.set, settings.split)
        samples = {sample.id: sample for sample in data.samples(settings.part)[: settings.limit]}
        prints = group.from_lead(lambda: _fingerprints(settings, data))
        before = finished_before(group, output, "eval", config, seed, prints)
        if before is not None:
            return _evaluation(settings, before.metrics, output) if group.leads else None
        predictor = open_predictor(
            settings.model,
            settings.device,
            input_size=settings.input_size,
            batch=settings.batch,
            protocol=settings.protocol,
        )
        with shared_run(group, "dit_sam", "eval", config=config, seed=seed, output=output, data=prints) as current:
            header = {**prints, **{name: value for name, value in config.items() if name not in ("limit", "device")}}
            log = open_log(group, output / PROGRESS, header)

            def answer(ids: Sequence[Any]) -> Iterable[tuple[Any, Any]]:
                return _answer(predictor, [samples[one] for one in ids], settings)

            answer_left(
                group,
                log,
                list(samples),
                answer,
                batch=settings.batch,
                title=f"{data.name} {settings.part}",
                progress=progress,
                say=logger.info,
            )
            if current is not None:
                rows = log.merged(samples)
                current.metrics.update(scored([rows[one] for one in samples], samples.values(), data.general))
                write_predictions(current, ({"id": one, **rows[one]} for one in samples))
        forget(group, log)
        return _evaluation(settings, current.metrics, output) if current is not None else None


def _evaluation(settings: EvalSettings, metrics: dict[str, Any], output: Path) -> Evaluation:
    paper = published(settings.set, settings.part) if settings.data is not None else None
    return Evaluation(metrics, metrics["sentences"], settings, paper, output)


def _data_folder(settings: EvalSettings, output: Path) -> Path:
    if settings.data is not None:
        if not Path(settings.data).is_dir():
            raise UserError("no such folder", settings.data, "the data set, see dit-sam eval --help")
        return Path(settings.data)
    if not (output / MINI_DATA).exists():
        write_mini(output / MINI_DATA, MINI_SCENES)
    return output / MINI_DATA


def _fingerprints(settings: EvalSettings, data: ReferringSet) -> dict[str, str]:
    folder = model_folder(settings.model)
    prints = {name: fingerprint(path) for name, path in data.files.items()}
    # A repository of the Hub is known by its name alone.
    return prints | ({"model": fingerprint(folder)} if folder.exists() else {})


def _answer(
    predictor: DitPredictor, samples: Sequence[Sample], settings: EvalSettings
) -> Iterable[tuple[str, dict[str, Any]]]:
    """Segment a batch: pixels of mask and truth, and the mask itself."""
    images = [sample.image() for sample in samples]
    predictor.set_images(images)
    sentences = [[sample.sentences[0]] for sample in samples]
    predictions = predictor.predict(text=sentences, threshold=settings.threshold)
    for sample, image, prediction in zip(samples, images, predictions, strict=True):
        mask = prediction.masks[0]
        if mask.sum() < settings.no_target_pixels:
            mask = np.zeros_like(mask)
        counts = overlap(mask, sample.mask(image) > 0)
        runs = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
        row = {"sentence": sample.sentences[0], **counts._asdict(), "score": float(prediction.scores[0])}
        yield sample.id, {**row, "mask": {"size": list(mask.shape), "counts": runs["counts"].decode("ascii")}}


def scored(rows: Sequence[dict[str, Any]], samples: Iterable[Sample], general: bool) -> dict[str, Any]:
    """The metrics of an evaluation: all sentences, and by kind of sentence; gRefCOCO's own where they are right."""
    found = [Overlap(*(row[name] for name in Overlap._fields)) for row in rows]
    if general:
        empty = sum(sample.read_mask is None for sample in samples)
        return {"sentences": len(found), "without_target": empty, "scores": general_scores(found)}
    kinds: dict[str, list[Overlap]] = {}
    for row, one in zip(rows, found, strict=True):
        kinds.setdefault(kind(row["sentence"]), []).append(one)
    return {
        "sentences": len(found),
        "scores": referring_scores(found),
        "kinds": {name: {"sentences": len(ones), **referring_scores(ones)} for name, ones in sorted(kinds.items())},
    }


def eval_again(record: RunRecord, folder: Path, settings: EvalSettings) -> dict[str, Any]:
    """For `dit-sam verify`: the metrics of the same evaluation, made in a new folder."""
    found = run_eval(settings, folder, record.seed)
    assert found is not None
    return found.metrics
