"""Pictures of two things on a ground for the mini model, and edits of one of them with the other as a distractor.

A noun means a colour and a shape together ("tomato": a red disc), as the nouns of photographs stand for a look; an
adjective is a pattern on it ("striped"); the ground has a noun of its own ("grass"). Things stand in the outer cells of
a 3 x 3 grid, so that a box in the middle meets none of them, and never touch. The two never share their colour; often
they share the pattern or the shape, so that the noun is what tells them apart.

An edit gives one of them another pattern or, in its colour, another shape, and says so in a whole phrase:
"a striped lemon on grass". Streams of training are apart from these (`Draws.of`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
from PIL import Image

from tenfold.data.miniworld import Draws
from tenfold.data.miniworld.draws import EDIT, SCENE

EDGE = 32
RADIUS = 6
RGB = {
    "red": (215, 40, 40),
    "blue": (30, 70, 210),
    "yellow": (248, 215, 20),
    "purple": (150, 50, 190),
    "cyan": (20, 200, 215),
    "black": (20, 20, 20),
    "white": (250, 250, 250),
    "pink": (250, 130, 190),
}
# Noun -> colour and shape. Two nouns a colour: a network of this size binds colours to places, shapes hardly.
NOUNS = {
    "tomato": ("red", "disc"),
    "brick": ("red", "square"),
    "flag": ("blue", "wide"),
    "sapphire": ("blue", "diamond"),
    "lemon": ("yellow", "disc"),
    "crown": ("yellow", "triangle"),
    "plum": ("purple", "disc"),
    "jewel": ("purple", "diamond"),
    "window": ("cyan", "square"),
    "glacier": ("cyan", "triangle"),
    "door": ("black", "tall"),
    "slab": ("black", "wide"),
    "candle": ("white", "tall"),
    "pearl": ("white", "disc"),
    "rose": ("pink", "diamond"),
    "cake": ("pink", "wide"),
}
PATTERNS = ("striped", "barred", "checked", "plain")
# Noun of a ground -> its mean colour.
GROUNDS = {
    "grass": (112, 140, 92),
    "sand": (196, 176, 140),
    "water": (112, 140, 168),
    "paving": (158, 112, 98),
    "wood": (150, 128, 100),
    "stone": (140, 140, 142),
}
WORDS = ("a", "and", "on", *PATTERNS, *NOUNS, *GROUNDS)
# Contrast of a ground's texture and of a thing's pattern, and how far a ground's colour strays; of 255.
TEXTURE, STRAY = 14.0, 6.0
PATTERN_CONTRAST = 0.48
# Per cent of scenes whose things share the pattern, and that share the shape.
SAME_PATTERN, SAME_SHAPE = 40, 40
# Per cent of captions that leave the adjectives out.
BARE = 15
CENTRES = [(x, y) for y in (6, 16, 26) for x in (6, 16, 26) if (x, y) != (16, 16)]
# Cells whose things have at least a pixel between them.
APART = [
    (first, second)
    for first in CENTRES
    for second in CENTRES
    if max(abs(first[0] - second[0]), abs(first[1] - second[1])) > 2 * RADIUS
]
# What a stream of random bits is for, beside `tenfold.data.miniworld`'s purposes.
GRAIN = 17
_FINE = 4  # samples a pixel's edge, where a shape is drawn


@dataclass(frozen=True)
class Thing:
    """One of the two: its noun, its pattern, and the pixel corner that it is centred on."""

    noun: str
    pattern: str
    x: int
    y: int

    @property
    def colour(self) -> str:
        """The noun's."""
        return NOUNS[self.noun][0]

    @property
    def shape(self) -> str:
        """The noun's."""
        return NOUNS[self.noun][1]


@dataclass(frozen=True)
class Scene:
    """Two things on a ground; ``grain`` is the seed of the ground's texture."""

    things: tuple[Thing, Thing]
    ground: str
    grain: int


@dataclass(frozen=True)
class Edit:
    """One thing of a scene shall become another.

    Attributes:
        scene, target: before and after.
        changed: the thing's place in ``scene.things``.
        kind: "repattern" or "reshape".
        source_prompt, prompt: what the thing is, and what it shall be.
    """

    scene: Scene
    target: Scene
    changed: int
    kind: str
    source_prompt: str
    prompt: str

    def picture(self, edge: int = EDGE) -> Image.Image:
        """The picture before the edit; edges other than 32 enlarge its pixels."""
        return Image.fromarray(render(self.scene)).resize((edge, edge), Image.Resampling.NEAREST)

    def mask(self, edge: int = EDGE) -> np.ndarray:
        """The pixels that may change, bool ``[edge, edge]``: the thing before or after."""
        may_change = self.area(self.changed) | area(self.target.things[self.changed])
        return np.asarray(Image.fromarray(may_change).resize((edge, edge), Image.Resampling.NEAREST))

    def area(self, place: int) -> np.ndarray:
        """The pixels of one thing before the edit, bool ``[32, 32]``."""
        return area(self.scene.things[place])

    def caption(self) -> str:
        """What is there before the edit, the thing to be edited last: "a plain door and a striped lemon on grass"."""
        return f"{phrase(self.scene.things[1 - self.changed])} and {self.source_prompt}"


def scene(seed: int, index: int) -> Scene:
    """Scene ``index`` of the world ``seed``; shares no stream with the trainer's."""
    return draw(Draws.of(seed, index, SCENE))


def draw(draws: Draws) -> Scene:
    """Two things that differ in colour, in outer cells that do not touch, on any ground."""
    cells = draws.choice(APART)
    shared = draws.below(100)
    first_pattern, other_pattern = draws.sample(PATTERNS, 2)
    second_pattern = first_pattern if shared < SAME_PATTERN else other_pattern
    same_shape = SAME_PATTERN <= shared < SAME_PATTERN + SAME_SHAPE
    first = draws.choice(tuple(NOUNS))
    colour, shape = NOUNS[first]
    second = draws.choice(
        [noun for noun, look in NOUNS.items() if look[0] != colour and (look[1] == shape) == same_shape]
    )
    # Cells at the middle of an edge leave room for a pixel to either side.
    (x, y), (u, v) = ((_near(column, draws), _near(row, draws)) for column, row in cells)
    things = (Thing(first, first_pattern, x, y), Thing(second, second_pattern, u, v))
    return Scene(things, draws.choice(tuple(GROUNDS)), draws.below(2**31))


def _near(centre: int, draws: Draws) -> int:
    return centre + draws.between(-1, 1) if centre == EDGE // 2 else centre


def phrase(thing: Thing) -> str:
    """ "a striped tomato"."""
    return f"a {thing.pattern} {thing.noun}"


def draw_caption(found: Scene, draws: Draws) -> str:
    """A training caption: 57 % name both things and the ground, 30 % one and the ground, 5 % one; 8 % are empty."""
    bare = draws.below(100) < BARE
    first, second = draws.shuffled([f"a {thing.noun}" if bare else phrase(thing) for thing in found.things])
    kind = draws.below(100)
    if kind < 8:
        return ""
    if kind < 38:
        return f"{first} on {found.ground}"
    return f"{first} and {second} on {found.ground}" if kind < 95 else first


def edit(seed: int, index: int) -> Edit:
    """Edit ``index`` of the world ``seed``."""
    found = scene(seed, index)
    draws = Draws.of(seed, index, EDIT)
    changed, kind = draws.below(2), draws.choice(("repattern", "reshape"))
    thing, other = found.things[changed], found.things[1 - changed]
    if kind == "repattern":
        free = [pattern for pattern in PATTERNS if pattern not in (thing.pattern, other.pattern)]
        new = replace(thing, pattern=draws.choice(free))
    else:
        new = replace(thing, noun=twin(thing.noun))
    things = (new, other) if changed == 0 else (other, new)
    prompts = [f"{phrase(one)} on {found.ground}" for one in (thing, new)]
    return Edit(found, replace(found, things=things), changed, kind, *prompts)


def twin(noun: str) -> str:
    """The other noun of its colour."""
    return next(other for other, look in NOUNS.items() if look[0] == NOUNS[noun][0] and other != noun)


def render(found: Scene) -> np.ndarray:
    """The picture, uint8 ``[32, 32, 3]``."""
    picture = ground(found.ground, found.grain)
    for thing in found.things:
        picture = draw_on(picture, thing)
    return np.clip(np.rint(picture), 0, 255).astype(np.uint8)


def draw_on(picture: np.ndarray, thing: Thing) -> np.ndarray:
    """A copy of ``picture``, float ``[32, 32, 3]`` in [0, 255], with a thing on it."""
    rows, columns, cover, look = _drawn(thing)
    drawn = picture.copy()
    drawn[rows, columns] += (look - drawn[rows, columns]) * cover[..., None]
    return drawn


def area(thing: Thing) -> np.ndarray:
    """The pixels of which a thing covers more than half, bool ``[32, 32]``."""
    rows, columns, cover, _ = _drawn(thing)
    covered = np.zeros((EDGE, EDGE), dtype=bool)
    covered[rows, columns] = cover > 0.5
    return covered


@cache
def _drawn(thing: Thing) -> tuple[slice, slice, np.ndarray, np.ndarray]:
    """Rows, columns, cover ``[rows, columns]`` in [0, 1] and colours ``[rows, columns, 3]`` of a thing."""
    reach = RADIUS + 1
    top, left = thing.y - reach, thing.x - reach
    rows, columns = (slice(max(0, low), min(EDGE, low + 2 * reach)) for low in (top, left))
    window = slice(rows.start - top, rows.stop - top), slice(columns.start - left, columns.stop - left)
    return rows, columns, _cover(thing.shape)[window], _look(thing.colour, thing.pattern)[window]


@cache
def _cover(shape: str) -> np.ndarray:
    """How much of each pixel a shape covers: ``[14, 14]`` in [0, 1]."""
    edge = 2 * (RADIUS + 1)
    at = (np.arange(edge * _FINE) + 0.5) / _FINE - edge / 2
    x, y, radius = at[None, :], at[:, None], float(RADIUS)
    inside: dict[str, Callable[[], np.ndarray]] = {
        "disc": lambda: x * x + y * y <= 0.9 * radius * radius,
        "square": lambda: np.maximum(abs(x), abs(y)) <= 0.8 * radius,
        "diamond": lambda: abs(x) + abs(y) <= 1.1 * radius,
        "triangle": lambda: (y <= 0.75 * radius) & (abs(x) <= 0.6 * (y + 0.9 * radius)),
        "wide": lambda: (abs(x) <= radius) & (abs(y) <= 0.5 * radius),
        "tall": lambda: (abs(y) <= radius) & (abs(x) <= 0.5 * radius),
    }
    return inside[shape]().astype(float).reshape(edge, _FINE, edge, _FINE).mean((1, 3))


@cache
def _look(colour: str, pattern: str) -> np.ndarray:
    """Colours of a patterned thing: ``[14, 14, 3]``; bright and dark bands two pixels wide."""
    edge = 2 * (RADIUS + 1)
    y, x = np.mgrid[0:edge, 0:edge] // 2 % 2
    odd = {"striped": y, "barred": x, "checked": (x + y) % 2}.get(pattern)
    base = np.array(RGB[colour], dtype=float)
    if odd is None:
        return np.broadcast_to(base, (edge, edge, 3))
    # Black has no darker band and white no brighter one.
    bright = {"black": 0.75 * (230 - base), "white": 0 * base}.get(colour, 255 - base)
    dark = {"black": 0 * base, "white": 0.75 * (60 - base)}.get(colour, -base)
    return base + PATTERN_CONTRAST * np.where(odd[..., None], dark, bright)


def ground(name: str, grain: int) -> np.ndarray:
    """A ground's picture, float ``[32, 32, 3]`` in [0, 255]; ``grain`` moves its texture and strays its colour."""
    raw = np.random.Philox(key=np.array([grain, 0], np.uint64), counter=np.array([0, 0, GRAIN, 0], np.uint64))

    def uniform(*shape: int) -> np.ndarray:
        return (raw.random_raw(int(np.prod(shape))) >> np.uint64(11)).astype(float).reshape(shape) / 2.0**53

    def normal(*shape: int) -> np.ndarray:  # nearly: a sum of four, of unit variance
        return (uniform(4, *shape).sum(0) - 2) * 3**0.5

    colour = np.array(GROUNDS[name], dtype=float) + STRAY * normal(3)
    y, x = np.mgrid[0:EDGE, 0:EDGE].astype(float)
    at = uniform(2)
    if name == "grass":  # blades
        texture = np.repeat(normal(EDGE // 4, EDGE), 4, 0)
    elif name == "sand":  # grains
        texture = 2.2 * (uniform(EDGE, EDGE) < 0.18) - 0.4
    elif name == "water":  # waves
        texture = 1.3 * np.sin(2 * np.pi * (y / 6 + at[0] + 0.12 * np.sin(2 * np.pi * (x / 16 + at[1]))))
    elif name == "paving":  # joints
        row, joint = divmod(y + int(5 * at[0]), 5)
        texture = 2.2 * ((joint == 0) | ((x + int(8 * at[1]) + 4 * (row % 2)) % 8 == 0)) - 0.7
    elif name == "wood":  # fibres
        texture = 1.3 * np.sin(2 * np.pi * (x / 5 + at[0] + 0.1 * np.sin(2 * np.pi * (y / 20 + at[1]))))
    else:  # blocks of stone
        texture = np.kron(normal(EDGE // 4, EDGE // 4), np.ones((4, 4)))
    return np.clip(colour + TEXTURE * texture[..., None], 0, 255)
