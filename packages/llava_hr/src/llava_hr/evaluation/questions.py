"""What `llava-hr eval` asks: the benchmarks' folders, the miniature's own set, the order of the questions."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from PIL import Image

from llava_hr.evaluation.benchmarks import MINI_SET, PAPER, find_benchmark
from llava_hr.evaluation.settings import ALL, EvalSettings
from tenfold.cli.settings import MINI
from tenfold.data import formats, question_sets
from tenfold.data.benchmarks import Question
from tenfold.data.formats import Picture, VQAv2Annotation, VQAv2Sample
from tenfold.data.question_sets import Draw, mini_sets

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
    drawn: dict[str, Draw] | None = None
    if settings.model == MINI:
        drawn = {MINI_SET: partial(write_mini_set, seed=seed)}
        drawn |= mini_sets(PAPER, MINI_WORLD + seed, MINI_SCENES, MINI_PIXELS)
    with question_sets.benchmark_folders(
        {name: (one.folder, name) for name, one in PAPER.items()},
        None if wanted is None else wanted.bench,
        settings.data,
        asked=settings.benchmark,
        drawn=drawn,
        default=[MINI_SET],
    ) as places:
        yield _one_seed_bench(places) if wanted is None else places


def _one_seed_bench(found: dict[str, Path]) -> dict[str, Path]:
    """SEED-Bench lies in one folder for both: with videos where LLaVA's list of them is."""
    if {"seed", "seed_all"} <= found.keys():
        del found["seed" if (found["seed_all"] / "llava-seed-bench.jsonl").exists() else "seed_all"]
    return found


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
