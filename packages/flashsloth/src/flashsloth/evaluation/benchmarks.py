"""The paper's benchmarks that are read from official files (sheet section 7).

Formats and scores are Tenfold's; what differs here is the authors' protocol. The other six of the paper's fourteen
(MMMU, MathVista, AI2D, ChartQA, DocVQA, RealWorldQA) are asked through lmms-eval (`evaluation.lmms`), as authors do.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from flashsloth.data import mini_world as world
from flashsloth.evaluation.settings import ALL, EvalSettings
from tenfold import UserError
from tenfold.cli.settings import MINI
from tenfold.data import formats
from tenfold.data.benchmarks import BENCHMARKS, Benchmark, Question
from tenfold.data.formats import Picture, VQAv2Annotation, VQAv2Sample

MINI_SET = "mini"
MINI_WORLD, MINI_PER_KIND = 2_000_000, 20
REASON = "First please perform reasoning, and think step by step to provide best answer to the following question: \n\n"


@dataclass(frozen=True)
class PaperBenchmark:
    """A benchmark under the paper's protocol.

    Attributes:
        bench: how it is read, scored and submitted.
        split: the one that the paper reports.
        max_new_tokens: the most tokens of an answer.
        folder: its name in LLaVA's `playground/data/eval`.
        prefix: before every question.
    """

    bench: Benchmark
    split: str
    max_new_tokens: int
    folder: str
    prefix: str = ""

    @property
    def name(self) -> str:
        return MINI_SET if self.folder == MINI_SET else self.bench.name

    @property
    def title(self) -> str:
        return "the miniature's questions" if self.folder == MINI_SET else self.bench.title

    def read(self, folder: str | Path, split: str | None = None) -> list[Question]:
        """The questions of a split. Raises UserError: an unknown split, and all that the format's reader refuses."""
        return self.bench.read(folder, split or self.split)

    def score(self, questions: Sequence[Question], predictions: Mapping[str, str]) -> dict[str, float]:
        """Metrics; for MME also the sum that the paper reports, for the miniature also each level and kind."""
        scores = self.bench.score(questions, predictions)
        if self.bench.name == "mme" and {"perception", "cognition"} <= scores.keys():
            scores["total"] = scores["perception"] + scores["cognition"]
        if self.folder == MINI_SET:
            for kind in sorted({one.sample.annotation.question_type for one in questions}):
                of_kind = [one for one in questions if one.sample.annotation.question_type == kind]
                scores[kind] = self.bench.score(of_kind, predictions)["accuracy"]
        return scores

    @property
    def main(self) -> str | None:
        """The entry of `score` that the paper reports."""
        return "total" if self.bench.name == "mme" else self.bench.main


PAPER: dict[str, PaperBenchmark] = {
    "gqa": PaperBenchmark(BENCHMARKS["gqa"], "testdev_balanced", 16, "gqa"),
    "mme": PaperBenchmark(BENCHMARKS["mme"], "test", 16, "MME"),
    "textvqa": PaperBenchmark(BENCHMARKS["textvqa"], "val", 16, "textvqa"),
    "pope": PaperBenchmark(BENCHMARKS["pope"], "all", 128, "pope"),
    "mmbench": PaperBenchmark(BENCHMARKS["mmbench"], "dev", 1024, "mmbench"),
    "scienceqa": PaperBenchmark(BENCHMARKS["scienceqa"], "test", 16, "scienceqa"),
    "seed": PaperBenchmark(BENCHMARKS["seed"], "image", 16, "seed_bench"),
    "mmvet": PaperBenchmark(BENCHMARKS["mmvet"], "test", 1024, "mm-vet", REASON),
    MINI_SET: PaperBenchmark(BENCHMARKS["vqav2"], "val2014", 4, MINI_SET),
}


def find_benchmark(name: str) -> PaperBenchmark:
    """A benchmark by name, with dashes, underscores or neither. Raises UserError listing the names."""
    for known, one in PAPER.items():
        if _plain(known) == _plain(name):
            return one
    raise UserError("unknown benchmark", name, ", ".join(PAPER))


@contextmanager
def benchmark_folders(settings: EvalSettings, seed: int) -> Iterator[dict[str, Path]]:
    """The folder of every benchmark that was asked for, by its name.

    Without a data folder the mini model is asked its own questions, written into a temporary folder.

    Raises:
        UserError: an unknown benchmark, no such folder, none of the benchmarks in it; no folder for a real model.
    """
    wanted = None if settings.benchmark == ALL else find_benchmark(settings.benchmark)
    if settings.data is not None:
        folder = Path(settings.data)
        if not folder.is_dir():
            raise UserError("no such folder", folder, "the benchmark's files: flashsloth eval --help shows the trees")
        inner = {_plain(place.name): place for place in sorted(folder.iterdir()) if place.is_dir()}
        if wanted is not None:
            yield {wanted.name: inner.get(_plain(wanted.folder), folder)}
            return
        found = {name: inner[_plain(one.folder)] for name, one in PAPER.items() if _plain(one.folder) in inner}
        if not found:
            names = ", ".join(one.folder for one in PAPER.values())
            raise UserError("no benchmark's folder in it", folder, f"one of {names}")
        yield found
        return
    if settings.model != MINI or wanted not in (None, PAPER[MINI_SET]):
        asked = f"--benchmark {settings.benchmark}"
        raise UserError("no data", asked, "--data FOLDER: flashsloth eval --help shows the trees")
    with tempfile.TemporaryDirectory(prefix="flashsloth-eval-") as temporary:
        write_mini_set(Path(temporary, MINI_SET), seed)
        yield {MINI_SET: Path(temporary, MINI_SET)}


def write_mini_set(folder: Path, seed: int, per_kind: int = MINI_PER_KIND) -> None:
    """Write held-out questions of the miniature in VQAv2's format; the question type is "crowded/shape" and so on."""
    samples: list[VQAv2Sample] = []
    for odd, level in enumerate((world.SPARSE, world.CROWDED)):
        for index in range(per_kind):
            scene = world.draw(MINI_WORLD + seed, 2 * index + odd)
            picture = Picture(world.render(scene))
            for place, kind in enumerate(world.KINDS):
                one = world.question(scene, kind, (index + place) % world.SIGNS)
                answers = VQAv2Annotation((one.answer,) * 10, one.answer, f"{level}/{kind}", "other")
                samples.append(VQAv2Sample(len(samples), scene.index, one.text, picture, answers))
    formats.write_vqav2(folder, samples)


def _plain(name: str) -> str:
    return name.replace("-", "").replace("_", "").lower()
