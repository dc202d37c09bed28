"""The paper's benchmarks: which split it reports, how long an answer may be, where LLaVA's `eval.zip` has the files.

    place = find_benchmark("textvqa")
    questions = place.read("playground/data/eval/textvqa")         # the split that the paper reports, with OCR tokens
    place.score(questions, {question.id: "nokia" for question in questions})

Formats and most scores are Tenfold's; what differs here is the authors' protocol (sheet section 7).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llava_hr.evaluation.scores import score_mini, score_scienceqa
from tenfold import UserError
from tenfold.data import formats
from tenfold.data.benchmark_scores import Scores, check_captions, score_captions
from tenfold.data.benchmarks import BENCHMARKS, Benchmark, Question
from tenfold.data.formats import VQAv2Sample
from tenfold.data.question_sets import find_named

MINI_SET = "mini"
Scorer = Callable[[Sequence[Any], Sequence[str]], Scores]

# Most answers a model may give, in tokens. The authors' loader of short answers and captions stops at 128.
_SHORT = 128
_LIMITS = {
    "scienceqa": 64, "mmbench": 1024, "mmbench_cn": 1024, "mmvet": 2048, "refcoco": 30, "llava_bench": 100,
}  # fmt: skip
# What the tables report, where it is not the registry's first split, which has answers beside the questions.
_SPLITS = {"vqav2": "test-dev2015", "vizwiz": "test", "textvqa": "val_ocr"}
# The folders' names below playground/data/eval, where they are not the benchmarks'.
_FOLDERS = {
    "mme": "MME", "mmvet": "mm-vet", "seed": "seed_bench", "seed_all": "seed_bench", "coco_caption": "coco-cap",
    "llava_bench": "llava-bench-in-the-wild",
}  # fmt: skip


@dataclass(frozen=True)
class PaperBenchmark:
    """A benchmark under the paper's protocol.

    Attributes:
        bench: how it is read and submitted.
        split: the one that the paper reports.
        max_new_tokens: the most tokens of an answer.
        folder: its name in LLaVA's `playground/data/eval`.
        main: the score that tables report; None where only a judge or a server gives one.
        percent: `main` is reported times 100.
    """

    bench: Benchmark
    split: str
    max_new_tokens: int
    folder: str
    main: str | None
    percent: bool
    _read: Callable[[Path, str], list[Question]] = field(repr=False)
    _score: Scorer | None = field(repr=False, default=None)

    @property
    def name(self) -> str:
        return self.bench.name

    @property
    def title(self) -> str:
        return self.bench.title

    def read(self, folder: str | Path, split: str | None = None) -> list[Question]:
        """The questions of a split, in the order of the file; None: of the one that the paper reports.

        Raises:
            UserError: an unknown split, and all that the format's reader refuses.
        """
        return self._read(Path(folder), split or self.split)

    def check(self) -> None:
        """Refuse, before any question is answered, what could not be scored.

        Raises:
            UserError: captions, without the extra that scores them.
        """
        if self.name == "coco_caption":
            check_captions()

    def score(self, questions: Sequence[Question], predictions: Mapping[str, str]) -> Scores:
        """Metrics of some questions, `main` among them; empty without answers, or where a judge is needed.

        Raises:
            UserError: no questions, or one without a prediction.
        """
        known = self.bench.score(questions, predictions)
        if self._score is None:
            return known
        samples = [question.sample for question in questions]
        return self._score(samples, [predictions[question.id] for question in questions])

    def write_submission(
        self, questions: Sequence[Question], predictions: Mapping[str, str], folder: str | Path
    ) -> list[Path]:
        """Write what the benchmark's server, judge or official script reads. Raises UserError like `score`."""
        return self.bench.write_submission(questions, predictions, folder)


def _read_vqav2(folder: Path, split: str) -> list[Question]:
    """VQAv2's own files, or for the test sets LLaVA's list of questions, which `eval.zip` brings."""
    asked = folder / f"llava_vqav2_mscoco_{split}.jsonl"
    official = folder / f"v2_OpenEnded_mscoco_{split}_questions.json"
    if official.exists() or not asked.exists():
        return BENCHMARKS["vqav2"].read(folder, split)
    found = []
    for one in formats.read_calibration(asked, folder / "test2015"):
        number, image = _number(one.question_id, asked), _number(Path(one.image_name).stem.rpartition("_")[2], asked)
        sample = VQAv2Sample(number, image, one.text.partition("\n")[0], one.picture)
        found.append(Question(str(number), one.text, one.picture, sample))
    return found


def _number(text: int | str, path: Path) -> int:
    try:
        return int(text)
    except ValueError as error:
        raise UserError(f"{text!r} is no number", path, "COCO's numbers of questions and images") from error


def _read_gqa(folder: Path, split: str) -> list[Question]:
    """LLaVA unpacks GQA's own files into a folder `data`."""
    inner = folder / "data"
    name = f"{split}_questions.json"
    return BENCHMARKS["gqa"].read(inner if (inner / name).exists() and not (folder / name).exists() else folder, split)


def _read_okvqa(folder: Path, split: str) -> list[Question]:
    """LLaVA-HR takes the images from the folder of the captions."""
    beside = (folder / split, folder.parent / "coco-cap" / split, folder.parent / "coco-caption" / split)
    images = next((place for place in beside if place.is_dir()), beside[0])
    return _questions(formats.read_okvqa(folder, _known("okvqa", split), image_folder=images))


def _read_ocrvqa(folder: Path, split: str) -> list[Question]:
    """LLaVA-HR takes the images from the training data: playground/data/ocr_vqa/images."""
    beside = (folder / "images", folder.parent.parent / "ocr_vqa" / "images")
    images = next((place for place in beside if place.is_dir()), beside[0])
    return _questions(formats.read_ocrvqa(folder, _known("ocrvqa", split), image_folder=images))


def _questions(samples: Sequence[Any]) -> list[Question]:
    return [Question(sample.id, sample.prompt, sample.picture, sample) for sample in samples]


def _known(name: str, split: str) -> str:
    if split not in BENCHMARKS[name].splits:
        raise UserError(f"unknown split of {BENCHMARKS[name].title}", split, " or ".join(BENCHMARKS[name].splits))
    return split


def _read_mini(folder: Path, split: str) -> list[Question]:
    return BENCHMARKS["vqav2"].read(folder, split)


# VQAv2's files, asked and scored as the miniature is.
_MINI = Benchmark(
    MINI_SET, "miniature (coarse and fine)", ("val2014",), "accuracy", 8,
    "v2_OpenEnded_mscoco_val2014_questions.json\nv2_mscoco_val2014_annotations.json\n"
    "val2014/COCO_val2014_000000000000.png            (drawn where no folder is named)",
    _read_mini, score_mini, None,
)  # fmt: skip

_READERS: dict[str, Callable[[Path, str], list[Question]]] = {
    "vqav2": _read_vqav2, "gqa": _read_gqa, "okvqa": _read_okvqa, "ocrvqa": _read_ocrvqa,
}  # fmt: skip
_SCORERS: dict[str, Scorer] = {"scienceqa": score_scienceqa, "coco_caption": score_captions}
_MAIN = {"coco_caption": "CIDEr"}


def _paper(bench: Benchmark) -> PaperBenchmark:
    name = bench.name
    return PaperBenchmark(
        bench=bench,
        split=_SPLITS.get(name, bench.splits[0]),
        max_new_tokens=bench.max_new_tokens if name == MINI_SET else _LIMITS.get(name, _SHORT),
        folder=_FOLDERS.get(name, name),
        main=_MAIN.get(name, bench.main),
        percent=bench.percent,
        _read=_READERS.get(name, bench.read),
        _score=_SCORERS.get(name),
    )


PAPER: dict[str, PaperBenchmark] = {name: _paper(bench) for name, bench in {**BENCHMARKS, MINI_SET: _MINI}.items()}


def find_benchmark(name: str) -> PaperBenchmark:
    """A benchmark by name, with dashes, underscores or neither. Raises UserError listing the names."""
    return PAPER[find_named(name, PAPER)]
