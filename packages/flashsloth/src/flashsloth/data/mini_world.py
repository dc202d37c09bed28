"""The scenes of the miniature: small coloured signs, each one patch of the picture wide (sheet section 11).

    >>> scene = draw(seed=0, index=3)
    >>> render(scene).size
    (54, 54)

A picture has 9 x 9 patches of 6 pixels, which SAP pools in 3 x 3 blocks. Six signs of six colours lie on a noisy
ground. In a sparse scene each block holds one sign at most: its mean still says which shape goes with which colour. In
a crowded one, two blocks hold three signs each, and their mean does not: here a look at the patches themselves pays.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from PIL import Image

from tenfold.data.miniworld import COLUMNS, ROWS, Draws

PATCH, BLOCK = 6, 3
GRID = 9  # patches along an edge
SIZE = PATCH * GRID
SIGNS = 6
NOISE = 40  # of the ground and the signs, to either side, in grey levels
COLOURS = {
    "red": (220, 40, 40),
    "green": (40, 170, 60),
    "blue": (50, 80, 220),
    "yellow": (225, 205, 50),
    "purple": (150, 50, 170),
    "cyan": (50, 190, 200),
}
SHAPES = {
    "ring": ("####", "#..#", "#..#", "####"),
    "cross": ("#..#", ".##.", ".##.", "#..#"),
    "bar": ("....", "####", "####", "...."),
    "post": (".##.", ".##.", ".##.", ".##."),
    "corner": ("#...", "#...", "#...", "####"),
    "step": ("##..", "##..", "..##", "..##"),
}
GROUND = (200, 200, 200)
SPARSE, CROWDED = "sparse", "crowded"
FINE, COARSE = ("shape",), ("row", "column")
KINDS = (*FINE, *COARSE)
TEXTS = {"shape": "What shape is {colour}?", "row": "Which row is {colour}?", "column": "Which column is {colour}?"}
ANSWERS = {"shape": tuple(SHAPES), "row": ROWS, "column": COLUMNS}
ROUNDS = 4  # questions of a training conversation: three in four about a shape
_PURPOSE = 41  # a stretch of the random stream that the mini world itself does not read


@dataclass(frozen=True)
class Sign:
    """One sign: its colour, which no other of the scene has, its shape, and the patch that it fills."""

    colour: str
    shape: str
    row: int
    column: int

    def answer(self, kind: str) -> str:
        """What a question of that kind about it is answered by; row and column in thirds of the picture."""
        return {"shape": self.shape, "row": ROWS[self.row // BLOCK], "column": COLUMNS[self.column // BLOCK]}[kind]


@dataclass(frozen=True)
class Scene:
    """Six signs; ``level`` is SPARSE or CROWDED."""

    level: str
    signs: tuple[Sign, ...]
    seed: int
    index: int


@dataclass(frozen=True)
class Question:
    """A question about a scene: its kind, its words and its one-word answer."""

    kind: str
    text: str
    answer: str


def draw(seed: int, index: int) -> Scene:
    """Scene number `index` of the world `seed`, crowded where the number is odd: the same on every platform."""
    draws = Draws.of(seed, index, _PURPOSE)
    level = CROWDED if index % 2 else SPARSE
    blocks = draws.sample(range(BLOCK * BLOCK), SIGNS if level == SPARSE else 2)
    each = 1 if level == SPARSE else SIGNS // 2
    patches = []
    for block in blocks:
        row, column = divmod(block, BLOCK)
        for place in draws.sample(range(BLOCK * BLOCK), each):
            down, right = divmod(place, BLOCK)
            patches.append((BLOCK * row + down, BLOCK * column + right))
    colours = draws.shuffled(list(COLOURS))
    signs = tuple(
        Sign(colour, draws.choice(tuple(SHAPES)), *patch) for colour, patch in zip(colours, patches, strict=True)
    )
    return Scene(level, signs, seed, index)


def render_array(scene: Scene) -> np.ndarray:
    """The picture as uint8 `[54, 54, 3]`, the same bytes on every platform."""
    picture = np.empty((SIZE, SIZE, 3), dtype=np.int64)
    picture[:] = GROUND
    for sign in scene.signs:
        top, left = PATCH * sign.row + 1, PATCH * sign.column + 1
        picture[top : top + 4, left : left + 4][_ink(sign.shape)] = COLOURS[sign.colour]
    # Integers of numpy's own generator are the same everywhere.
    noise = np.random.Generator(np.random.PCG64([scene.seed, scene.index])).integers(-NOISE, NOISE + 1, picture.shape)
    return np.clip(picture + noise, 0, 255).astype(np.uint8)


def render(scene: Scene) -> Image.Image:
    """The picture: RGB, 54 x 54 pixels."""
    return Image.fromarray(render_array(scene))


@cache
def _ink(shape: str) -> np.ndarray:
    return np.array([[sign == "#" for sign in row] for row in SHAPES[shape]])


def question(scene: Scene, kind: str, number: int) -> Question:
    """A question of a kind about the scene's sign of that number."""
    sign = scene.signs[number]
    return Question(kind, TEXTS[kind].format(colour=sign.colour), sign.answer(kind))


def conversation(scene: Scene) -> tuple[Question, ...]:
    """The four questions of a training conversation: three about shapes, one about a place, each about another sign."""
    draws = Draws.of(scene.seed, scene.index, _PURPOSE + 1)
    kinds = draws.shuffled([*FINE * (ROUNDS - 1), draws.choice(COARSE)])
    numbers = draws.sample(range(SIGNS), ROUNDS)
    return tuple(question(scene, kind, number) for kind, number in zip(kinds, numbers, strict=True))


def caption(scene: Scene) -> str:
    """All signs, in reading order of their patches: "red ring top left, ..."."""
    ordered = sorted(scene.signs, key=lambda sign: (sign.row, sign.column))
    return ", ".join(f"{sign.colour} {sign.shape} {sign.answer('row')} {sign.answer('column')}" for sign in ordered)
