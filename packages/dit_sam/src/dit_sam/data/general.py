"""gRefCOCO, whose sentences may refer to several objects or to none, in the files of its authors (ReLA).

<folder>/grefcoco/grefs(unc).json    like REFER's refs; ann_id is a list, [-1] where nothing is meant
<folder>/grefcoco/instances.json     COCO
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dit_sam.data.refer import Annotation, read_pickle
from tenfold import UserError
from tenfold.data.formats.records import Fields, once
from tenfold.runs import read_json

PARTS = ("train", "val", "testA", "testB")
NO_TARGET = [-1]


class GeneralReference:
    """What is said of some objects of a picture.

    Attributes:
        ref_id, image_id: of the files. part: train, val, testA or testB. sentences: in the file's order.
        ann_ids: of the objects that are meant; empty: none is.
    """

    def __init__(self, fields: Fields) -> None:
        self.ref_id = fields.integer("ref_id")
        self.image_id = fields.integer("image_id")
        self.part = fields.text("split")
        self.sentences = tuple(
            Fields(one, f"{fields.where}, sentence {i}").text("sent") for i, one in enumerate(fields.items("sentences"))
        )
        ids = fields.items("ann_id")
        if not all(isinstance(one, int) and not isinstance(one, bool) for one in ids):
            raise fields.wrong("ann_id", f"is {str(ids)[:60]}", "a list of ids, or [-1]")
        self.ann_ids = () if ids == NO_TARGET else tuple(ids)


def read_general(folder: str | Path) -> list[GeneralReference]:
    """grefs(unc).json, or .p where that is there instead.

    Raises:
        UserError: a missing or broken file or field.
    """
    path = Path(folder) / "grefs(unc).json"
    pickled = path.with_suffix(".p")
    content = read_pickle(pickled) if not path.exists() and pickled.exists() else read_json(path)
    return parse_general(content, path)


def parse_general(content: Any, where: str | Path) -> list[GeneralReference]:
    """The references of a parsed file. Raises UserError as `read_general`."""
    if not isinstance(content, list) or not content:
        raise UserError("no list of references", where, "gRefCOCO's grefs")
    seen: set[int] = set()
    found = []
    for number, values in enumerate(content):
        fields = Fields(values, f"{where}, reference {number}")
        reference = GeneralReference(fields)
        once(seen, reference.ref_id, "ref_id", fields.where)
        found.append(reference)
    return found


def union(ann_ids: tuple[int, ...], annotations: Mapping[int, Annotation], where: str) -> np.ndarray:
    """The objects' masks as one, 0 and 1.

    Raises:
        UserError: an id that names no annotation; a broken segmentation.
    """
    masks = []
    for ann_id in ann_ids:
        if ann_id not in annotations:
            raise UserError(f"names annotation {ann_id}", where, "an annotation of instances.json")
        masks.append(annotations[ann_id].mask(where) > 0)
    return np.logical_or.reduce(masks).astype(np.uint8)
