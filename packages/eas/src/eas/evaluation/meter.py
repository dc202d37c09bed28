"""METER's benchmarks: VQAv2 by soft score, NLVR2 by accuracy, Flickr30k by recall; splits named, leaks told.

The authors score retrieval on the split that they also train on, and train VQA on all of val: what is evaluated here
says its split, and how many of its pictures the weights have seen.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch

from eas import costs
from eas.checkpoints.meter import MeterAbout, classifier_answers, open_meter, read_meter_about
from eas.data.meter import Encoder, Query, leak, read_photographs, read_queries
from eas.evaluation.benchmarks import BENCHMARKS, TASKS, Evaluation
from eas.evaluation.settings import SHIPPED, EvalSettings
from eas.meter import Encoded, Meter
from tenfold import UserError
from tenfold.data.formats.flickr30k import RetrievalSample
from tenfold.metrics.retrieval import retrieval_recall
from tenfold.runs import RunRecord, atomic_write_json, fingerprint
from tenfold.runs.context import Run
from tenfold.runs.evaluation import answer_left, evaluate, write_predictions
from tenfold.runs.predictions import PredictionLog
from tenfold.runs.progress import Progress
from tenfold.runs.ranks import Ranks, choose_device, ranks
from tenfold.runs.record import RECORD_NAME

RESULTS = "results.json"  # what VQA's server takes


@dataclass(frozen=True)
class _Asked:
    """What is asked: questions, or photographs with captions; and its leak."""

    queries: Sequence[Query]
    photographs: Sequence[RetrievalSample]
    leaked: int
    told: str


def run_meter(
    settings: EvalSettings, seed: int, output: Path, progress: Progress, say: Callable[[str], None]
) -> Evaluation | None:
    """Evaluate a folder of METER; as `eas.evaluation.run.run_eval`."""
    one, task = BENCHMARKS[settings.benchmark], TASKS[settings.benchmark]
    folder, split = Path(settings.model), settings.split or one.split
    config, about = read_meter_about(folder)
    if config.task != task:
        raise UserError(f"weights of task {config.task}", folder, f"task {task} for --benchmark {settings.benchmark}")
    if settings.adapters not in (None, "none", SHIPPED):
        raise UserError(f"--adapters {settings.adapters}", "METER", "none: its folder holds them")
    if settings.folded and not config.folded:
        raise UserError("--folded", folder, "METER folds once and for all: eas convert --folded")
    if settings.data is None or not Path(settings.data).is_dir():
        raise UserError("no data", f"--benchmark {settings.benchmark}", f"--data FOLDER with {one.tree}")
    asked = _read(settings, task, split, about)
    answers = classifier_answers(folder, config.answers) if task == "vqa" else []
    with ranks() as group:
        device = choose_device(settings.device)
        model = open_meter(folder)[0].to(device, torch.float32 if settings.dtype == "auto" else _dtype(settings.dtype))
        encoder = Encoder(folder, config)
        data = {"model": fingerprint(folder), "questions": _print(asked)}
        header = {**settings.model_dump(), **data, "device": None}

        def work(log: PredictionLog) -> None:
            if task == "irtr":
                _retrieve(group, log, model, encoder, asked.photographs, settings.batch, progress, say)
            else:
                _classify(group, log, model, encoder, asked.queries, answers, settings.batch, progress, say)

        def finish(log: PredictionLog, current: Run) -> None:
            current.metrics.update(_metrics(settings, split, model, about, asked))
            if task == "irtr":
                _finish_retrieval(log, current, asked.photographs)
            else:
                _finish_answers(log, current, asked.queries, task)

        record = evaluate(
            group,
            "eas",
            output,
            config=settings.model_dump(),
            seed=seed,
            data=data,
            header=header,
            title=one.title,
            answer=work,
            finish=finish,
            say=say,
            again=True,
        )
    return None if record is None else _evaluation(settings, record, output)


def _read(settings: EvalSettings, task: str, split: str, about: MeterAbout) -> _Asked:
    assert settings.data is not None
    queries: list[Query] = []
    photographs: list[RetrievalSample] = []
    if task == "irtr":
        photographs = read_photographs(settings.data, split)[: settings.limit]
        images = {str(one.image_id) for one in photographs}
    else:
        queries = read_queries(task, settings.data, split)[: settings.limit]
        images = {image for one in queries for image in one.images}
    trained = tuple(about.trained_on if settings.train is None else settings.train.split(","))
    leaked, told = leak(task, settings.data, split, trained, images)
    if settings.train is not None and leaked:
        raise UserError(f"{leaked} of {len(images)} pictures were trained on", f"split {split}", "another split")
    return _Asked(queries, photographs, leaked, told)


def _dtype(name: str) -> Any:
    return getattr(torch, name)


def _print(asked: _Asked) -> str:
    told = [(one.id, one.text) for one in asked.queries]
    return fingerprint({"asked": told or [(one.image_id, one.captions) for one in asked.photographs]})


def _metrics(settings: EvalSettings, split: str, model: Meter, about: MeterAbout, asked: _Asked) -> dict[str, Any]:
    config, flags = model.config, model.flags().tolist()
    image = (config.size // config.vit_patch) ** 2 + 1
    shape = costs.MeterShape(
        config.width,
        config.text_layers,
        config.vit_layers - 1,
        patch=config.vit_patch,
        ranks=costs.RankSizes(config.adapter_rank, config.pia_rank, config.groups),
    )
    full = costs.meter_macs(shape, config.max_text, image, None)
    less = costs.meter_macs(shape, config.max_text, image, flags, folded=config.folded)
    return {
        "benchmark": settings.benchmark,
        "split": split,
        "questions": len(asked.queries) or len(asked.photographs),
        "skip": list(config.skip),
        "removed": int(model.flags().sum()),
        "as_released": config.as_released,
        "search": about.search,
        "macs_saved": 1 - less / full,
        "leaked_pictures": asked.leaked,
        "training_set": asked.told,
    }


@torch.inference_mode()
def _classify(
    group: Ranks,
    log: PredictionLog,
    model: Meter,
    encoder: Encoder,
    queries: Sequence[Query],
    answers: Sequence[str],
    batch: int,
    progress: Progress,
    say: Callable[[str], None],
) -> None:
    by_id = {one.id: one for one in queries}
    names = list(answers) or ["False", "True"]

    def answered(ids: Sequence[Any]) -> Iterator[tuple[Any, Any]]:
        inputs = encoder.batch([by_id[one] for one in ids])
        place, dtype = model.token4classifier.device, model.token4classifier.dtype
        pixels = tuple(one.to(place, dtype) for one in inputs.pixels)
        logits = model(inputs._replace(ids=inputs.ids.to(place), mask=inputs.mask.to(place), pixels=pixels))
        return ((one, names[row]) for one, row in zip(ids, logits.argmax(-1).tolist(), strict=True))

    answer_left(group, log, list(by_id), answered, batch=batch, title="questions", progress=progress, say=say)


@torch.inference_mode()
def _retrieve(
    group: Ranks,
    log: PredictionLog,
    model: Meter,
    encoder: Encoder,
    photographs: Sequence[RetrievalSample],
    batch: int,
    progress: Progress,
    say: Callable[[str], None],
) -> None:
    """Every photograph with every caption; both encoders run once for each, the cross-modal layers for each pair."""
    place, dtype = model.token4classifier.device, model.token4classifier.dtype
    by_id = {str(one.image_id): one for one in photographs}
    captions = [caption for one in photographs for caption in one.captions]
    texts: list[Encoded] = []

    def answered(ids: Sequence[Any]) -> Iterator[tuple[Any, Any]]:
        if not texts:
            for at in range(0, len(captions), batch):
                tokens, mask = encoder.texts(captions[at : at + batch])
                texts.append(model.encode_text(tokens.to(place), mask.to(place)))
        for one in ids:
            image = model.encode_image(encoder.pixels([by_id[one].picture]).to(place, dtype))
            row = [
                model.rank_output(model.fuse(text, _repeat(image, len(text.tokens)))[2])[:, 0].float() for text in texts
            ]
            yield one, base64.b64encode(torch.cat(row).cpu().numpy().astype("<f4").tobytes()).decode()

    answer_left(group, log, list(by_id), answered, batch=1, title="photographs", progress=progress, say=say)


def _repeat(image: Encoded, count: int) -> Encoded:
    return Encoded(image.tokens.expand(count, -1, -1), image.mask.expand(count, -1, -1, -1))


def _finish_answers(log: PredictionLog, current: Run, queries: Sequence[Query], task: str) -> None:
    found = {str(name): value for name, value in log.merged([one.id for one in queries]).items()}
    scored = [one for one in queries if one.target is not None]
    name = "soft score" if task == "vqa" else "accuracy"
    values = [(one.target or {}).get(found[one.id], 0.0) for one in scored]
    current.metrics["scores"] = {name: 100 * fmean(values)} if values else {}
    if task == "vqa":
        results = [{"question_id": int(one.id), "answer": found[one.id]} for one in queries]
        atomic_write_json(current.file(RESULTS), results)
    write_predictions(current, ({"id": one.id, "question": one.text, "answer": found[one.id]} for one in queries))


def _finish_retrieval(log: PredictionLog, current: Run, photographs: Sequence[RetrievalSample]) -> None:
    kept: Mapping[Any, str] = log.merged([str(one.image_id) for one in photographs])
    scores = np.stack([np.frombuffer(base64.b64decode(kept[str(one.image_id)]), dtype="<f4") for one in photographs])
    owners = [row for row, one in enumerate(photographs) for _ in one.captions]
    current.metrics["scores"] = {name: 100 * value for name, value in retrieval_recall(scores, owners).items()}
    best = np.argsort(-scores, axis=1, kind="stable")[:, :10]
    rows = (
        {"id": one.image_id, "captions": line.tolist(), "scores": scores[row, line].tolist()}
        for row, (one, line) in enumerate(zip(photographs, best, strict=True))
    )
    write_predictions(current, rows)


def _evaluation(settings: EvalSettings, record: RunRecord, output: Path) -> Evaluation:
    files = [output / name for name in (*record.outputs, RECORD_NAME)]
    return Evaluation(BENCHMARKS[settings.benchmark], record.metrics, files)
