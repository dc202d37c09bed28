"""Further benchmarks, in a registry of their own: an evaluation takes those of `tenfold.data.benchmarks` and, where its
paper reports them, these.

    bench = MORE["ocrvqa"]
    questions = bench.read(folder)

Each is a `Benchmark` like any other. Captions have no score here: CIDEr needs more than Tenfold asks for.
"""

from __future__ import annotations

from pathlib import Path

from tenfold.data import formats
from tenfold.data import more_scores as scores
from tenfold.data.benchmarks import _LONG, _SHORT, Benchmark, Question, _questions
from tenfold.data.formats.caption_questions import CAPTIONS, KARPATHY, QUESTIONS
from tenfold.data.formats.seed_frames import QUESTIONS as SEED_QUESTIONS

# What LLaVA-HR's evaluation lets a model write where it asks for a box.
_BOX = 30


def _read_llava_bench(folder: Path, split: str) -> list[Question]:
    return [
        Question(str(sample.question_id), sample.text, sample.picture, sample)
        for sample in formats.read_calibration(folder / "questions.jsonl", folder / "images")
    ]


_ALL = (
    Benchmark(
        "okvqa", "OK-VQA", ("val2014", "train2014"), "accuracy", _SHORT,
        "OpenEnded_mscoco_val2014_questions.json\n"
        "mscoco_val2014_annotations.json\n"
        "val2014/COCO_val2014_000000297147.jpg",
        lambda folder, split: _questions(formats.read_okvqa(folder, split)), scores.score_okvqa, scores.submit_okvqa,
    ),
    Benchmark(
        "ocrvqa", "OCR-VQA", ("test", "val", "train"), "accuracy", _SHORT,
        "ocrvqa_test.jsonl                                (or the official dataset.json)\nimages/0307408930.jpg",
        lambda folder, split: _questions(formats.read_ocrvqa(folder, split)), scores.score_ocrvqa, None,
    ),
    Benchmark(
        "refcoco", "RefCOCO (boxes)", ("val",), "accuracy", _BOX,
        "llava_refcoco_mscoco_val.jsonl\ntrain2014/COCO_train2014_000000581857.jpg",
        lambda folder, split: _questions(formats.read_refcoco_boxes(folder, split)), scores.score_refcoco, None,
    ),
    Benchmark(
        "coco_caption", "COCO captions", ("test",), None, _SHORT,
        f"{QUESTIONS}\n{CAPTIONS}                             (or {KARPATHY} for both)\n"
        "val2014/COCO_val2014_000000391895.jpg",
        lambda folder, split: _questions(formats.read_caption_questions(folder)), None, scores.submit_captions,
    ),
    Benchmark(
        "seed_all", "SEED-Bench (image and video)", ("all",), "accuracy", _SHORT,
        f"SEED-Bench.json\n{SEED_QUESTIONS}\nSEED-Bench-image/1454426_2591111986\n"
        "SEED-Bench-video-image/...                       (the frame in the middle of each video)",
        lambda folder, split: _questions(formats.read_seed_frames(folder)),
        scores.score_seed_frames, scores.submit_seed_frames,
    ),
    Benchmark(
        "llava_bench", "LLaVA-Bench (in the wild)", ("test",), None, _LONG,
        "questions.jsonl\nimages/001.jpg", _read_llava_bench, None, scores.submit_llava_bench,
    ),
)  # fmt: skip

MORE: dict[str, Benchmark] = {one.name: one for one in _ALL}
