"""What `fitprune eval` asks: the benchmarks' folders, and the fingerprint of questions, right answers and images."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from fitprune.evaluation.published import plain
from fitprune.evaluation.settings import EvalSettings
from tenfold import UserError
from tenfold.cli.settings import MINI
from tenfold.data import write
from tenfold.data.benchmarks import BENCHMARKS, Benchmark, Question, benchmark
from tenfold.data.formats import Picture
from tenfold.runs import fingerprint

ALL = "all"
MINI_SCENES = 20
MINI_PIXELS = 96
# Another world than that of a live fit, which looks at the first scenes of the world `seed`.
MINI_WORLD = 1_000_000
# What LLaVA-1.5's tables report, where it is not the registry's first split, which has answers beside the questions.
PAPER_SPLITS = {"vqav2": "test-dev2015", "vizwiz": "test", "textvqa": "val_ocr"}


def paper_split(benchmark: Benchmark) -> str:
    """The split that papers report."""
    return PAPER_SPLITS.get(benchmark.name, benchmark.splits[0])


def find_benchmark(name: str) -> Benchmark:
    """A benchmark by name, with dashes, underscores or neither. Raises UserError listing the names."""
    return benchmark(next((known for known in BENCHMARKS if plain(known) == plain(name)), name))


@contextmanager
def benchmark_folders(settings: EvalSettings, seed: int) -> Iterator[dict[str, Path]]:
    """The folder of every benchmark that was asked for, by its name, in the order of the registry.

    Without a data folder the mini world is written in the official formats, into a temporary folder.

    Raises:
        UserError: an unknown benchmark, no such folder, none of the benchmarks in it; no folder for a real model.
    """
    wanted = None if settings.benchmark == ALL else find_benchmark(settings.benchmark)
    if settings.data is not None:
        folder = Path(settings.data)
        if not folder.is_dir():
            files = "the benchmarks' folders" if wanted is None else f"the files of {wanted.title}: {wanted.tree}"
            raise UserError("no such folder", folder, files)
        yield _found_in(folder) if wanted is None else {wanted.name: folder}
        return
    if settings.model != MINI:
        tree = "FOLDER with the benchmarks' folders" if wanted is None else f"FOLDER with {wanted.tree}"
        raise UserError("no data", f"--benchmark {settings.benchmark}", f"--data {tree}")
    names = [name for name in BENCHMARKS if name in write.Format.__members__]
    if wanted is not None and wanted.name not in names:
        raise UserError("no mini set", wanted.name, f"one of {', '.join(names)}, or --data FOLDER")
    with tempfile.TemporaryDirectory(prefix="fitprune-eval-") as temporary:
        places = {name: Path(temporary, name) for name in (names if wanted is None else [wanted.name])}
        for name, place in places.items():
            write.WRITERS[write.Format[name]](place, MINI_WORLD + seed, MINI_SCENES, MINI_PIXELS)
        yield places


def _found_in(folder: Path) -> dict[str, Path]:
    places = {plain(place.name): place for place in sorted(folder.iterdir()) if place.is_dir()}
    found = {name: places[plain(name)] for name in BENCHMARKS if plain(name) in places}
    if not found:
        raise UserError("no benchmark's folder in it", folder, f"one of {', '.join(BENCHMARKS)}")
    return found


def questions_fingerprint(questions: Sequence[Question]) -> str:
    """Of what is asked, what is known of it (the right answers) and every image's content; of no path.

    Raises:
        UserError: an image file that cannot be read.
    """
    seen: dict[Path, str] = {}
    return fingerprint([[one.id, one.prompt, _plain(one.picture, seen), _plain(one.sample, seen)] for one in questions])


def _plain(value: Any, seen: dict[Path, str]) -> Any:
    """A record as JSON; an image as the fingerprint of its content."""
    if isinstance(value, Picture):
        return _plain(value.source, seen)
    if isinstance(value, Path):
        if value not in seen:
            seen[value] = fingerprint(value)
        return seen[value]
    if isinstance(value, Image.Image):
        return [value.mode, *value.size, hashlib.sha256(value.tobytes()).hexdigest()]
    if isinstance(value, bytes):
        return hashlib.sha256(value).hexdigest()
    if is_dataclass(value):
        return [_plain(getattr(value, field.name), seen) for field in fields(value)]
    if isinstance(value, Mapping):
        return {str(key): _plain(item, seen) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, seen) for item in value]
    return value
