"""What `llava-hr eval` asks: the benchmarks' folders, the miniature's own set, the order of the questions, and the
fingerprint of questions, right answers and images."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from llava_hr.evaluation.benchmarks import MINI_SET, PAPER, PaperBenchmark, find_benchmark, plain
from llava_hr.evaluation.settings import ALL, EvalSettings
from tenfold import UserError
from tenfold.cli.settings import MINI
from tenfold.data import formats, write
from tenfold.data.benchmarks import Question
from tenfold.data.formats import Picture, VQAv2Annotation, VQAv2Sample
from tenfold.runs import fingerprint

# Of the miniature's held-out questions, and of the mini world that stands in for a benchmark without its files.
MINI_PER_KIND, MINI_SCENES, MINI_PIXELS = 25, 20, 96
MINI_WORLD = 2_000_000


@contextmanager
def benchmark_folders(settings: EvalSettings, seed: int) -> Iterator[dict[str, Path]]:
    """The folder of every benchmark that was asked for, by its name.

    Without a data folder the mini model is asked its own questions, or those of the mini world in the benchmark's
    official format, written into a temporary folder.

    Raises:
        UserError: an unknown benchmark, no such folder, none of the benchmarks in it; no folder for a real model.
    """
    wanted = None if settings.benchmark == ALL else find_benchmark(settings.benchmark)
    if settings.data is not None:
        folder = Path(settings.data)
        if not folder.is_dir():
            files = "the benchmarks' folders" if wanted is None else f"the files of {wanted.title}: {wanted.bench.tree}"
            raise UserError("no such folder", folder, files)
        yield _found_in(folder) if wanted is None else {wanted.name: _inside(folder, wanted)}
        return
    if settings.model != MINI:
        tree = "FOLDER with the benchmarks' folders" if wanted is None else f"FOLDER with {wanted.bench.tree}"
        raise UserError("no data", f"--benchmark {settings.benchmark}", f"--data {tree}")
    name = MINI_SET if wanted is None else wanted.name
    if name != MINI_SET and name not in write.Format.__members__:
        known = ", ".join((MINI_SET, *(one for one in PAPER if one in write.Format.__members__)))
        raise UserError("no mini set", name, f"one of {known}, or --data FOLDER")
    with tempfile.TemporaryDirectory(prefix="llava-hr-eval-") as temporary:
        place = Path(temporary, name)
        if name == MINI_SET:
            write_mini_set(place, seed)
        else:
            write.WRITERS[write.Format[name]](place, MINI_WORLD + seed, MINI_SCENES, MINI_PIXELS)
        yield {name: place}


def own_split(name: str, settings: EvalSettings) -> str:
    """The split that is asked for, else the paper's; the mini world's sets have answers, so their first one."""
    drawn = settings.data is None
    return settings.split or (PAPER[name].bench.splits[0] if drawn else PAPER[name].split)


def write_mini_set(folder: Path, seed: int, per_kind: int = MINI_PER_KIND) -> None:
    """Write the miniature's held-out questions as VQAv2's subset val2014; the question type is "fine/letter" etc.

    Args:
        seed: 0: of the world that the recorded results are about.
        per_kind: questions of each kind.
    """
    from llava_hr.data.mini_questions import TEST, held_out
    from llava_hr.data.mini_world import render, scene

    samples, pictures = [], {}
    for number, one in enumerate(held_out(TEST + seed, per_kind)):
        if one.index not in pictures:
            pictures[one.index] = Picture(render(scene(one.world, one.index)))
        kind, answer = one.question.kind, one.question.answer
        annotation = VQAv2Annotation(
            answers=(answer,) * 10,
            multiple_choice_answer=answer,
            question_type=f"{'fine' if one.question.fine else 'coarse'}/{kind}",
            answer_type="number" if answer.isdigit() else "other",
        )
        samples.append(VQAv2Sample(number, one.index, one.question.text, pictures[one.index], annotation))
    formats.write_vqav2(folder, samples)


def _inside(folder: Path, wanted: PaperBenchmark) -> Path:
    """The benchmark's folder: the one that was named, or, in LLaVA's `playground/data/eval`, the one in it."""
    inner = {plain(place.name): place for place in sorted(folder.iterdir()) if place.is_dir()}
    return inner.get(plain(wanted.folder), inner.get(plain(wanted.name), folder))


def _found_in(folder: Path) -> dict[str, Path]:
    places = {plain(place.name): place for place in sorted(folder.iterdir()) if place.is_dir()}
    found = {}
    for name, one in PAPER.items():
        for spelling in (one.folder, name):
            if plain(spelling) in places:
                found.setdefault(name, places[plain(spelling)])
    # SEED-Bench lies in one folder for both: with videos where LLaVA's list of them is.
    if "seed_all" in found and not (found["seed_all"] / "llava-seed-bench.jsonl").exists():
        del found["seed_all"]
    elif "seed_all" in found:
        found.pop("seed", None)
    if not found:
        names = ", ".join(dict.fromkeys(one.folder for one in PAPER.values()))
        raise UserError("no benchmark's folder in it", folder, f"one of {names}")
    return found


def by_image(questions: Sequence[Question]) -> list[list[Question]]:
    """Questions about one image together, in the order of its first one: each image is encoded once."""
    groups: dict[Hashable, list[Question]] = {}
    for question in questions:
        groups.setdefault(image_key(question), []).append(question)
    return list(groups.values())


def image_key(question: Question) -> Hashable:
    """What a question's image is known by: its file, or its place in one."""
    picture = question.picture
    if picture is None:
        return ("no image", question.id)
    if type(picture) is Picture and isinstance(picture.source, Path):
        return picture.source
    if isinstance(picture.source, Image.Image):
        return ("in memory", id(picture.source))
    return picture


def share(questions: Sequence[Question], rank: int, world: int) -> list[Question]:
    """A rank's part: whole images, about as many questions for each rank."""
    groups = by_image(questions)
    mine: list[Question] = []
    asked = 0
    for group in groups:
        # The middle of the group decides, so that every question falls to exactly one rank.
        if (asked + len(group) / 2) * world // len(questions) == rank:
            mine += group
        asked += len(group)
    return mine


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
