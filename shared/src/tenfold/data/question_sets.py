"""The questions of an evaluation: the folders that hold them, and the fingerprint of what is asked.

    with benchmark_folders(spellings, wanted, "playground/data/eval", asked="all") as places:
        for name, folder in places.items(): ...

Which benchmarks there are, and what their folders are called, is the package's and handed in.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

from tenfold.data import write
from tenfold.data.benchmarks import Benchmark, Question
from tenfold.data.formats import Picture
from tenfold.errors import UserError
from tenfold.runs import fingerprint

# Writes a set into a folder.
Draw = Callable[[Path], None]


def plain_name(name: str) -> str:
    """A benchmark's name without dashes and underscores, in lower case."""
    return name.replace("-", "").replace("_", "").lower()


def find_named(name: str, known: Iterable[str]) -> str:
    """The one of the known names that is meant, with dashes, underscores or neither.

    Raises:
        UserError: none of them; lists them.
    """
    names = list(known)
    for one in names:
        if plain_name(one) == plain_name(name):
            return one
    raise UserError("unknown benchmark", name, " or ".join(names))


def mini_sets(names: Iterable[str], world: int, scenes: int, pixels: int) -> dict[str, Draw]:
    """Writers of the mini world in the formats of some benchmarks; a benchmark without such a format is left out.

    Args:
        names: of benchmarks.
        world: the seed of the scenes.
        scenes: how many.
        pixels: of an image's side.
    """
    return {
        name: partial(_draw, write.WRITERS[write.Format[name]], world, scenes, pixels)
        for name in names
        if name in write.Format.__members__
    }


def _draw(writer: Callable[..., None], world: int, scenes: int, pixels: int, place: Path) -> None:
    writer(place, world, scenes, pixels)


@contextmanager
def benchmark_folders(
    spellings: Mapping[str, Sequence[str]],
    wanted: Benchmark | None,
    data: str | Path | None,
    *,
    asked: str,
    drawn: Mapping[str, Draw] | None = None,
    default: Sequence[str] | None = None,
) -> Iterator[dict[str, Path]]:
    """The folder of every benchmark that was asked for, by its name, in the order of `spellings`.

    Args:
        spellings: every benchmark's name -> what its folder may be called, the first one for messages.
        wanted: one of them; None: all that the data hold.
        data: the folder of that one, or one that holds a folder for each. None: sets are drawn into a temporary folder.
        asked: how the user called it, for messages.
        drawn: what can be drawn, by name; None: nothing, as a real model needs real data.
        default: those of `drawn` that are meant where none is wanted; None: all.

    Raises:
        UserError: no such folder, none of the benchmarks in it; no data; a benchmark that cannot be drawn.
    """
    if data is not None:
        folder = Path(data)
        if not folder.is_dir():
            files = "the benchmarks' folders" if wanted is None else f"the files of {wanted.title}: {wanted.tree}"
            raise UserError("no such folder", folder, files)
        inner = _inner(folder)
        if wanted is None:
            yield _found(folder, inner, spellings)
        else:
            names = map(plain_name, spellings[wanted.name])
            yield {wanted.name: next((inner[name] for name in names if name in inner), folder)}
        return
    if drawn is None:
        tree = "FOLDER with the benchmarks' folders" if wanted is None else f"FOLDER with {wanted.tree}"
        raise UserError("no data", f"--benchmark {asked}", f"--data {tree}")
    chosen = (default or list(drawn)) if wanted is None else [wanted.name]
    for name in chosen:
        if name not in drawn:
            raise UserError("no mini set", name, f"one of {', '.join(drawn)}, or --data FOLDER")
    with tempfile.TemporaryDirectory(prefix="tenfold-eval-") as temporary:
        places = {name: Path(temporary, name) for name in chosen}
        for name, place in places.items():
            drawn[name](place)
        yield places


def _inner(folder: Path) -> dict[str, Path]:
    return {plain_name(place.name): place for place in sorted(folder.iterdir()) if place.is_dir()}


def _found(folder: Path, inner: Mapping[str, Path], spellings: Mapping[str, Sequence[str]]) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for name, spelled in spellings.items():
        for spelling in map(plain_name, spelled):
            if spelling in inner:
                found.setdefault(name, inner[spelling])
    if not found:
        names = dict.fromkeys(spelled[0] for spelled in spellings.values())
        raise UserError("no benchmark's folder in it", folder, f"one of {', '.join(names)}")
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
