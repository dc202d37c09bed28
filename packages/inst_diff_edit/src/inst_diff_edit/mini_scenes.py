"""Pictures of two objects for the mini model, and edits of one of them with the other as a distractor.

Objects stand in the outer cells of a 3 x 3 grid, never in the middle, and share neither colour nor shape. An edit
changes colour or shape of one; its prompt names what the object shall be ("a green circle"), so that one of its words
fits the object that is there and none fits the other.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from tenfold.data import miniworld
from tenfold.data.miniworld import COLOURS, SHAPES, Draws, Scene, SceneConfig, Thing
from tenfold.data.miniworld.draws import EDIT, SCENE

EDGE = 32
WORDS = ("a", "and", *COLOURS, *SHAPES)
CONFIG = SceneConfig(grid=3, min_objects=2, max_objects=2, sizes=("large",))
MIDDLE = miniworld.UNITS // 2


@dataclass(frozen=True)
class Edit:
    """One object of a scene shall become another.

    Attributes:
        scene, target: before and after.
        changed: the object's place in ``scene.things``.
        kind: "recolour" or "reshape".
        source_prompt, prompt: what the object is, and what it shall be.
    """

    scene: Scene
    target: Scene
    changed: int
    kind: str
    source_prompt: str
    prompt: str

    def picture(self, edge: int = EDGE) -> Image.Image:
        """The picture before the edit."""
        return miniworld.render(self.scene, edge)

    def mask(self, edge: int = EDGE) -> np.ndarray:
        """The pixels that may change, bool ``[edge, edge]``: the object before or after."""
        return miniworld.masks(self.scene, edge)[self.changed] | miniworld.masks(self.target, edge)[self.changed]


def scene(seed: int, index: int) -> Scene:
    """Scene ``index`` of the world ``seed``; shares no stream with the trainer's."""
    return draw(Draws.of(seed, index, SCENE))


def draw(draws: Draws) -> Scene:
    """Two objects outside the middle cell, different in colour and in shape."""
    while True:
        found = miniworld.draw_scene(draws, CONFIG)
        first, second = found.things
        apart = first.colour != second.colour and first.shape != second.shape
        if apart and not any((thing.x, thing.y) == (MIDDLE, MIDDLE) for thing in found.things):
            return found


def phrase(thing: Thing) -> str:
    """ "a red circle"."""
    return f"a {thing.colour} {thing.shape}"


def draw_caption(found: Scene, draws: Draws) -> str:
    """A training caption: mostly one of the objects, as edits name one; else both in either order, or nothing."""
    first, second = draws.shuffled([phrase(thing) for thing in found.things])
    kind = draws.below(10)
    if kind == 0:
        return ""
    return first if kind <= 7 else f"{first} and {second}"


def edit(seed: int, index: int) -> Edit:
    """Edit ``index`` of the world ``seed``."""
    found = scene(seed, index)
    draws = Draws.of(seed, index, EDIT)
    changed, kind = draws.below(2), draws.choice(("recolour", "reshape"))
    thing, other = found.things[changed], found.things[1 - changed]
    if kind == "recolour":
        free = [colour for colour in COLOURS if colour not in (thing.colour, other.colour)]
        new = replace(thing, colour=draws.choice(free))
    else:
        free = [shape for shape in SHAPES if shape not in (thing.shape, other.shape)]
        new = replace(thing, shape=draws.choice(free))
    things = tuple(new if number == changed else old for number, old in enumerate(found.things))
    return Edit(found, replace(found, things=things), changed, kind, phrase(thing), phrase(new))
