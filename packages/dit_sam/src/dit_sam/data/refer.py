"""REFER's releases (RefCOCO, RefCOCO+, RefCOCOg), and the form that the authors convert them to (section 6).

    <folder>/<set>/refs(<split>).p       pickled list of {ref_id, ann_id, image_id, split, sentences: [{sent}]}
    <folder>/<set>/instances.json        COCO: images, annotations with segmentation, categories
    <folder>/images/.../train2014/COCO_train2014_%012d.jpg

or converted (`dit-sam convert-data`), as the authors' trainer reads it:

    <folder>/anns/<set>.json             {split: [{iid, bbox, cat_id, refs: [sentence, ...], mask_id}]}
    <folder>/masks/<set>/<mask_id>.npy   uint8 [height, width]

In train a record is an object with all its sentences; elsewhere a record is one sentence. Pickles are opened by a
reader that builds lists, dicts, texts and numbers, and refuses every class or function.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dit_sam.data.segmentation import decode
from tenfold import UserError
from tenfold.data.formats.records import Fields, once
from tenfold.runs import read_json
from tenfold.runs.files import read_bytes
from tenfold.runs.parse import require_plain
from tenfold.runs.unpickling import unpickle

# Split names of each set; the first is the published one.
SPLITS: dict[str, tuple[str, ...]] = {
    "refcoco": ("unc", "google"),
    "refcoco+": ("unc",),
    "refcocog": ("umd", "google"),
}
PARTS = ("train", "val", "test", "testA", "testB", "testC")
_LIMIT = 2**30  # bytes of a pickle


@dataclass(frozen=True)
class Reference:
    """One object of a picture, and what is said of it.

    Attributes:
        ref_id, ann_id, image_id: of REFER and COCO.
        part: train, val, testA, ...
        sentences: in REFER's order.
    """

    ref_id: int
    ann_id: int
    image_id: int
    part: str
    sentences: tuple[str, ...]

    def belongs_to(self, part: str) -> bool:
        """REFER's rule: train and val by equality; testA, testB, testC by their letter; test by containing it."""
        if part in ("testA", "testB", "testC"):
            return part[-1] in self.part
        return part in self.part if part == "test" else self.part == part


@dataclass(frozen=True)
class Annotation:
    """A COCO annotation with the size of its picture."""

    bbox: tuple[float, ...]
    category: int
    segmentation: Any
    height: int
    width: int

    def mask(self, where: str) -> np.ndarray:
        """uint8 [height, width]; 2 where two polygons overlap, as in the authors' files."""
        return decode(self.segmentation, self.height, self.width, where)


def read_pickle(path: str | Path) -> Any:
    """A pickle of lists, dicts, texts and numbers. Python 2's texts are ASCII, else latin1.

    Raises:
        UserError: no such file, broken, out of all proportion, or it names a class or function.
    """
    path = Path(path)
    if path.exists() and path.stat().st_size > _LIMIT:
        raise UserError("larger than a gigabyte", path, "REFER's pickle")
    expected = "lists, dicts, texts and numbers only"
    content = unpickle(read_bytes(path), path, what="a plain pickle", expected=expected, latin1=True)
    require_plain(content, path)
    return content


def read_references(path: str | Path) -> list[Reference]:
    """refs(<split>).p, or the same as JSON.

    Raises:
        UserError: a missing or broken file, a field that is missing or of another type, a ref_id twice.
    """
    path = Path(path)
    content = read_json(path) if path.suffix == ".json" else read_pickle(path)
    return parse_references(content, path)


def parse_references(content: Any, where: str | Path) -> list[Reference]:
    """The references of an unpickled file. Raises UserError as `read_references`."""
    if not isinstance(content, list) or not content:
        raise UserError("no list of references", where, "REFER's refs")
    seen: set[int] = set()
    found = []
    for number, values in enumerate(content):
        fields = Fields(values, f"{where}, reference {number}")
        once(seen, fields.integer("ref_id"), "ref_id", fields.where)
        sentences = tuple(
            Fields(one, f"{fields.where}, sentence {i}").text("sent") for i, one in enumerate(fields.items("sentences"))
        )
        ref_id, ann_id, image_id = (fields.integer(name) for name in ("ref_id", "ann_id", "image_id"))
        found.append(Reference(ref_id, ann_id, image_id, fields.text("split"), sentences))
    return found


def read_annotations(path: str | Path) -> dict[int, Annotation]:
    """instances.json: annotation id -> annotation. Raises UserError for a missing or broken file or field."""
    return parse_annotations(read_json(path), path)


def parse_annotations(content: Any, where: str | Path) -> dict[int, Annotation]:
    """The annotations of a parsed instances.json. Raises UserError as `read_annotations`."""
    whole = Fields(content, str(where))
    sizes = {}
    for number, values in enumerate(whole.items("images")):
        fields = Fields(values, f"{where}, image {number}")
        sizes[fields.integer("id")] = (fields.integer("height"), fields.integer("width"))
    found: dict[int, Annotation] = {}
    for number, values in enumerate(whole.items("annotations")):
        fields = Fields(values, f"{where}, annotation {number}")
        image = fields.integer("image_id")
        if image not in sizes:
            raise fields.wrong("image_id", f"is {image}", "the id of an image in the file")
        if "segmentation" not in fields:
            raise fields.wrong("segmentation", "is missing", "polygons or run lengths")
        box = fields.items("bbox") if "bbox" in fields else [0, 0, 0, 0]
        if len(box) != 4 or not all(isinstance(x, int | float) and not isinstance(x, bool) for x in box):
            raise fields.wrong("bbox", f"is {str(box)[:60]}", "[x, y, width, height]")
        category = fields.integer("category_id") if "category_id" in fields else 0
        number_id = fields.integer("id")
        once_in(found, number_id, fields.where)
        found[number_id] = Annotation(tuple(box), category, values["segmentation"], *sizes[image])
    return found


def once_in(known: Mapping[int, Any], value: int, where: str) -> None:
    """Refuse an id that is already there."""
    if value in known:
        raise UserError(f"id {value} twice", where, "unique ids")


# COCO's category ids have gaps; the authors' json closes them. Nothing reads the number.
_GAPS = ((11, 1), (25, 2), (28, 3), (44, 5), (65, 6), (67, 7), (70, 9), (82, 10), (90, 11))


def squeezed_category(category: int) -> int:
    """COCO's category id, 1 to 90, as a number from 0 without gaps."""
    return category - next(shift for last, shift in _GAPS if category <= last)


def converted(
    references: Sequence[Reference], annotations: Mapping[int, Annotation], where: str = "refs"
) -> dict[str, list[dict[str, Any]]]:
    """The authors' json of a set: part -> records, in the order of the references.

    Raises:
        UserError: a reference names no annotation.
    """
    parts: dict[str, list[dict[str, Any]]] = {}
    for part in dict.fromkeys(reference.part for reference in references):
        parts[part] = []
    for reference in references:
        annotation = annotations.get(reference.ann_id)
        if annotation is None:
            what = f"reference {reference.ref_id} names annotation {reference.ann_id}"
            raise UserError(what, where, "an annotation of instances.json")
        record = {
            "iid": reference.image_id,
            "bbox": list(annotation.bbox),
            "cat_id": squeezed_category(annotation.category) if 1 <= annotation.category <= 90 else 0,
        }
        together = [list(reference.sentences)]
        if reference.part != "train":
            together = [[one] for one in reference.sentences]
        parts[reference.part] += [{**record, "refs": refs, "mask_id": reference.ref_id} for refs in together]
    return parts
