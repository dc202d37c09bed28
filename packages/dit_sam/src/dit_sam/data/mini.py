"""The mini world in REFER's own files: scenes of coloured shapes, and expressions that fit one of them.

    write_mini(folder, MiniSettings())
    <folder>/refcoco/refs(unc).p  <folder>/refcoco/instances.json  <folder>/train2014/*.png

Two kinds of expressions, about as many of each:

    by look    "the red circle", "the blue object"            what no other object of the scene is
    by place   "the leftmost red object", "the top square"    the first along an axis among those that look so

Masks are polygons, as in RefCOCO; circles have 32 corners.
"""

from __future__ import annotations

import math
import pickle
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dit_sam.data.settings import MiniSettings
from tenfold.data import miniworld
from tenfold.data.miniworld import UNITS, Draws, Scene, SceneConfig, Thing
from tenfold.runs import atomic_directory, atomic_write_bytes, atomic_write_json

CONFIG = SceneConfig(
    layout="free",
    grid=3,
    min_objects=4,
    max_objects=6,
    shapes=("circle", "square", "triangle"),
    colours=("red", "green", "blue", "yellow"),
    sizes=("large",),
)
# Expressions drawn for a scene: of each kind.
EACH = 2
# Word -> how far an object lies in its direction.
PLACES = {"leftmost": (-1, 0), "rightmost": (1, 0), "top": (0, -1), "bottom": (0, 1)}
LOOK, PLACE = "look", "place"
# Sentences that are none of the world's purposes 1 to 6.
_PURPOSE = 101
# Seeds of the parts' scenes lie apart by this.
PARTS = ("train", "val", "test")
WORDS = (
    *("[PAD]", "[UNK]", "[CLS]", "[SEP]", "the", "object", "circle", "square", "triangle"),
    *("red", "green", "blue", "yellow", *PLACES),
)


@dataclass(frozen=True)
class Expression:
    """A sentence, the object it means (its place in the scene), and its kind."""

    text: str
    target: int
    kind: str


def looks(thing: Thing) -> list[tuple[str, str, str]]:
    """An object's descriptions as (colour, shape, noun phrase); an empty colour or shape is any."""
    return [
        (thing.colour, thing.shape, f"{thing.colour} {thing.shape}"),
        ("", thing.shape, thing.shape),
        (thing.colour, "", f"{thing.colour} object"),
    ]


def expressions(scene: Scene) -> list[Expression]:
    """Every expression of the two kinds that fits exactly one object."""
    found = []
    for target, thing in enumerate(scene.things):
        for colour, shape, noun in looks(thing):
            alike = [one for one in scene.things if colour in ("", one.colour) and shape in ("", one.shape)]
            if len(alike) == 1:
                found.append(Expression(f"the {noun}", target, LOOK))
                continue
            for word, (dx, dy) in PLACES.items():
                others = max(one.x * dx + one.y * dy for one in alike if one is not thing)
                # First by half a radius: nobody would call less "leftmost".
                if 2 * (thing.x * dx + thing.y * dy - others) >= thing.radius:
                    found.append(Expression(f"the {word} {noun}", target, PLACE))
    return found


def drawn_expressions(scene: Scene, seed: int, index: int) -> list[Expression]:
    """EACH expressions of each kind, or as many as there are."""
    draws = Draws.of(seed, index, _PURPOSE)
    everything = expressions(scene)
    return [
        one
        for kind in (LOOK, PLACE)
        for one in draws.sample([expression for expression in everything if expression.kind == kind], EACH)
    ]


def part_seed(settings: MiniSettings, part: str) -> int:
    """The seed of a part's scenes; no two parts, nor two data sets, share one."""
    return settings.seed * len(PARTS) + PARTS.index(part)


def polygon(thing: Thing, size: int) -> list[float]:
    """An object's outline in pixels, x and y by turns."""
    corners: Sequence[tuple[float, float]]
    if thing.shape == "circle":
        corners = [(math.cos(math.tau * k / 32), math.sin(math.tau * k / 32)) for k in range(32)]
    elif thing.shape == "square":
        corners = [(-0.85, -0.85), (0.85, -0.85), (0.85, 0.85), (-0.85, 0.85)]
    else:
        corners = [(0.0, -1.0), (1.0, 0.8), (-1.0, 0.8)]
    return [
        round((centre + thing.radius * offset) * size / UNITS, 2)
        for corner in corners
        for centre, offset in zip((thing.x, thing.y), corner, strict=True)
    ]


def write_mini(folder: str | Path, settings: MiniSettings) -> None:
    """Draw the data set; the folder appears whole or not at all.

    Raises:
        UserError: the folder exists or cannot be written.
    """
    refs: list[dict[str, Any]] = []
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    with atomic_directory(folder) as place:
        (place / "train2014").mkdir()
        (place / "refcoco").mkdir()
        for part, scene, drawn in _scenes(settings):
            image_id = len(images) + 1
            name = f"COCO_train2014_{image_id:012d}.png"
            miniworld.render(scene, settings.size).save(place / "train2014" / name)
            images.append({"id": image_id, "file_name": name, "height": settings.size, "width": settings.size})
            for target, thing in enumerate(scene.things):
                said = [one.text for one in drawn if one.target == target]
                if said:
                    annotations.append(_annotation(len(annotations) + 1, image_id, thing, settings.size))
                    refs.append(_reference(len(annotations), image_id, part, said))
        categories = [{"id": i, "name": name} for i, name in enumerate(CONFIG.shapes, start=1)]
        content = {"images": images, "annotations": annotations, "categories": categories}
        atomic_write_json(place / "refcoco" / "instances.json", content)
        # Protocol 2, as in REFER's own files.
        atomic_write_bytes(place / "refcoco" / "refs(unc).p", pickle.dumps(refs, protocol=2))


def _scenes(settings: MiniSettings) -> Iterator[tuple[str, Scene, list[Expression]]]:
    for part in PARTS:
        seed = part_seed(settings, part)
        for index in range(getattr(settings, part)):
            scene = miniworld.scene(seed, index, CONFIG)
            yield part, scene, drawn_expressions(scene, seed, index)


def _annotation(number: int, image_id: int, thing: Thing, size: int) -> dict[str, Any]:
    outline = polygon(thing, size)
    xs, ys = outline[::2], outline[1::2]
    box = [round(value, 2) for value in (min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys))]
    category = CONFIG.shapes.index(thing.shape) + 1
    fixed = {"iscrowd": 0, "area": round(box[2] * box[3], 2), "segmentation": [outline]}
    return {"id": number, "image_id": image_id, "category_id": category, "bbox": box, **fixed}


def _reference(number: int, image_id: int, part: str, said: list[str]) -> dict[str, Any]:
    ids = [100 * number + i for i in range(len(said))]
    sentences = [
        {"tokens": one.split(), "raw": one, "sent_id": sent_id, "sent": one}
        for one, sent_id in zip(said, ids, strict=True)
    ]
    return {
        **{"ref_id": number, "ann_id": number, "image_id": image_id, "category_id": 1, "split": part},
        **{"file_name": f"COCO_train2014_{image_id:012d}_{number}.png", "sentences": sentences, "sent_ids": ids},
    }
