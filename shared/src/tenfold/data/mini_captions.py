"""Mini scenes to caption: one big object, two objects and how they lie, or a line of equal objects.

>>> from tenfold.data import mini_captions
>>> one = mini_captions.caption_scene(seed=0, index=7)
>>> one.kind, one.captions[0]
>>> miniworld.render(one.scene, size=56)

Scenes are drawn by `tenfold.data.miniworld`; a caption says everything that the kind of scene is made of, so a model
that sees only the captions cannot know which one fits an image.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from tenfold.data.formats.coco_captions import KarpathyImage
from tenfold.data.miniworld import UNITS, Draws, Scene, Thing
from tenfold.data.miniworld.language import PLURALS

KINDS = ("single", "pair", "line")
COLOURS = ("red", "green", "blue", "yellow", "purple")
SHAPES = ("circle", "square", "triangle", "cross")
# Half the extent of an object in thousandths of the image's edge.
RADII = {"single": (360, 440), "large": (125, 145), "small": (75, 90)}
CAPTIONS = 5  # of each image, as COCO has
NUMBERS = {2: "two", 3: "three", 4: "four"}
# (the word for the first object, and for the second one)
RELATIONS = (("above", "below"), ("left of", "right of"))

# Beside the purposes of `miniworld.draws`: no scene shares its draws with the mini world's other data sets.
_PURPOSE = 32


@dataclass(frozen=True)
class CaptionScene:
    """A scene, its kind (one of KINDS) and five captions."""

    kind: str
    scene: Scene
    captions: tuple[str, ...]


def caption_scene(seed: int, index: int) -> CaptionScene:
    """Scene number `index` of the world `seed`, the same on every platform; the three kinds are equally likely.

    Raises:
        UserError: seed or index outside [0, 2**64).
    """
    draws = Draws.of(seed, index, _PURPOSE)
    kind = draws.choice(KINDS)
    if kind == "single":
        return _single(draws)
    return _pair(draws) if kind == "pair" else _line(draws)


def _single(draws: Draws) -> CaptionScene:
    colour, shape = draws.choice(COLOURS), draws.choice(SHAPES)
    radius = _radius(draws, "single")
    x, y = (draws.between(radius, UNITS - radius) for _ in range(2))
    look = f"{colour} {shape}"
    captions = (
        f"a large {look}",
        f"there is a large {look}",
        f"a large {look} fills the image",
        f"a picture of a large {look}",
        f"one large {shape} that is {colour}",
    )
    return CaptionScene("single", _scene([Thing(shape, colour, "large", x, y, radius)]), captions)


def _pair(draws: Draws) -> CaptionScene:
    # Different ones: two equal objects are a line.
    different = draws.sample([(shape, colour) for shape in SHAPES for colour in COLOURS], 2)
    looks = [(shape, colour, draws.choice(("small", "large"))) for shape, colour in different]
    (word, reverse), upright = (RELATIONS[0], True) if draws.below(2) else (RELATIONS[1], False)
    things = []
    across = draws.between(UNITS * 3 // 10, UNITS * 7 // 10)
    for (shape, colour, size), half in zip(looks, (0, 1), strict=True):
        radius = _radius(draws, size)
        along = draws.between(radius, UNITS // 2 - radius) + half * UNITS // 2
        x, y = (across, along) if upright else (along, across)
        things.append(Thing(shape, colour, size, x, y, radius))
    first, second = (f"{colour} {shape}" for shape, colour, _ in looks)
    sizes = [size for _, _, size in looks]
    captions = (
        f"a {first} {word} a {second}",
        f"a {second} {reverse} a {first}",
        f"there is a {first} {word} a {second}",
        f"a {sizes[0]} {first} {word} a {sizes[1]} {second}",
        f"a picture of a {sizes[1]} {second} {reverse} a {sizes[0]} {first}",
    )
    return CaptionScene("pair", _scene(things), captions)


def _line(draws: Draws) -> CaptionScene:
    count = draws.choice(tuple(NUMBERS))
    shape, colour, size = draws.choice(SHAPES), draws.choice(COLOURS), draws.choice(("small", "large"))
    line = draws.choice(("row", "column"))
    # Four large objects are a little smaller than usual, to leave gaps between them.
    radius = min(_radius(draws, size), UNITS // (2 * count + 1))
    gap = UNITS // count
    across = draws.between(UNITS * 3 // 10, UNITS * 7 // 10)
    things = []
    for number in range(count):
        along = number * gap + gap // 2
        x, y = (along, across) if line == "row" else (across, along)
        things.append(Thing(shape, colour, size, x, y, radius))
    several = f"{NUMBERS[count]} {{}}{colour} {PLURALS[shape]}"
    captions = (
        f"{several.format('')} in a {line}",
        f"a {line} of {several.format('')}",
        f"there are {several.format('')} in a {line}",
        f"{several.format(f'{size} ')} in a {line}",
        f"a picture of {several.format(f'{size} ')} in a {line}",
    )
    return CaptionScene("line", _scene(things), captions)


def _radius(draws: Draws, size: str) -> int:
    low, high = RADII[size]
    return draws.between(low * UNITS // 1000, high * UNITS // 1000)


def _scene(things: list[Thing]) -> Scene:
    return Scene(tuple(sorted(things, key=lambda thing: (thing.y, thing.x))), UNITS // 2)


def karpathy_images(seed: int, train: int, val: int, test: int) -> Iterator[tuple[KarpathyImage, CaptionScene]]:
    """The data set as Karpathy lays COCO out: image `index` shows scene `index`, and has sentences 5 * index + k.

    As in COCO, images of val and test come from the folder val2014, and a tenth of train does too ("restval").
    """
    for index in range(train + val + test):
        split = "train" if index < train else "val" if index < train + val else "test"
        if split == "train" and index % 10 == 9:
            split = "restval"
        folder = "train2014" if split == "train" else "val2014"
        one = caption_scene(seed, index)
        yield (
            KarpathyImage(
                image_id=index,
                file_name=f"COCO_{folder}_{index:012d}.png",
                split=split,
                captions=one.captions,
                sentence_ids=tuple(range(CAPTIONS * index, CAPTIONS * (index + 1))),
                folder=folder,
            ),
            one,
        )
