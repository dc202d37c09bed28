"""Scores and submissions of the benchmarks in `tenfold.data.more_benchmarks`, as in `benchmark_scores` and
`submissions`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from tenfold.data.benchmark_scores import Scores
from tenfold.data.formats import (
    BoxSample,
    CalibrationSample,
    CaptionSample,
    OCRVQASample,
    OKVQASample,
    SeedFrameSample,
    write_caption_results,
)
from tenfold.metrics import ChoiceAnswer, box_scores, choice_letter, choice_scores, ocrvqa_accuracy, vqa_accuracy
from tenfold.runs import atomic_write_json, atomic_write_text


def score_okvqa(samples: Sequence[OKVQASample], texts: Sequence[str]) -> Scores:
    """The mean of the official tool's VQA accuracy."""
    found = [vqa_accuracy(text, sample.answers) for sample, text in zip(samples, texts, strict=True)]
    return {"accuracy": sum(found) / len(found), "count": len(found)}


def score_ocrvqa(samples: Sequence[OCRVQASample], texts: Sequence[str]) -> Scores:
    """The share of exact matches."""
    return {"accuracy": ocrvqa_accuracy(texts, [sample.answer for sample in samples]), "count": len(samples)}


def score_refcoco(samples: Sequence[BoxSample], texts: Sequence[str]) -> Scores:
    """The share of boxes with an IoU above 0.5."""
    scores = box_scores(texts, [sample.box for sample in samples])
    return {
        "accuracy": scores.accuracy, "mean_iou": scores.mean_iou, "unread": scores.unread, "count": scores.count,
    }  # fmt: skip


def score_seed_frames(samples: Sequence[SeedFrameSample], texts: Sequence[str]) -> Scores:
    """Accuracy of all questions, of those about images and about videos, and by type."""
    answers = [
        ChoiceAnswer(choice_letter(text, sample.choices), sample.answer, sample.question_type)
        for sample, text in zip(samples, texts, strict=True)
    ]
    scores = choice_scores(answers)
    by_kind: Scores = {}
    for kind in ("image", "video"):
        some = [one for one, sample in zip(answers, samples, strict=True) if sample.kind == kind]
        if some:
            by_kind[kind] = choice_scores(some).accuracy
    return {
        "accuracy": scores.accuracy, **by_kind, **scores.by_kind, "unread": scores.unread, "count": scores.count,
    }  # fmt: skip


def submit_okvqa(samples: Sequence[OKVQASample], texts: Sequence[str], folder: Path) -> list[Path]:
    """[{"question_id", "answer"}, ...]: what the official VQA tool reads."""
    records = [
        {"question_id": sample.question_id, "answer": text.strip()} for sample, text in zip(samples, texts, strict=True)
    ]
    atomic_write_json(folder / "okvqa_results.json", records)
    return [folder / "okvqa_results.json"]


def submit_captions(samples: Sequence[CaptionSample], texts: Sequence[str], folder: Path) -> list[Path]:
    """[{"image_id", "caption"}, ...]: what COCO's tools read."""
    path = folder / "coco_caption_results.json"
    write_caption_results(path, {sample.image_id: text for sample, text in zip(samples, texts, strict=True)})
    return [path]


def submit_seed_frames(samples: Sequence[SeedFrameSample], texts: Sequence[str], folder: Path) -> list[Path]:
    """{"question_id", "prediction"} a line; the prediction is the letter read, or the text where none can be read."""
    return _lines(
        folder / "seed_submission.jsonl",
        [
            {"question_id": sample.question_id, "prediction": choice_letter(text, sample.choices) or text}
            for sample, text in zip(samples, texts, strict=True)
        ],
    )


def submit_llava_bench(samples: Sequence[CalibrationSample], texts: Sequence[str], folder: Path) -> list[Path]:
    """{"question_id", "prompt", "text"} a line: what LLaVA's script hands to the judge."""
    return _lines(
        folder / "llava_bench_answers.jsonl",
        [
            {"question_id": sample.question_id, "prompt": sample.text, "text": text, "metadata": {}}
            for sample, text in zip(samples, texts, strict=True)
        ],
    )


def _lines(path: Path, records: Sequence[dict[str, object]]) -> list[Path]:
    atomic_write_text(path, "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))
    return [path]
