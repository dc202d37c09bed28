"""Pictures of two things for the mini model, and edits of one of them with the other as a distractor.

Every noun stands for one colour and one shape ("tomato": a red circle), as the nouns of photographs stand for a look.
Each colour has three nouns and each shape four, so that neither gives the noun away and the word is needed for what
noise hides. Things stand in the outer cells of a 3 x 3 grid, never in the middle, and share neither colour nor shape.

An edit gives one of them another colour or another shape; its prompt is the noun of what it shall be ("a leaf"), which
shares something with the thing that is there and nothing with the other one. Both at once would leave open which of
the two is meant.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from tenfold.data import miniworld
from tenfold.data.miniworld import COLOURS, SHAPES, Draws, Scene, SceneConfig, Thing
from tenfold.data.miniworld.draws import EDIT, SCENE

EDGE = 32
# Noun -> colour and shape.
NOUNS = {
    "tomato": ("red", "circle"),
    "brick": ("red", "square"),
    "rose": ("red", "cross"),
    "leaf": ("green", "triangle"),
    "jade": ("green", "diamond"),
    "wreath": ("green", "ring"),
    "marble": ("blue", "circle"),
    "sapphire": ("blue", "diamond"),
    "flag": ("blue", "square"),
    "lemon": ("yellow", "circle"),
    "star": ("yellow", "cross"),
    "crown": ("yellow", "triangle"),
    "plum": ("purple", "circle"),
    "jewel": ("purple", "diamond"),
    "violet": ("purple", "cross"),
    "pool": ("cyan", "ring"),
    "window": ("cyan", "square"),
    "glacier": ("cyan", "triangle"),
    "box": ("brown", "square"),
    "bagel": ("brown", "ring"),
    "tent": ("brown", "triangle"),
    "tyre": ("black", "ring"),
    "raven": ("black", "cross"),
    "kite": ("black", "diamond"),
}
NAMES = {look: noun for noun, look in NOUNS.items()}
WORDS = ("a", "and", *NOUNS)
# Words that no caption of the mini model's has, and prompts may.
OTHER_WORDS = (*COLOURS, *SHAPES)
CONFIG = SceneConfig(grid=3, min_objects=2, max_objects=2, sizes=("large",))
MIDDLE = miniworld.UNITS // 2


@dataclass(frozen=True)
class Edit:
    """One thing of a scene shall become another.

    Attributes:
        scene, target: before and after.
        changed: the thing's place in ``scene.things``.
        kind: "recolour" or "reshape".
        source_prompt, prompt: what the thing is, and what it shall be.
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
        """The pixels that may change, bool ``[edge, edge]``: the thing before or after."""
        return miniworld.masks(self.scene, edge)[self.changed] | miniworld.masks(self.target, edge)[self.changed]


def scene(seed: int, index: int) -> Scene:
    """Scene ``index`` of the world ``seed``; shares no stream with the trainer's."""
    return draw(Draws.of(seed, index, SCENE))


def draw(draws: Draws) -> Scene:
    """Two things with names outside the middle cell, different in colour and in shape."""
    while True:
        found = miniworld.draw_scene(draws, CONFIG)
        first, second = found.things
        named = all((thing.colour, thing.shape) in NAMES for thing in found.things)
        apart = first.colour != second.colour and first.shape != second.shape
        if named and apart and not any((thing.x, thing.y) == (MIDDLE, MIDDLE) for thing in found.things):
            return found


def phrase(thing: Thing) -> str:
    """ "a tomato"."""
    return f"a {NAMES[thing.colour, thing.shape]}"


def draw_caption(found: Scene, draws: Draws) -> str:
    """A training caption: half of the time both things in either order, else one of them, or nothing."""
    first, second = draws.shuffled([phrase(thing) for thing in found.things])
    kind = draws.below(10)
    if kind == 0:
        return ""
    return f"{first} and {second}" if kind <= 5 else first


def edit(seed: int, index: int) -> Edit:
    """Edit ``index`` of the world ``seed``."""
    found = scene(seed, index)
    draws = Draws.of(seed, index, EDIT)
    changed, kind = draws.below(2), draws.choice(("recolour", "reshape"))
    thing, other = found.things[changed], found.things[1 - changed]
    if kind == "recolour":
        free = [look for look in NAMES if look[1] == thing.shape and look[0] not in (thing.colour, other.colour)]
    else:
        free = [look for look in NAMES if look[0] == thing.colour and look[1] not in (thing.shape, other.shape)]
    colour, shape = draws.choice(free)
    new = replace(thing, colour=colour, shape=shape)
    things = tuple(new if number == changed else old for number, old in enumerate(found.things))
    return Edit(found, replace(found, things=things), changed, kind, phrase(thing), phrase(new))
