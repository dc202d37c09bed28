"""Pictures and masks of a scene, in integer arithmetic from end to end.

Every pixel takes 4 x 4 samples; whether a sample lies in a shape is decided by an inequality between integers,
and coverage is blended by integer division. So the bytes are the same on every platform and with every version of
numpy, Pillow or the C library.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from PIL import Image

from tenfold.data.miniworld.world import BACKGROUND, COLOURS, UNITS, Scene, Thing
from tenfold.errors import UserError

SAMPLES = 4  # along each edge of a pixel
MAX_SIZE = 2048


def render(scene: Scene, size: int) -> Image.Image:
    """The picture of a scene: RGB, `size` x `size` pixels, anti-aliased.

    Raises:
        UserError: `size` outside [1, 2048].
    """
    return Image.fromarray(render_array(scene, size))


def render_array(scene: Scene, size: int) -> np.ndarray:
    """The picture of a scene as uint8 `[size, size, 3]`. Raises UserError as `render` does."""
    check_size(size)
    total = SAMPLES * SAMPLES
    picture = np.empty((size, size, 3), dtype=np.uint8)
    picture[:] = BACKGROUND
    for thing in scene.things:
        window, covered = placed(thing, size)
        under = picture[window].astype(np.int32)
        cover = covered[..., None].astype(np.int32)
        colour = np.array(COLOURS[thing.colour], dtype=np.int32)
        picture[window] = (under * (total - cover) + colour * cover + total // 2) // total
    return picture


def masks(scene: Scene, size: int) -> np.ndarray:
    """Which pixels belong to each object: bool `[objects, size, size]`, in the order of `scene.things`.

    A pixel belongs to an object that covers more than half of it, so masks never overlap (objects do not).

    Raises:
        UserError: `size` outside [1, 2048].
    """
    check_size(size)
    found = np.zeros((len(scene.things), size, size), dtype=bool)
    for mask, thing in zip(found, scene.things, strict=True):
        window, covered = placed(thing, size)
        mask[window] = 2 * covered > SAMPLES * SAMPLES
    return found


def check_size(size: int) -> None:
    if not 1 <= size <= MAX_SIZE:
        raise UserError("image size out of range", str(size), f"1 to {MAX_SIZE} pixels")


def placed(thing: Thing, size: int) -> tuple[tuple[slice, slice], np.ndarray]:
    """The pixels around an object: their window in the picture, and samples covered `[rows, columns]`."""
    column, phase_x = divmod(thing.x * size, UNITS)
    row, phase_y = divmod(thing.y * size, UNITS)
    covered = _coverage(thing.shape, thing.radius, phase_x, phase_y, size)
    reach = covered.shape[0] // 2
    top, left = max(0, reach - row), max(0, reach - column)
    bottom, right = min(2 * reach + 1, size + reach - row), min(2 * reach + 1, size + reach - column)
    window = (slice(row - reach + top, row - reach + bottom), slice(column - reach + left, column - reach + right))
    return window, covered[top:bottom, left:right]


# Objects centred in grid cells look alike up to a shift by whole pixels: a handful of sprites serves a whole world.
@lru_cache(maxsize=256)
def _coverage(shape: str, radius: int, phase_x: int, phase_y: int, size: int) -> np.ndarray:
    """How many of a pixel's 16 samples lie in the shape: uint8 `[2 * reach + 1, 2 * reach + 1]`.

    The centre lies in the middle pixel, `phase / UNITS` of a pixel from its left and top edge. Lengths are scaled by
    2 * SAMPLES * size, which makes a pixel 2 * SAMPLES * UNITS long and every sample's coordinate an integer.
    """
    scale = 2 * SAMPLES
    reach = -(-radius * size // UNITS) + 1
    steps = np.arange(-reach * SAMPLES, (reach + 1) * SAMPLES, dtype=np.int64)
    dx = ((2 * steps + 1) * UNITS - phase_x * scale)[None, :]
    dy = ((2 * steps + 1) * UNITS - phase_y * scale)[:, None]
    inside = _inside(shape, dx, dy, radius * scale * size)
    edge = 2 * reach + 1
    counts = inside.reshape(edge, SAMPLES, edge, SAMPLES).sum(axis=(1, 3), dtype=np.uint8)
    counts.setflags(write=False)  # shared by every caller through the cache
    return counts


def _inside(shape: str, dx: np.ndarray, dy: np.ndarray, radius: int) -> np.ndarray:
    """Which points `(dx, dy)` from the centre lie in a shape that reaches `radius`: bool, broadcast of both."""
    if shape == "circle":
        return dx * dx + dy * dy <= radius * radius
    if shape == "ring":
        distance = dx * dx + dy * dy
        return (distance <= radius * radius) & (81 * distance >= 25 * radius * radius)  # hole: 5/9 of the radius
    if shape == "square":
        return np.maximum(20 * abs(dx), 20 * abs(dy)) <= 17 * radius
    if shape == "diamond":
        return abs(dx) + abs(dy) <= radius
    if shape == "triangle":  # apex at the top; base 2 radii wide, 0.8 radii below the centre
        return (5 * dy <= 4 * radius) & (9 * abs(dx) <= 5 * (dy + radius))
    if shape == "cross":  # arms a third of a radius to either side
        across, along = 3 * np.minimum(abs(dx), abs(dy)), np.maximum(abs(dx), abs(dy))
        return (across <= radius) & (along <= radius)
    raise ValueError(f"no shape {shape!r}")
