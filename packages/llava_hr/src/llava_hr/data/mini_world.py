"""The scenes of the miniature: coloured shapes with marks of a few pixels on them (sheet, section 11).

    >>> from llava_hr import mini_world
    >>> scene = mini_world.scene(seed=0, index=3)
    >>> mini_world.render(scene).size
    (192, 192)

One object of a scene is large, one to three are small. Three of them carry a mark, each of another kind:

    letter   one of H, I, N, Z, 5 x 5 pixels, white
    notch    a white tag of 7 x 7 pixels out of one of whose edges 3 x 3 pixels are cut
    dots     one to four dots of 2 x 2 pixels, each half white and half black

What tells one mark from another is not its brightness: the letters have 13 white pixels each and the same centre, I is
H turned by a quarter and Z is N turned; all tags are equally large; a dot is grey on average, as objects are. So a
picture reduced to 84 pixels, where a letter is two pixels wide, gives little away.

A picture may have grain, each of its pixels a little lighter or darker. How much differs from picture to picture, so
how many marks a model reads says how much grain it reads through.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image

from tenfold.data import miniworld
from tenfold.data.miniworld import COLUMNS, ROWS, UNITS, Draws

SIZE = 192  # pixels along an edge; marks are defined at this size
CELL = SIZE // 3
RADIUS = {"large": 28, "small": 16}
# Everything is shifted by multiples of 4 pixels: an encoder that learns from minutes of scenes learns a mark as its
# stem of stride 4 sees it, not at sixteen offsets. At 84 or 168 pixels no two offsets are alike.
STEP = 4
SHIFT = {"large": 1, "small": 2}  # of an object from the middle of its ninth, in steps to either side

# No colour near black or white: marks show on all of them.
COLOURS = ("red", "green", "blue", "purple", "cyan", "brown")
# A ring has no middle to print on.
SHAPES = ("circle", "square", "triangle", "diamond", "cross")
LEAST, MOST = 2, 4  # objects of a scene
SIZES = tuple(RADIUS)
MARKS = ("letter", "notch", "dots")
SIDES = ("top", "bottom", "left", "right")
DOTS = ("1", "2", "3", "4")
LETTERS = {
    "H": ("#...#", "#...#", "#####", "#...#", "#...#"),
    "I": ("#####", "..#..", "..#..", "..#..", "#####"),
    "N": ("#...#", "##..#", "#.#.#", "#..##", "#...#"),
    "Z": ("#####", "...#.", "..#..", ".#...", "#####"),
}
VALUES = {"letter": tuple(LETTERS), "notch": SIDES, "dots": DOTS}

_WHITE, _BLACK = 250, 10
_TAG, _NOTCH = 7, 3
_PURPOSE, _GRAIN = 21, 23  # stretches of the random stream that the mini world itself does not read


@dataclass(frozen=True)
class Object:
    """One object.

    Args:
        size, colour, shape: names; no colour comes twice in a scene, and one object of it is large.
        row, column: the ninth of the picture that it lies in, numbers into ROWS and COLUMNS.
        x, y: its centre, and its mark's, in pixels of a picture of 192 pixels.
        mark, value: a kind of MARKS and which one, one of VALUES[mark]; both empty without a mark.
    """

    size: str
    colour: str
    shape: str
    row: int
    column: int
    x: int
    y: int
    mark: str = ""
    value: str = ""

    @property
    def mark_x(self) -> int:
        """The mark's centre: the object's."""
        return self.x

    @property
    def mark_y(self) -> int:
        """The mark's centre: the object's."""
        return self.y

    @property
    def place(self) -> tuple[str, str]:
        """Row and column in words."""
        return ROWS[self.row], COLUMNS[self.column]


@dataclass(frozen=True)
class MiniScene:
    """What is drawn.

    Args:
        objects: in reading order.
        grain: grey levels by which every pixel is lighter or darker.
        key: of the pattern of the grain.
    """

    objects: tuple[Object, ...]
    grain: int = 0
    key: int = 0

    @property
    def large(self) -> Object:
        """The only large object."""
        return next(one for one in self.objects if one.size == "large")


def scene(seed: int, index: int, grain: int = 0) -> MiniScene:
    """Scene number `index` of the world `seed`: the same on every platform.

    Args:
        grain: the most that a picture has, in grey levels; the objects are the same with every number.

    Raises:
        UserError: seed or index outside [0, 2**64).
    """
    draws = Draws.of(seed, index, _PURPOSE)
    count = draws.between(LEAST, MOST)
    cells = sorted(draws.sample(range(9), count))
    sizes = draws.shuffled(["large", *["small"] * (count - 1)])
    looks = zip(cells, sizes, draws.sample(COLOURS, count), draws.shuffled([*MARKS, ""]), strict=False)
    return MiniScene(tuple(_object(draws, *look) for look in looks), *_grain(seed, index, grain))


def crowd(seed: int, index: int, grain: int = 0) -> MiniScene:
    """A scene with an object in every ninth, all looks drawn independently: what encoders are pre-trained on.

    Args:
        grain: as in `scene`.

    Raises:
        UserError: seed or index outside [0, 2**64).
    """
    draws = Draws.of(seed, index, _PURPOSE)
    looks = [(draws.choice(SIZES), draws.choice(COLOURS), draws.choice(MARKS)) for _ in range(9)]
    return MiniScene(tuple(_object(draws, cell, *look) for cell, look in enumerate(looks)), *_grain(seed, index, grain))


def _grain(seed: int, index: int, most: int) -> tuple[int, int]:
    # A stream of its own: the objects do not depend on it.
    return (Draws.of(seed, index, _GRAIN).between(0, most), (seed << 64) + index) if most else (0, 0)


def _object(draws: Draws, cell: int, size: str, colour: str, mark: str) -> Object:
    row, column = divmod(cell, 3)
    x, y = (CELL // 2 + CELL * place + STEP * draws.between(-SHIFT[size], SHIFT[size]) for place in (column, row))
    value = draws.choice(VALUES[mark]) if mark else ""
    return Object(size, colour, draws.choice(SHAPES), row, column, x, y, mark, value)


def render(scene: MiniScene) -> Image.Image:
    """The picture: RGB, 192 x 192 pixels."""
    return Image.fromarray(render_array(scene))


def render_array(scene: MiniScene) -> np.ndarray:
    """The picture as uint8 `[192, 192, 3]`, the same bytes on every platform."""
    unit = UNITS / SIZE
    things = tuple(
        miniworld.Thing(
            one.shape, one.colour, one.size, int(one.x * unit), int(one.y * unit), int(RADIUS[one.size] * unit)
        )
        for one in scene.objects
    )
    picture = miniworld.render_array(miniworld.Scene(things, UNITS // 3), SIZE)
    for one in scene.objects:
        if one.mark:
            _PRINT[one.mark](picture, one)
    return _grained(picture, scene) if scene.grain else picture


def _grained(picture: np.ndarray, scene: MiniScene) -> np.ndarray:
    # A counter's raw bits, a bit for each pixel: the same on every platform and with every numpy.
    words = np.random.Philox(key=scene.key).random_raw(SIZE * SIZE // 64).astype("<u8")
    signs = 2 * np.unpackbits(words.view(np.uint8)).reshape(SIZE, SIZE, 1).astype(np.int16) - 1
    return np.clip(picture + scene.grain * signs, 0, 255).astype(np.uint8)


def _print_letter(picture: np.ndarray, one: Object) -> None:
    ink = np.array([[sign == "#" for sign in row] for row in LETTERS[one.value]])
    _stamp(picture, one, ink)


def _print_notch(picture: np.ndarray, one: Object) -> None:
    ink = np.ones((_TAG, _TAG), dtype=bool)
    start = (_TAG - _NOTCH) // 2
    ink[:_NOTCH, start : start + _NOTCH] = False
    turned = {"top": 0, "left": 1, "bottom": 2, "right": 3}[one.value]
    _stamp(picture, one, np.rot90(ink, turned))


def _stamp(picture: np.ndarray, one: Object, ink: np.ndarray) -> None:
    top, left = one.y - ink.shape[0] // 2, one.x - ink.shape[1] // 2
    picture[top : top + ink.shape[0], left : left + ink.shape[1]][ink] = _WHITE


def _print_dots(picture: np.ndarray, one: Object) -> None:
    # Which corners of a square of 9 pixels: by the object's place, so that a count has several looks.
    first = (one.x + one.y) // STEP % 4
    for number in range(int(one.value)):
        down, right = divmod((first + number) % 4, 2)
        top, left = one.y - 4 + 6 * down, one.x - 4 + 6 * right
        picture[top : top + 2, left] = _WHITE
        picture[top : top + 2, left + 1] = _BLACK


_PRINT = {"letter": _print_letter, "notch": _print_notch, "dots": _print_dots}
