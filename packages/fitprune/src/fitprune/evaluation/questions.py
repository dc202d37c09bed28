"""What `fitprune eval` asks: the benchmarks of the paper, their splits and folders."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fitprune.evaluation.settings import EvalSettings
from tenfold.cli.settings import MINI
from tenfold.data import question_sets
from tenfold.data.benchmarks import BENCHMARKS, Benchmark
from tenfold.data.question_sets import find_named, mini_sets

ALL = "all"
MINI_SCENES = 20
MINI_PIXELS = 96
# Another world than that of a live fit, which looks at the first scenes of the world `seed`.
MINI_WORLD = 1_000_000
# What LLaVA-1.5's tables report, where it is not the registry's first split, which has answers beside the questions.
PAPER_SPLITS = {"vqav2": "test-dev2015", "vizwiz": "test", "textvqa": "val_ocr"}
# The benchmarks of LLaVA-1.5's tables, which the paper reports.
PAPER: dict[str, Benchmark] = {
    name: BENCHMARKS[name]
    for name in (
        *("vqav2", "gqa", "vizwiz", "scienceqa", "textvqa", "pope", "mme", "mmbench", "mmbench_cn", "seed", "mmvet"),
    )
}


def paper_split(benchmark: Benchmark) -> str:
    """The split that papers report."""
    return PAPER_SPLITS.get(benchmark.name, benchmark.splits[0])


def find_benchmark(name: str) -> Benchmark:
    """A benchmark by name, with dashes, underscores or neither. Raises UserError listing the names."""
    return PAPER[find_named(name, PAPER)]


@contextmanager
def benchmark_folders(settings: EvalSettings, seed: int) -> Iterator[dict[str, Path]]:
    """The folder of every benchmark that was asked for, by its name, in the order of `PAPER`.

    Without a data folder the mini world is written in the official formats, into a temporary folder.

    Raises:
        UserError: an unknown benchmark, no such folder, none of the benchmarks in it; no folder for a real model.
    """
    wanted = None if settings.benchmark == ALL else find_benchmark(settings.benchmark)
    drawn = mini_sets(PAPER, MINI_WORLD + seed, MINI_SCENES, MINI_PIXELS) if settings.model == MINI else None
    spellings = {name: (name,) for name in PAPER}
    with question_sets.benchmark_folders(
        spellings, wanted, settings.data, asked=settings.benchmark, drawn=drawn
    ) as places:
        yield places
