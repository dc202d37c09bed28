"""What can be said about a scene: questions with one right answer, captions, referring expressions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from tenfold.data.miniworld.draws import CAPTIONS, QUESTIONS, REFERRING, Draws
from tenfold.data.miniworld.world import COLOURS, DIRECTIONS, SHAPES, UNITS, Scene, Thing, neighbour
from tenfold.errors import UserError

# One-hop: shape (of a colour), colour (of a shape). Place: what is in a ninth of the picture. Two-hop: find one object,
# then look at its neighbour. Counting. Presence.
KINDS = ("shape", "colour", "place", "two_hop", "count", "yes_no")
ONE_HOP = ("shape", "colour")

ROWS = ("top", "middle", "bottom")
COLUMNS = ("left", "center", "right")

PLURALS = {shape: shape + ("es" if shape.endswith("s") else "s") for shape in SHAPES}


@dataclass(frozen=True)
class Question:
    """A question about a scene, its kind (one of KINDS) and its one-word answer."""

    kind: str
    text: str
    answer: str


@dataclass(frozen=True)
class Referring:
    """An expression that fits exactly one object of a scene, and that object's place in `scene.things`."""

    text: str
    target: int


def questions(scene: Scene, seed: int, index: int, count: int, kinds: Sequence[str] = KINDS) -> tuple[Question, ...]:
    """Up to `count` different questions about a scene; fewer when the scene admits fewer.

    Args:
        scene: what is asked about.
        seed, index: choose the questions; the same ones on every platform.
        count: how many at most.
        kinds: drawn from uniformly; one that the scene does not admit (no colour occurs once, say) is passed over.

    Raises:
        UserError: an unknown kind; seed or index out of range.
    """
    unknown = [kind for kind in kinds if kind not in KINDS]
    if unknown or not kinds:
        raise UserError("unknown kind of question", ", ".join(unknown) or "none", ", ".join(KINDS))
    return draw_questions(scene, Draws.of(seed, index, QUESTIONS), count, kinds)


def draw_questions(scene: Scene, draws: Draws, count: int, kinds: Sequence[str] = KINDS) -> tuple[Question, ...]:
    """`questions` from the next draws of a stream."""
    found: dict[str, Question] = {}
    # A scene of nine objects admits about 150 questions; the bound only ends the search in nearly empty scenes.
    for _ in range(20 * count):
        if len(found) == count:
            break
        question = _ASK[draws.choice(kinds)](scene, draws)
        if question is not None:
            found.setdefault(question.text, question)
    return tuple(found.values())


def _unique(scene: Scene, attribute: str) -> list[Thing]:
    """The objects whose shape (or colour) no other object of the scene has."""
    values = [getattr(thing, attribute) for thing in scene.things]
    return [thing for thing, value in zip(scene.things, values, strict=True) if values.count(value) == 1]


def _ask_shape(scene: Scene, draws: Draws) -> Question | None:
    candidates = _unique(scene, "colour")
    if not candidates:
        return None
    thing = draws.choice(candidates)
    return Question("shape", f"What shape is the {thing.colour} object?", thing.shape)


def _ask_colour(scene: Scene, draws: Draws) -> Question | None:
    candidates = _unique(scene, "shape")
    if not candidates:
        return None
    thing = draws.choice(candidates)
    return Question("colour", f"What color is the {thing.shape}?", thing.colour)


def _ask_place(scene: Scene, draws: Draws) -> Question | None:
    """About the only object whose centre lies in a ninth of the picture."""
    ninths = [place(thing) for thing in scene.things]
    candidates = [(ninth, thing) for ninth, thing in zip(ninths, scene.things, strict=True) if ninths.count(ninth) == 1]
    if not candidates:
        return None
    (row, column), thing = draws.choice(candidates)
    asked, answer = _shape_or_colour(thing, draws)
    return Question("place", f"What {asked} is in the {ROWS[row]} {COLUMNS[column]}?", answer)


def _shape_or_colour(thing: Thing, draws: Draws) -> tuple[str, str]:
    return draws.choice((("shape", thing.shape), ("color", thing.colour)))


def _ask_two_hop(scene: Scene, draws: Draws) -> Question | None:
    looks = [(thing.colour, thing.shape) for thing in scene.things]
    candidates = [
        (thing, direction, found)
        for thing, look in zip(scene.things, looks, strict=True)
        if looks.count(look) == 1
        for direction in DIRECTIONS
        if (found := neighbour(scene, thing, direction)) is not None
    ]
    if not candidates:
        return None
    thing, direction, found = draws.choice(candidates)
    # The reference comes before the direction: a causal decoder can find the one while it reads the other.
    asked, answer = _shape_or_colour(found, draws)
    text = f"Find the {thing.colour} {thing.shape}. What {asked} is the object {direction} it?"
    return Question("two_hop", text, answer)


def _ask_count(scene: Scene, draws: Draws) -> Question | None:
    attribute, values = draws.choice((("colour", tuple(COLOURS)), ("shape", SHAPES)))
    # Three times out of four about something that is there: most values occur nowhere in a small scene.
    there = [getattr(thing, attribute) for thing in scene.things]
    value = draws.choice(there if there and draws.below(4) else values)
    noun = f"{value} objects" if attribute == "colour" else PLURALS[value]
    return Question("count", f"How many {noun} are there?", str(there.count(value)))


def _ask_yes_no(scene: Scene, draws: Draws) -> Question | None:
    there = sorted({(thing.colour, thing.shape) for thing in scene.things})
    if draws.below(2):
        return presence_question(draws.choice(there), "yes") if there else None
    absent = absent_pairs(scene)
    if draws.below(2):
        absent = adversarial_pairs(scene) or absent
    return presence_question(draws.choice(absent), "no") if absent else None


_ASK = {
    "shape": _ask_shape,
    "colour": _ask_colour,
    "place": _ask_place,
    "two_hop": _ask_two_hop,
    "count": _ask_count,
    "yes_no": _ask_yes_no,
}


def led_to(scene: Scene, question: Question) -> tuple[Thing, ...]:
    """The objects that a question of `questions` leads to, one hop after the other; the last one has the answer.

    One object for a shape, colour or place question, two for a two-hop question, those that look as asked for a yes-no
    question, none for a count.
    """
    words = question.text.rstrip("?").replace(".", "").split()
    if question.kind == "shape":
        return tuple(thing for thing in scene.things if thing.colour == words[-2])
    if question.kind == "colour":
        return tuple(thing for thing in scene.things if thing.shape == words[-1])
    if question.kind == "place":
        ninth = (ROWS.index(words[-2]), COLUMNS.index(words[-1]))
        return tuple(thing for thing in scene.things if place(thing) == ninth)
    if question.kind == "yes_no":
        return tuple(thing for thing in scene.things if [thing.colour, thing.shape] == words[3:5])
    if question.kind != "two_hop":
        return ()
    look, direction = words[2:4], " ".join(words[9:-1])
    named = next(thing for thing in scene.things if [thing.colour, thing.shape] == look)
    found = neighbour(scene, named, direction)
    return (named,) if found is None else (named, found)


def place(thing: Thing) -> tuple[int, int]:
    """The ninth of the picture that an object's centre lies in: numbers into ROWS and COLUMNS."""
    return 3 * thing.y // UNITS, 3 * thing.x // UNITS


def presence_question(pair: tuple[str, str], answer: str) -> Question:
    """POPE's question about a (colour, shape)."""
    return Question("yes_no", f"Is there a {pair[0]} {pair[1]} in the image?", answer)


class Looks(Protocol):
    """Any scene whose objects have a colour and a shape."""

    @property
    def things(self) -> Sequence[Any]: ...


def absent_pairs(scene: Looks) -> list[tuple[str, str]]:
    """Every (colour, shape) that no object of the scene has."""
    there = {(thing.colour, thing.shape) for thing in scene.things}
    return [(colour, shape) for colour in COLOURS for shape in SHAPES if (colour, shape) not in there]


def adversarial_pairs(scene: Looks) -> list[tuple[str, str]]:
    """Absent pairs whose colour and shape both occur in the scene, on different objects."""
    colours, shapes = {thing.colour for thing in scene.things}, {thing.shape for thing in scene.things}
    return [(colour, shape) for colour, shape in absent_pairs(scene) if colour in colours and shape in shapes]


def describe(thing: Thing) -> str:
    """An object in words: size, colour, shape."""
    return f"{thing.size} {thing.colour} {thing.shape}"


def caption(scene: Scene, limit: int | None = None) -> str:
    """The scene in one sentence: its objects in reading order, the first `limit` of them (default: all)."""
    return sentence([f"a {describe(thing)}" for thing in scene.things[:limit]])


def captions(scene: Scene, seed: int, index: int, count: int) -> tuple[str, ...]:
    """Up to `count` different true captions: each of some objects, or of two and how they lie to each other.

    Raises:
        UserError: seed or index out of range.
    """
    draws = Draws.of(seed, index, CAPTIONS)
    found: dict[str, None] = {}
    for _ in range(20 * count):
        if len(found) == count:
            break
        found.setdefault(_draw_caption(scene, draws))
    return tuple(found)


def _draw_caption(scene: Scene, draws: Draws) -> str:
    if not scene.things:
        return caption(scene)
    thing = draws.choice(scene.things)
    beside = [(direction, other) for direction in DIRECTIONS if (other := neighbour(scene, thing, direction))]
    if beside and draws.below(2):
        # neighbour(thing, "left of") is the object to thing's left: it is left of thing.
        direction, other = draws.choice(beside)
        return f"There is a {describe(other)} {direction} a {describe(thing)}."
    several = draws.sample(scene.things, draws.between(1, 3))
    return sentence([f"a {describe(thing)}" for thing in several])


def sentence(parts: list[str]) -> str:
    """ "There is a, b and c." """
    if not parts:
        return "There is nothing in the image."
    listed = parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
    return f"There is {listed}." if len(parts) == 1 else f"There are {listed}."


def referring(scene: Scene, seed: int, index: int, count: int) -> tuple[Referring, ...]:
    """Up to `count` different expressions, each fitting exactly one object; `masks(scene, size)[target]` shows it.

    Raises:
        UserError: seed or index out of range.
    """
    everything = [expression for target in range(len(scene.things)) for expression in _expressions(scene, target)]
    return tuple(Draws.of(seed, index, REFERRING).sample(everything, count))


def _expressions(scene: Scene, target: int) -> list[Referring]:
    """By look (size, colour, shape in any combination that no other object shares), and by place beside another."""
    thing = scene.things[target]
    found = []
    for attributes in (("colour",), ("shape",), ("colour", "shape"), ("size", "shape"), ("size", "colour", "shape")):
        look = [getattr(thing, attribute) for attribute in attributes]
        if sum([getattr(other, attribute) for attribute in attributes] == look for other in scene.things) == 1:
            noun = "" if "shape" in attributes else " object"
            found.append(Referring(f"the {' '.join(look)}{noun}", target))
    looks = [(other.colour, other.shape) for other in scene.things]
    for anchor, seen in zip(scene.things, looks, strict=True):
        for direction in DIRECTIONS:
            if looks.count(seen) == 1 and neighbour(scene, anchor, direction) is thing:
                found.append(Referring(f"the object directly {direction} the {' '.join(seen)}", target))
    return found
