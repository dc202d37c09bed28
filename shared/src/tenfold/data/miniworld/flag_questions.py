"""Questions about scenes of flags (`tenfold.data.miniworld.flags`): one look at the picture, or several.

shape, colour, place     one look
yes_no, count            one look at everything
two_hop, three_hop       find an object, then follow one flag, or two
follow                   follow flags to the end: the picture decides how many
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tenfold.data.miniworld.draws import Draws
from tenfold.data.miniworld.flags import FlagScene, question_draws, scene
from tenfold.data.miniworld.language import COLUMNS, PLURALS, ROWS
from tenfold.data.miniworld.world import COLOURS, SHAPES
from tenfold.errors import UserError

# Those that follow flags need colours that name one object each.
PLAIN, DEEP = ("shape", "colour", "place", "yes_no", "count"), ("two_hop", "three_hop", "follow")
KINDS = (*PLAIN, *DEEP)
LONGEST = 4  # objects of a chain that is followed
MOST = 3  # that are counted


@dataclass(frozen=True)
class FlagQuestion:
    """A question, its one-word answer, and how to come from one to the other.

    Args:
        kind: one of KINDS.
        text, answer: as asked and answered.
        chain: places in `scene.things` of the objects it leads to, one look after the other; the last one has the
            answer. For yes_no the objects that look as asked, for count those of the shape.
        named: number of the word that ends its reference to the first object.
    """

    kind: str
    text: str
    answer: str
    chain: tuple[int, ...]
    named: int


def asked(kind: str, seed: int, count: int) -> list[tuple[FlagScene, FlagQuestion]]:
    """`count` questions of a kind, one a scene: every fourth scene of the kinds that follow no flags repeats colours.

    Raises:
        UserError: an unknown kind; seed out of range.
    """
    _known((kind,))
    pairs: list[tuple[FlagScene, FlagQuestion]] = []
    index = 0
    while len(pairs) < count:
        shown = scene(seed, index, repeated=kind in PLAIN and index % 4 == 3)
        question = _ASK[kind](shown, question_draws(seed, index))
        pairs += [] if question is None else [(shown, question)]
        index += 1
    return pairs


def questions(
    shown: FlagScene, seed: int, index: int, count: int, kinds: Sequence[str] = KINDS
) -> tuple[FlagQuestion, ...]:
    """Up to `count` different questions about a scene; the same ones on every platform.

    Raises:
        UserError: an unknown kind; seed or index out of range.
    """
    _known(kinds)
    different: dict[str, FlagQuestion] = {}
    draws = question_draws(seed, index)
    for _ in range(20 * count):
        if len(different) == count:
            break
        question = draw_question(shown, draws, kinds)
        if question is not None:
            different.setdefault(question.text, question)
    return tuple(different.values())


def _known(kinds: Sequence[str]) -> None:
    unknown = [kind for kind in kinds if kind not in KINDS]
    if unknown or not kinds:
        raise UserError("unknown kind of question", ", ".join(unknown) or "none", ", ".join(KINDS))


def draw_question(shown: FlagScene, draws: Draws, kinds: Sequence[str]) -> FlagQuestion | None:
    """One question from the next draws of a stream; None where the scene does not admit the kind that was drawn."""
    return _ASK[draws.choice(kinds)](shown, draws)


def _look(shown: FlagScene, place: int) -> str:
    return f"{shown.things[place].colour} {shown.things[place].shape}"


def _shape_or_colour(shown: FlagScene, place: int, draws: Draws) -> tuple[str, str]:
    thing = shown.things[place]
    return draws.choice((("shape", thing.shape), ("color", thing.colour)))


def _single(values: Sequence[str]) -> list[int]:
    return [place for place, value in enumerate(values) if values.count(value) == 1]


def _ask_shape(shown: FlagScene, draws: Draws) -> FlagQuestion | None:
    places = _single([thing.colour for thing in shown.things])
    if not places:
        return None
    place = draws.choice(places)
    thing = shown.things[place]
    return FlagQuestion("shape", f"What shape is the {thing.colour} object?", thing.shape, (place,), 4)


def _ask_colour(shown: FlagScene, draws: Draws) -> FlagQuestion | None:
    places = _single([thing.shape for thing in shown.things])
    if not places:
        return None
    place = draws.choice(places)
    thing = shown.things[place]
    return FlagQuestion("colour", f"What color is the {thing.shape}?", thing.colour, (place,), 4)


def _ask_place(shown: FlagScene, draws: Draws) -> FlagQuestion:
    place = draws.below(len(shown.things))
    asked, answer = _shape_or_colour(shown, place, draws)
    row, column = shown.things[place].ninth
    return FlagQuestion("place", f"What {asked} is in the {ROWS[row]} {COLUMNS[column]}?", answer, (place,), 6)


def _ask_yes_no(shown: FlagScene, draws: Draws) -> FlagQuestion | None:
    """Half yes; of the noes half about an absent colour, half about one that is there, mostly with a shape that is."""
    looks = [(thing.colour, thing.shape) for thing in shown.things]
    if draws.below(2):
        colour, shape = draws.choice(looks)
    elif draws.below(2):
        there = {colour for colour, _ in looks}
        colour, shape = draws.choice([one for one in COLOURS if one not in there]), draws.choice(SHAPES)
    else:
        colour = draws.choice(looks)[0]
        having = {shape for one, shape in looks if one == colour}
        others = sorted({shape for _, shape in looks} - having)
        absent = [shape for shape in SHAPES if shape not in having]
        if not absent:
            return None
        shape = draws.choice(others if others and draws.below(10) < 7 else absent)
    places = tuple(place for place, look in enumerate(looks) if look == (colour, shape))
    text = f"Is there a {colour} {shape} in the image?"
    return FlagQuestion("yes_no", text, "yes" if places else "no", places, 4)


def _ask_count(shown: FlagScene, draws: Draws) -> FlagQuestion | None:
    shapes = [thing.shape for thing in shown.things]
    number = draws.between(0, MOST)
    candidates = [shape for shape in SHAPES if shapes.count(shape) == number]
    if not candidates:
        return None
    shape = draws.choice(candidates)
    places = tuple(place for place, other in enumerate(shapes) if other == shape)
    return FlagQuestion("count", f"How many {PLURALS[shape]} are there?", str(number), places, 2)


def _ask_hops(shown: FlagScene, draws: Draws, hops: int) -> FlagQuestion | None:
    chains = [chain for place in range(len(shown.things)) if len(chain := shown.chain(place)) > hops]
    if shown.repeated or not chains:
        return None
    chain = draws.choice(chains)[: hops + 1]
    asked, answer = _shape_or_colour(shown, chain[-1], draws)
    kind, where = ("two_hop", "next") if hops == 1 else ("three_hop", "after the next")
    return FlagQuestion(kind, f"Find the {_look(shown, chain[0])}. What {asked} is {where}?", answer, chain, 3)


def _ask_follow(shown: FlagScene, draws: Draws) -> FlagQuestion | None:
    """To the end of a chain of two to LONGEST objects, every length that is there equally often."""
    chains = [chain for place in range(len(shown.things)) if 1 < len(chain := shown.chain(place)) <= LONGEST]
    if shown.repeated or not chains:
        return None
    length = draws.choice(sorted({len(chain) for chain in chains}))
    chain = draws.choice([chain for chain in chains if len(chain) == length])
    asked, answer = _shape_or_colour(shown, chain[-1], draws)
    text = f"Follow from the {_look(shown, chain[0])} to the end. What {asked} is it?"
    return FlagQuestion("follow", text, answer, chain, 4)


_ASK = {
    "shape": _ask_shape,
    "colour": _ask_colour,
    "place": _ask_place,
    "yes_no": _ask_yes_no,
    "count": _ask_count,
    "two_hop": lambda shown, draws: _ask_hops(shown, draws, 1),
    "three_hop": lambda shown, draws: _ask_hops(shown, draws, 2),
    "follow": _ask_follow,
}
