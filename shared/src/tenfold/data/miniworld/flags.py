"""Scenes for deep questions: objects of one patch each, on textured ground, each with a flag that points to another.

A picture is a grid of `EDGE` x `EDGE` patches of `PATCH` pixels. An object takes one patch; the patch right of it is
its flag: a bar in the colour of the object that it points to, or no bar where a chain of flags ends. How many looks at
the picture a question needs is then decided by the question ("next", "after the next") or by the picture alone ("to the
end").

>>> from tenfold.data.miniworld import flags
>>> scene = flags.scene(seed=0, index=7)
>>> flags.render(scene)                                     # 80 x 80 pixels, with noise
>>> flags.questions(scene, seed=0, index=7, count=3)        # one-word answers

Everything is integer arithmetic on raw random bits: the same bytes on every platform.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image

from tenfold.data.miniworld.draws import Draws
from tenfold.data.miniworld.raster import SAMPLES, check_size, placed
from tenfold.data.miniworld.world import BACKGROUND, COLOURS, SHAPES, UNITS, Thing

EDGE, PATCH = 10, 8
SIZE = EDGE * PATCH
# Standard deviation of the pixel noise, in grey levels of 255: half of what CLIP's normalisation takes for one.
NOISE = 34
_TEXTURE, _TEXEL = 14, 4  # the ground: grey levels of each of two grains (one of them coloured), in squares of 4 pixels
_DARKER = 35  # than the plain mini world's ground: white noise is not cut off
_RADIUS = 47  # of an object, in hundredths of a patch
_MOST_COLOURS = 3  # of a scene with repeated colours

# Beside the purposes of `draws`: no scene shares its draws with the mini world's other data sets.
_SCENE, _QUESTIONS = 33, 34


@dataclass(frozen=True)
class Flagged:
    """One object.

    Args:
        shape, colour: what it looks like.
        row, column: the patch that shows it; its flag is in the patch right of it.
        next: place in the scene's objects of the one that its flag points to; None at the end of a chain.
    """

    shape: str
    colour: str
    row: int
    column: int
    next: int | None

    @property
    def ninth(self) -> tuple[int, int]:
        """The ninth of the picture it lies in: numbers into `ROWS` and `COLUMNS`."""
        return 3 * self.row // EDGE, 3 * self.column // EDGE

    @property
    def patches(self) -> tuple[int, int]:
        """Numbers of its patch and of its flag's, row by row."""
        return self.row * EDGE + self.column, self.row * EDGE + self.column + 1


@dataclass(frozen=True)
class FlagScene:
    """Objects in random order, and two numbers from which the ground and the noise are drawn.

    Args:
        things: no two in one ninth of the picture.
        repeated: colours occur more than once; flags then point to no one object, and no question follows them.
        ground, noise: seeds of the picture's texture and noise.
    """

    things: tuple[Flagged, ...]
    repeated: bool
    ground: int
    noise: int

    def chain(self, start: int) -> tuple[int, ...]:
        """Places of the objects that flags lead to from `things[start]` on, itself first."""
        places = [start]
        while (following := self.things[places[-1]].next) is not None:
            places.append(following)
        return tuple(places)


def scene(seed: int, index: int, *, repeated: bool = False) -> FlagScene:
    """Scene number `index` of the world `seed`: four to six objects, the same on every platform.

    Raises:
        UserError: seed or index outside [0, 2**64).
    """
    return draw_scene(Draws.of(seed, index, _SCENE), 4, 6, repeated=repeated)


def question_draws(seed: int, index: int) -> Draws:
    """The stream that questions about scene `index` are drawn from."""
    return Draws.of(seed, index, _QUESTIONS)


def draw_scene(draws: Draws, least: int, most: int, *, repeated: bool = False) -> FlagScene:
    """A scene of `least` to `most` objects (2 to 8) from the next draws of a stream.

    One shape is given to one, two or three objects, so that counts differ.
    """
    count = draws.between(least, most)
    ninths = draws.sample(range(9), count)
    alike = min(draws.between(1, 3), count - 1)
    shapes = [draws.choice(SHAPES)] * alike + [draws.choice(SHAPES) for _ in range(count - alike)]
    if repeated:
        palette = draws.sample(tuple(COLOURS), _MOST_COLOURS)
        colours = [draws.choice(palette) for _ in range(count)]
    else:
        colours = draws.sample(tuple(COLOURS), count)
    following = _chains(draws, count)
    things = []
    for number in range(count):
        row, column = divmod(ninths[number], 3)
        rows, columns = _within(row), _within(column)
        # The flag stays in the same ninth.
        where = draws.choice(rows), draws.choice(columns[:-1])
        things.append(Flagged(shapes[number], colours[number], *where, following[number]))
    return FlagScene(tuple(things), repeated, draws.below(2**32), draws.below(2**32))


def _chains(draws: Draws, count: int) -> list[int | None]:
    """Where each flag points: mostly one long chain, with two ends (one in scenes of two or three objects)."""
    order = draws.shuffled(range(count))
    ends = 1 if count < 4 else 2
    body, tails = order[:-ends], order[-ends:]
    following: list[int | None] = [None] * count
    for place, number in enumerate(body):
        goes_on = place + 1 < len(body) and draws.below(5) > 0
        following[number] = body[place + 1] if goes_on else draws.choice(tails)
    return following


def _within(third: int) -> list[int]:
    return [patch for patch in range(EDGE) if 3 * patch // EDGE == third]


def render(scene: FlagScene, size: int = SIZE, *, noise: int = NOISE, draw: int = 0) -> Image.Image:
    """`render_array` as a PIL image."""
    return Image.fromarray(render_array(scene, size, noise=noise, draw=draw))


def render_array(scene: FlagScene, size: int = SIZE, *, noise: int = NOISE, draw: int = 0) -> np.ndarray:
    """The picture of a scene as uint8 `[size, size, 3]`.

    Args:
        scene: what is shown.
        size: pixels along an edge; grain and noise stay those of SIZE pixels, in larger squares.
        noise: standard deviation in grey levels.
        draw: number of the noise's draw: the same scene and ground under another noise.

    Raises:
        UserError: size outside [1, 2048].
    """
    check_size(size)
    at = np.arange(size) * SIZE // size
    bits = np.random.Philox(key=np.array([scene.ground, 0], dtype=np.uint64))
    texels = SIZE // _TEXEL
    grain = _bell(bits, (texels, texels, 4)) * _TEXTURE // _DEVIATION
    ground = np.array(BACKGROUND) - _DARKER + grain[..., :3] + grain[..., 3:]
    picture = ground[at // _TEXEL][:, at // _TEXEL].clip(0, 255)
    total = SAMPLES * SAMPLES
    for thing in scene.things:
        window, covered = placed(_as_thing(thing), size)
        cover = covered[..., None].astype(np.int64)
        picture[window] = (picture[window] * (total - cover) + np.array(COLOURS[thing.colour]) * cover) // total
        if thing.next is not None:
            picture[_bar(thing, size)] = COLOURS[scene.things[thing.next].colour]
    if noise:
        bits = np.random.Philox(key=np.array([scene.noise, draw], dtype=np.uint64))
        grains = _bell(bits, (SIZE, SIZE, 3)) * noise // _DEVIATION
        picture = picture + grains[at][:, at]
    return picture.clip(0, 255).astype(np.uint8)


def _as_thing(thing: Flagged) -> Thing:
    unit = UNITS // EDGE
    x, y = (unit * place + unit // 2 for place in (thing.column, thing.row))
    return Thing(thing.shape, thing.colour, "large", x, y, unit * _RADIUS // 100)


def _bar(thing: Flagged, size: int) -> tuple[slice, slice]:
    """The pixels of a flag: the middle half of its patch's rows, all but its last column."""
    top, left = PATCH * thing.row, PATCH * (thing.column + 1)
    top, bottom, left, right = (
        edge * size // SIZE for edge in (top + PATCH // 4, top + 3 * PATCH // 4, left, left + PATCH - 1)
    )
    return slice(top, bottom), slice(left, right)


# The sum of four uniform bytes is nearly normal; its standard deviation is sqrt(4 * (256^2 - 1) / 12).
_DEVIATION = 148


def _bell(bits: np.random.Philox, shape: tuple[int, ...]) -> np.ndarray:
    """Integers around 0, nearly normal, of standard deviation _DEVIATION: int64 `shape`."""
    count = int(np.prod(shape))
    raw = np.asarray(bits.random_raw(-(-count // 2)), dtype="<u8")
    sums = raw.view(np.uint8).reshape(-1, 4).sum(1, dtype=np.int64)[:count]
    return (sums - 510).reshape(shape)
