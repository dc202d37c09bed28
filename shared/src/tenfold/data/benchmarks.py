"""The benchmarks by name: how each is read, asked, scored and submitted, so that every `eval` can treat them alike.

    bench = benchmark("textvqa")
    questions = bench.read(folder, "val")                       # in the file's order: shard and limit by slicing
    predictions = {q.id: answer(q.image(), q.prompt, bench.max_new_tokens) for q in questions}
    bench.score(questions, predictions)                         # {"accuracy": 0.582, "count": 5000}
    bench.write_submission(questions, predictions, output)      # [output / "textvqa_submission.json"]

Prompts and limits are those of LLaVA-1.5's evaluation (`tenfold.data.formats.prompts`). A package names those that its
paper reports. Captions have no score here: `benchmark_scores.score_captions` needs a Java.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from tenfold.data import benchmark_scores as scores
from tenfold.data import formats, submissions
from tenfold.data.formats import Picture, ScienceQASample
from tenfold.data.formats.caption_questions import CAPTIONS, KARPATHY, QUESTIONS
from tenfold.data.formats.prompts import multiple_choice, short_answer
from tenfold.data.formats.seed_frames import QUESTIONS as SEED_QUESTIONS
from tenfold.data.formats.textvqa import LLAVA_OCR_FILE
from tenfold.errors import UserError
from tenfold.metrics.pope import SUBSETS

# LLaVA-1.5's loader-based evaluations stop at 128 tokens, its others at 1024; a box is short.
_SHORT, _LONG, _BOX = 128, 1024, 30


@dataclass(frozen=True)
class Question:
    """One question as every model gets it.

    Args:
        id: unique in its benchmark and split; a string that survives JSON ("1000241", "random/17", "color/0001.png#2").
        prompt: what is asked, with options and LLaVA-1.5's ending, without image token, roles or system text.
        picture: the image, unopened; None for none.
        sample: the format's own record, for scoring and submission (POPE: its subset and the record).
    """

    id: str
    prompt: str
    picture: Picture | None
    sample: Any = field(repr=False)

    def image(self) -> Image.Image | None:
        """The decoded image, RGB. Raises UserError naming a broken file."""
        return self.picture.open() if self.picture else None


@dataclass(frozen=True)
class Benchmark:
    """A benchmark: everything an evaluation needs besides the model.

    Args:
        name, title: as typed and as shown.
        splits: what `read` knows; the first is the default.
        main: the entry of `score` that papers report; None where only a judge or a server gives a score.
        max_new_tokens: the most that LLaVA-1.5's evaluation lets a model write.
        tree: the files below `--data`, one a line, for help texts.
        percent: papers report `main` times 100 (MME's is a sum of points).
    """

    name: str
    title: str
    splits: tuple[str, ...]
    main: str | None
    max_new_tokens: int
    tree: str
    _load: Callable[[Path, str], list[Question]] = field(repr=False)
    _score: Callable[[Sequence[Any], Sequence[str]], dict[str, float]] | None = field(repr=False)
    _submit: Callable[[Sequence[Any], Sequence[str], Path], list[Path]] | None = field(repr=False)
    percent: bool = True

    def read(self, folder: str | Path, split: str | None = None) -> list[Question]:
        """The questions of a split, in the order of the file.

        Raises:
            UserError: an unknown split, and all that the format's reader refuses.
        """
        split = self.splits[0] if split is None else split
        if split not in self.splits:
            raise UserError(f"unknown split of {self.title}", split, " or ".join(self.splits))
        return self._load(Path(folder), split)

    def score(self, questions: Sequence[Question], predictions: Mapping[str, str]) -> dict[str, float]:
        """Metrics of some questions (a split or any part of one), ratios in [0, 1]; `main` is among them.

        Empty when the split comes without answers, or a judge is needed: then there is only the submission.

        Raises:
            UserError: no questions, or one without a prediction (`predictions` maps ids to texts).
        """
        texts = self._texts(questions, predictions)
        return {} if self._score is None else self._score([question.sample for question in questions], texts)

    def write_submission(
        self, questions: Sequence[Question], predictions: Mapping[str, str], folder: str | Path
    ) -> list[Path]:
        """Write the files that the benchmark's server or official script reads; none for POPE and ScienceQA.

        Returns:
            The files written, each whole or not at all.

        Raises:
            UserError: no questions, or one without a prediction.
        """
        texts = self._texts(questions, predictions)
        if self._submit is None:
            return []
        return self._submit([question.sample for question in questions], texts, Path(folder))

    def _texts(self, questions: Sequence[Question], predictions: Mapping[str, str]) -> list[str]:
        if not questions:
            raise UserError("no questions", self.title, "at least one")
        if missing := [question.id for question in questions if question.id not in predictions]:
            what = f"{len(missing)} of {len(questions)} questions have no prediction"
            raise UserError(what, f"{self.title}, {missing[0]}", "one for each question")
        return [predictions[question.id] for question in questions]


def _questions(samples: Iterable[Any]) -> list[Question]:
    return [Question(sample.id, sample.prompt, sample.picture, sample) for sample in samples]


def _read_textvqa(folder: Path, split: str) -> list[Question]:
    if split == "val_ocr":
        return _questions(formats.read_textvqa(folder, "val", llava_questions=folder / LLAVA_OCR_FILE))
    return _questions(formats.read_textvqa(folder, split))


def _read_vqav2(folder: Path, split: str) -> list[Question]:
    return [
        Question(str(sample.question_id), short_answer(sample.question), sample.picture, sample)
        for sample in formats.read_vqav2(folder, split)
    ]


def _read_pope(folder: Path, split: str) -> list[Question]:
    # The subsets number their questions alike: the subset is part of the id.
    return [
        Question(f"{subset}/{sample.question_id}", short_answer(sample.text), sample.picture, (subset, sample))
        for subset in (SUBSETS if split == "all" else (split,))
        for sample in formats.read_pope(folder, subset)
    ]


def _read_scienceqa(folder: Path, split: str) -> list[Question]:
    """The problems with an image; LLaVA writes the hint behind "Context: "."""
    samples = [sample for sample in formats.read_scienceqa(folder, split) if sample.picture is not None]
    if not samples:
        raise UserError("no problem with an image", f"{folder}, {split}", "at least one")
    return [Question(sample.id, scienceqa_prompt(sample), sample.picture, sample) for sample in samples]


def scienceqa_prompt(sample: ScienceQASample) -> str:
    """Context (where there is a hint), question, options "A. ..." and the request for a letter."""
    return multiple_choice(sample.question, sample.choices, f"Context: {sample.hint}" if sample.hint else "")


def _read_llava_bench(folder: Path, split: str) -> list[Question]:
    return [
        Question(str(sample.question_id), sample.text, sample.picture, sample)
        for sample in formats.read_calibration(folder / "questions.jsonl", folder / "images")
    ]


_ALL = (
    Benchmark(
        "vqav2", "VQAv2", ("val2014", "test-dev2015", "test2015", "train2014"), "accuracy", _SHORT,
        "v2_OpenEnded_mscoco_val2014_questions.json\n"
        "v2_mscoco_val2014_annotations.json               (none for the test sets)\n"
        "val2014/COCO_val2014_000000262148.jpg            (test2015/COCO_test2015_... for test-dev2015, too)",
        _read_vqav2, scores.score_vqav2, submissions.submit_vqav2,
    ),
    Benchmark(
        "gqa", "GQA", ("testdev_balanced", "val_balanced", "test_balanced"), "accuracy", _SHORT,
        "testdev_balanced_questions.json\nimages/n161313.jpg",
        lambda folder, split: _questions(formats.read_gqa(folder, split)), scores.score_gqa, submissions.submit_gqa,
    ),
    Benchmark(
        "vizwiz", "VizWiz", ("val", "test", "train"), "accuracy", _SHORT,
        "Annotations/val.json                             (or val.json)\nval/VizWiz_val_00000000.jpg",
        lambda folder, split: _questions(formats.read_vizwiz(folder, split)),
        scores.score_vizwiz, submissions.submit_vizwiz,
    ),
    Benchmark(
        "scienceqa", "ScienceQA-IMG", ("test", "val", "train", "minitest"), "accuracy", _LONG,
        "problems.json\npid_splits.json\nimages/test/1/image.png",
        _read_scienceqa, scores.score_scienceqa, None,
    ),
    Benchmark(
        # LLaVA-1.5 asks with OCR tokens, which are in a file of its own: split val_ocr.
        "textvqa", "TextVQA", ("val", "val_ocr", "test"), "accuracy", _SHORT,
        "TextVQA_0.5.1_val.json\n"
        "train_images/003a8ae2ef43b901.jpg                (test_images/... for test)\n"
        f"{LLAVA_OCR_FILE}             (split val_ocr: LLaVA-1.5's prompts)",
        _read_textvqa, scores.score_textvqa, submissions.submit_textvqa,
    ),
    Benchmark(
        "pope", "POPE", ("all", *SUBSETS), "f1", _SHORT,
        "coco/coco_pope_random.json\ncoco/coco_pope_popular.json\ncoco/coco_pope_adversarial.json\n"
        "val2014/COCO_val2014_000000310196.jpg",
        _read_pope, scores.score_pope, None,
    ),
    Benchmark(
        "mme", "MME", ("test",), "perception", _SHORT,
        "MME_Benchmark_release_version/existence/000000006040.jpg and .txt\n"
        "MME_Benchmark_release_version/posters/images/tt0048028.jpg\n"
        "MME_Benchmark_release_version/posters/questions_answers_YN/tt0048028.txt",
        lambda folder, split: _questions(formats.read_mme(folder)),
        scores.score_mme, submissions.submit_mme, percent=False,
    ),
    Benchmark(
        "mmbench", "MMBench", ("dev", "test"), "circular", _LONG,
        "mmbench_dev_20230712.tsv                         (mmbench_test_20230712.tsv for test)",
        lambda folder, split: _questions(formats.read_mmbench(folder, split)),
        scores.score_mmbench, submissions.submit_mmbench,
    ),
    Benchmark(
        "mmbench_cn", "MMBench-CN", ("dev", "test"), "circular", _LONG,
        "mmbench_dev_cn_20231003.tsv                      (mmbench_test_cn_20231003.tsv for test)",
        lambda folder, split: _questions(formats.read_mmbench(folder, split, "cn")),
        scores.score_mmbench, submissions.submit_mmbench_cn,
    ),
    Benchmark(
        "seed", "SEED-Bench (image)", ("image",), "accuracy", _SHORT,
        "SEED-Bench.json\nSEED-Bench-image/1454426_2591111986",
        lambda folder, split: _questions(formats.read_seed(folder)), scores.score_seed, submissions.submit_seed,
    ),
    Benchmark(
        "mmvet", "MM-Vet", ("test",), None, _LONG,
        "mm-vet.json\nimages/v1_0.png",
        lambda folder, split: _questions(formats.read_mmvet(folder)), None, submissions.submit_mmvet,
    ),
    Benchmark(
        "okvqa", "OK-VQA", ("val2014", "train2014"), "accuracy", _SHORT,
        "OpenEnded_mscoco_val2014_questions.json\n"
        "mscoco_val2014_annotations.json\n"
        "val2014/COCO_val2014_000000297147.jpg",
        lambda folder, split: _questions(formats.read_okvqa(folder, split)),
        scores.score_okvqa, submissions.submit_okvqa,
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
        lambda folder, split: _questions(formats.read_caption_questions(folder)), None, submissions.submit_captions,
    ),
    Benchmark(
        "seed_all", "SEED-Bench (image and video)", ("all",), "accuracy", _SHORT,
        f"SEED-Bench.json\n{SEED_QUESTIONS}\nSEED-Bench-image/1454426_2591111986\n"
        "SEED-Bench-video-image/...                       (the frame in the middle of each video)",
        lambda folder, split: _questions(formats.read_seed_frames(folder)),
        scores.score_seed_frames, submissions.submit_seed_frames,
    ),
    Benchmark(
        "llava_bench", "LLaVA-Bench (in the wild)", ("test",), None, _LONG,
        "questions.jsonl\nimages/001.jpg", _read_llava_bench, None, submissions.submit_llava_bench,
    ),
)  # fmt: skip

BENCHMARKS: dict[str, Benchmark] = {one.name: one for one in _ALL}


def benchmark(name: str) -> Benchmark:
    """A benchmark by name. Raises UserError listing the known ones."""
    if name not in BENCHMARKS:
        raise UserError("unknown benchmark", name, " or ".join(BENCHMARKS))
    return BENCHMARKS[name]
