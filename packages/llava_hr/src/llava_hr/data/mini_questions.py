"""What is asked about the miniature's scenes: coarse questions, fine ones, captions, conversations, held-out questions.

    coarse   shape, colour, row, column: of the large object; count: of all objects
    fine     letter, notch, dots: the mark of a few pixels on one object

A scene has at most one mark of a kind, and one large object: a question is answered by what is found, not by telling
apart what is found twice. What is measured is what can be seen.

Every answer is one word that is one token. Worlds are seeds of scenes: TRAIN is what `mini.write_mini_data` writes,
TEXT and CLASSES are what the language model and the two encoders are pre-trained on, DEV was looked at while the
miniature was made, TEST when it was finished; RECORD is what the variants are asked about.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from llava_hr.data.mini_world import COLOURS, DOTS, LEAST, LETTERS, MOST, SHAPES, SIDES, MiniScene, Object, scene
from tenfold import UserError
from tenfold.data.miniworld import COLUMNS, ROWS, Draws

TRAIN, DEV, TEXT, CLASSES, TEST, RECORD = 0, 1, 2, 3, 104_729, 104_743
COARSE = ("shape", "colour", "count", "row", "column")
FINE = ("letter", "notch", "dots")
KINDS = (*COARSE, *FINE)
ANSWERS = {
    "shape": SHAPES,
    "colour": COLOURS,
    "count": tuple(str(number) for number in range(LEAST, MOST + 1)),
    "row": ROWS,
    "column": COLUMNS,
    "letter": tuple(LETTERS),
    "notch": SIDES,
    "dots": DOTS,
}
COARSE_TURNS = 3  # of a training conversation; a fine question about every object comes with them
_PURPOSE = 22


@dataclass(frozen=True)
class Question:
    """A question about a scene: its kind (one of KINDS) and its one-word answer."""

    kind: str
    text: str
    answer: str

    @property
    def fine(self) -> bool:
        return self.kind in FINE


@dataclass(frozen=True)
class Asked:
    """A held-out question: which scene of which world it is about, and how much grain that world has."""

    world: int
    index: int
    question: Question
    grain: int = 0


def all_questions(scene: MiniScene, kind: str) -> list[Question]:
    """The questions of a kind that the scene admits: one, or none about a mark that is not there."""
    if kind == "count":
        return [Question(kind, _TEXTS[kind], str(len(scene.objects)))]
    if kind in FINE:
        marked = [one for one in scene.objects if one.mark == kind]
        return [Question(kind, _TEXTS[kind].format(colour=one.colour, shape=one.shape), one.value) for one in marked]
    one = scene.large
    row, column = one.place
    answer = {"shape": one.shape, "colour": one.colour, "row": row, "column": column}[kind]
    return [Question(kind, _TEXTS[kind], answer)]


_TEXTS = {
    "shape": "What shape is the large object?",
    "colour": "What color is the large object?",
    "count": "How many objects are there?",
    "row": "In which row is the large object?",
    "column": "In which column is the large object?",
    "letter": "Which letter is on the {colour} {shape}?",
    "notch": "Which side of the tag on the {colour} {shape} has a notch?",
    "dots": "How many dots are on the {colour} {shape}?",
}


def conversation(scene: MiniScene, seed: int, index: int) -> tuple[Question, ...]:
    """A training conversation: a fine question about every mark and COARSE_TURNS coarse ones, in random order."""
    draws = Draws.of(seed, index, _PURPOSE)
    kinds = [*FINE, *draws.sample(COARSE, COARSE_TURNS)]
    return tuple(draws.shuffled([question for kind in kinds for question in all_questions(scene, kind)]))


def caption(scene: MiniScene) -> str:
    """All objects in reading order, e.g. "a large red square at the top left with the letter H , a ..."."""
    return " , ".join(_described(one) for one in scene.objects)


def _described(one: Object) -> str:
    marks = {
        "letter": f" with the letter {one.value}",
        "notch": f" with a notch at the {one.value}",
        "dots": f" with {one.value} dots",
        "": "",
    }
    return f"a {one.size} {one.colour} {one.shape} at the {' '.join(one.place)}{marks[one.mark]}"


def held_out(world: int, per_kind: int, kinds: Sequence[str] = KINDS, grain: int = 0) -> list[Asked]:
    """`per_kind` questions of each kind, one a scene; kind after kind, about scenes 0, 1, ... of a world.

    Args:
        grain: the most that a picture has, as `mini_world.scene` takes it.

    Raises:
        UserError: an unknown kind.
    """
    unknown = [kind for kind in kinds if kind not in KINDS]
    if unknown:
        raise UserError("unknown kind of question", ", ".join(unknown), ", ".join(KINDS))
    found: list[Asked] = []
    for kind in kinds:
        index = count = 0
        while count < per_kind:
            several = [Asked(world, index, question, grain) for question in all_questions(scene(world, index), kind)]
            found += several
            count += len(several)
            index += 1
    return found
