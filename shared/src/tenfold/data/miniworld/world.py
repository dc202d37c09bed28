"""Scenes: a few coloured shapes on a plain ground, placed on a grid or freely, never overlapping.

All coordinates are integers in units of 1 / UNITS of the image's edge, so a scene has no image size and its
picture no rounding that could differ between platforms.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tenfold.data.miniworld.draws import SCENE, Draws
from tenfold.errors import UserError

# Divisible by the edges of common grids and by most image sizes: 5040 = 2^4 * 3^2 * 5 * 7.
UNITS = 5040

SHAPES = ("circle", "square", "triangle", "diamond", "cross", "ring")
# No name begins with a vowel: "a" is always the right article.
COLOURS = {
    "red": (214, 39, 40),
    "green": (44, 160, 44),
    "blue": (31, 80, 200),
    "yellow": (245, 205, 0),
    "purple": (148, 60, 189),
    "cyan": (23, 190, 207),
    "brown": (140, 80, 30),
    "black": (25, 25, 25),
}
BACKGROUND = (232, 232, 228)
# Radius in hundredths of a grid cell: even two large neighbours leave a gap of 16 hundredths.
SIZES = {"small": 30, "large": 42}

# A draw of free positions that has not found room after this many tries starts over.
_TRIES = 200


@dataclass(frozen=True)
class SceneConfig:
    """What scenes are drawn from.

    Args:
        layout: "grid" centres objects in cells; "free" puts them anywhere.
        grid: cells along each edge. In a free layout it only sets the objects' radii.
        min_objects, max_objects: the number of objects is uniform in this range.
        shapes, colours, sizes: the attributes in use, drawn independently and uniformly.

    Raises:
        UserError: an unknown attribute, or a range of objects that has no room.
    """

    layout: Literal["grid", "free"] = "grid"
    grid: int = 3
    min_objects: int = 4
    max_objects: int = 9
    shapes: tuple[str, ...] = SHAPES
    colours: tuple[str, ...] = tuple(COLOURS)
    sizes: tuple[str, ...] = tuple(SIZES)

    def __post_init__(self) -> None:
        if self.layout not in ("grid", "free"):
            raise UserError("unknown layout", str(self.layout), '"grid" or "free"')
        if not 1 <= self.grid <= 16:
            raise UserError("grid out of range", str(self.grid), "1 to 16 cells along an edge")
        # Free positions waste room: at two thirds of the cells a random packing is still found at once.
        room = self.grid**2 if self.layout == "grid" else max(1, self.grid**2 * 2 // 3)
        if not 0 <= self.min_objects <= self.max_objects <= room:
            given = f"min_objects={self.min_objects}, max_objects={self.max_objects}"
            raise UserError("no room for that many objects", given, f"0 <= min <= max <= {room}")
        for name, known in (("shapes", SHAPES), ("colours", COLOURS), ("sizes", SIZES)):
            values = getattr(self, name)
            unknown = [value for value in values if value not in known]
            if unknown or not values:
                raise UserError(f"unknown {name}", ", ".join(unknown) or "none", f"some of {', '.join(known)}")

    @property
    def cell(self) -> int:
        """Edge of a grid cell in units."""
        return UNITS // self.grid


@dataclass(frozen=True)
class Thing:
    """One object: what it looks like, its centre (x to the right, y down) and half its extent, in units."""

    shape: str
    colour: str
    size: str
    x: int
    y: int
    radius: int


@dataclass(frozen=True)
class Scene:
    """Objects in reading order (top to bottom, then left to right), and the edge of a cell in units."""

    things: tuple[Thing, ...]
    cell: int


def scene(seed: int, index: int, config: SceneConfig | None = None) -> Scene:
    """Scene number `index` of the world `seed`: the same objects on every platform.

    Raises:
        UserError: seed or index outside [0, 2**64).
    """
    return draw_scene(Draws.of(seed, index, SCENE), config or SceneConfig())


def draw_scene(draws: Draws, config: SceneConfig) -> Scene:
    """A scene from the next draws of a stream."""
    count = draws.between(config.min_objects, config.max_objects)
    looks = [
        (draws.choice(config.shapes), draws.choice(config.colours), draws.choice(config.sizes)) for _ in range(count)
    ]
    radii = [config.cell * SIZES[size] // 100 for _, _, size in looks]
    centres = _grid_centres(draws, config, count) if config.layout == "grid" else _free_centres(draws, radii)
    things = [
        Thing(shape, colour, size, x, y, radius)
        for (shape, colour, size), (x, y), radius in zip(looks, centres, radii, strict=True)
    ]
    return Scene(tuple(sorted(things, key=lambda thing: (thing.y, thing.x))), config.cell)


def _grid_centres(draws: Draws, config: SceneConfig, count: int) -> list[tuple[int, int]]:
    cells = draws.sample(range(config.grid**2), count)
    half = config.cell // 2
    return [(half + config.cell * (cell % config.grid), half + config.cell * (cell // config.grid)) for cell in cells]


def _free_centres(draws: Draws, radii: list[int]) -> list[tuple[int, int]]:
    while True:
        centres: list[tuple[int, int]] = []
        for radius in radii:
            centre = _free_centre(draws, radius, centres, radii)
            if centre is None:
                break
            centres.append(centre)
        else:
            return centres


def _free_centre(draws: Draws, radius: int, centres: list[tuple[int, int]], radii: list[int]) -> tuple[int, int] | None:
    for _ in range(_TRIES):
        x, y = draws.between(radius, UNITS - radius), draws.between(radius, UNITS - radius)
        # Bounding boxes apart by a fifth of a radius: no two objects ever touch, at any image size.
        if all(
            max(abs(x - other_x), abs(y - other_y)) > radius + other + radius // 5
            for (other_x, other_y), other in zip(centres, radii, strict=False)
        ):
            return x, y
    return None


# Directions as (dx, dy) in the picture: y grows downwards.
DIRECTIONS = {"left of": (-1, 0), "right of": (1, 0), "above": (0, -1), "below": (0, 1)}


def neighbour(scene: Scene, thing: Thing, direction: str) -> Thing | None:
    """The nearest object in that direction, among those within half a cell of the line through `thing`'s centre.

    On a grid: the next object in the same row or column. None when there is none.
    """
    dx, dy = DIRECTIONS[direction]
    best, best_ahead = None, 0
    for other in scene.things:
        ahead = (other.x - thing.x) * dx + (other.y - thing.y) * dy
        aside = abs((other.x - thing.x) * dy) + abs((other.y - thing.y) * dx)
        if ahead > 0 and 2 * aside < scene.cell and (best is None or ahead < best_ahead):
            best, best_ahead = other, ahead
    return best
