"""A task that the mini host was not trained on: the colour behind one more look, answered by a letter.

"Find the red circle. What color is next?" is the host's own question; its answer, one of eight colours, becomes one of
four letters (colours 0 and 4 are A, 1 and 5 are B, ...), each the answer of every fourth question. The host, which
answers by a colour, begins at zero. Adapters must learn the letters; the looks that lead to the colour are the host's.

The questions are written as LLaVA's json of conversations with pictures beside it, so that a training and an evaluation
of the miniature read what they read at full size.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from PIL import Image

from eas.data.records import Record, write_records
from tenfold.data import mini_host, miniworld
from tenfold.data.miniworld import flag_questions, flags
from tenfold.runs import atomic_directory

LETTERS = "ABCD"
TRAIN, TEST, IMAGES = "train.json", "test.json", "images"
COLOURS = tuple(miniworld.COLOURS)
# Worlds of the record, of development, and of what the shipped adapters are asked; scenes of two worlds never meet.
TRAIN_WORLD, TEST_WORLD, DEV_TRAIN, DEV_TEST, DEMO_WORLD = 71_000, 72_000, 171_000, 172_000, 73_000


def letter(colour: str) -> str:
    """The answer to a colour."""
    return LETTERS[COLOURS.index(colour) % len(LETTERS)]


def questions(world: int, count: int) -> Iterator[tuple[Image.Image, str, str]]:
    """Pictures with a question and its letter, one question a picture; the same on every platform.

    Letters are balanced: of any four questions in a row each has its own.
    """
    left: list[str] = []
    found = index = 0
    while found < count:
        left = left or list(LETTERS)
        for picture, text, colour in _asked(world, index, left):
            left.remove(letter(colour))
            yield picture, f"{text}\n{mini_host.OPTION_LETTER}", letter(colour)
            found += 1
        index += 1


def _asked(world: int, index: int, letters: Sequence[str]) -> Iterator[tuple[Image.Image, str, str]]:
    shown = flags.scene(world, index)
    asked = flag_questions.questions(shown, world, index, 4, kinds=("two_hop",))
    wanted = [one for one in asked if one.answer in COLOURS and letter(one.answer) in letters]
    colours = [(one.text, one.answer) for one in wanted][:1]
    picture = flags.render(shown) if colours else None
    for text, colour in colours:
        assert picture is not None
        yield picture, text, colour


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
