"""What `gamma-mod eval` asks: the benchmarks and their folders."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gamma_mod.evaluation.settings import EvalSettings
from tenfold.cli.settings import MINI
from tenfold.data import question_sets
from tenfold.data.benchmarks import BENCHMARKS, Benchmark
from tenfold.data.question_sets import find_named, mini_sets

ALL = "all"
MINI_SCENES, MINI_PIXELS = 20, 96
# Another world than that of a training, which draws its scenes from the world `seed`.
MINI_WORLD = 1_000_000


def find_benchmark(name: str) -> Benchmark:
    """A benchmark by name, with dashes, underscores or neither. Raises UserError listing the names."""
    return BENCHMARKS[find_named(name, BENCHMARKS)]


@contextmanager
def benchmark_folders(settings: EvalSettings, seed: int) -> Iterator[dict[str, Path]]:
    """The folder of every benchmark that was asked for, by its name, in the order of the registry.

    Without a data folder the mini world is written in the official formats, into a temporary folder.

    Raises:
        UserError: an unknown benchmark, no such folder, none of the benchmarks in it; no folder for a real model.
    """
    wanted = None if settings.benchmark == ALL else find_benchmark(settings.benchmark)
    drawn = mini_sets(BENCHMARKS, MINI_WORLD + seed, MINI_SCENES, MINI_PIXELS) if settings.model == MINI else None
    spellings = {name: (name,) for name in BENCHMARKS}
    with question_sets.benchmark_folders(
        spellings, wanted, settings.data, asked=settings.benchmark, drawn=drawn
    ) as places:
        yield places
