"""A task that the mini host was not trained on: four things under names that it has never heard.

"Find the red circle. What color is next?" is the host's own question. Here four of the eight colours are called A, B, C
and D in the question, and the answer is one of the other four, each the answer of every fourth question. The looks that
lead to the answer are the host's, the names are not: untuned it goes by the shape beside the name, which often is
enough (72 % on the host of seed 0). The rest is for the adapters: a name that is read as its colour finds its object.

The questions are written as LLaVA's json of conversations with pictures beside it, so that a training and an evaluation
of the miniature read what they read at full size.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from PIL import Image

from eas.data.records import Record, write_records
from tenfold.data import miniworld
from tenfold.data.miniworld import flag_questions, flags
from tenfold.runs import atomic_directory

TRAIN, TEST, IMAGES = "train.json", "test.json", "images"
_COLOURS = tuple(miniworld.COLOURS)
ANSWERS, NAMES = _COLOURS[:4], dict(zip(_COLOURS[4:], "ABCD", strict=True))
_NAMED = re.compile(rf"\b({'|'.join(NAMES)})\b")
# Worlds of the record, of development, and of what the shipped adapters are asked; scenes of two worlds never meet.
TRAIN_WORLD, TEST_WORLD, DEV_TRAIN, DEV_TEST, DEMO_WORLD = 71_000, 72_000, 171_000, 172_000, 73_000


def questions(world: int, count: int) -> Iterator[tuple[Image.Image, str, str]]:
    """Pictures with a question and its answer, one question a picture; the same on every platform.

    Answers are balanced: of any four questions in a row each has its own.
    """
    left: list[str] = []
    found = index = 0
    while found < count:
        left = left or list(ANSWERS)
        for picture, text, answer in _asked(world, index, left):
            left.remove(answer)
            yield picture, text, answer
            found += 1
        index += 1


def _asked(world: int, index: int, answers: Sequence[str]) -> Iterator[tuple[Image.Image, str, str]]:
    """At most one question about a scene: it names one object, by a new name, and has one of these answers."""
    shown = flags.scene(world, index)
    for one in flag_questions.questions(shown, world, index, 6, kinds=("two_hop",)):
        if len(_NAMED.findall(one.text)) == 1 and one.answer in answers:
            yield flags.render(shown), _NAMED.sub(lambda colour: NAMES[colour.group()], one.text), one.answer
            return


def write(folder: str | Path, count: int, *, seed: int = 0, test: int = 200) -> None:
    """Write training and test questions into a new folder: ``train.json``, ``test.json``, ``images/``."""
    with atomic_directory(folder) as place:
        images = place / IMAGES
        for name, world, size in ((TRAIN, TRAIN_WORLD, count), (TEST, TEST_WORLD, test)):
            records = []
            for number, (picture, text, answer) in enumerate(questions(world + seed, size)):
                file = images / name.removesuffix(".json") / f"{number}.png"
                file.parent.mkdir(parents=True, exist_ok=True)
                picture.save(file)
                records.append(Record(f"{name[:-5]}-{number}", text, answer, file, "CLOSED"))
            write_records(place / name, records, images)
