"""RefCOCO as a question: where is "the man on the left"? The answer is a box in the model's text.

<folder>/llava_refcoco_mscoco_val.jsonl     LLaVA-HR's question file: {"id": 0, "image": "COCO_train2014_....jpg",
                                            "text": "...", "ans": [0.12, 0.2, 0.5, 0.63]} a line
<folder>/train2014/COCO_train2014_000000581857.jpg

A box is left, top, right, bottom, each from 0 to 1.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from tenfold.data.formats.records import Fields, ImageFolder, Picture, not_empty, once, read_lines, relative_name
from tenfold.runs import atomic_write_text

IMAGE_FOLDER = "train2014"
# COCO's boxes end a pixel outside some images.
_SLACK = 0.05
Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class BoxSample:
    """One expression about one image; `box` is left, top, right, bottom in 0 .. 1."""

    question_id: int | str
    text: str
    box: Box
    image_name: str
    picture: Picture

    @property
    def id(self) -> str:
        """The question's id as text."""
        return str(self.question_id)

    @property
    def prompt(self) -> str:
        """The text as it is."""
        return self.text

    def image(self) -> Image.Image:
        """The decoded image, RGB. Raises UserError naming a broken file."""
        return self.picture.open()


def boxes_file(folder: str | Path, split: str = "val") -> Path:
    """The name of a split's question file."""
    return Path(folder) / f"llava_refcoco_mscoco_{split}.jsonl"


def read_refcoco_boxes(folder: str | Path, split: str = "val") -> list[BoxSample]:
    """Read a split; images are looked up now and opened on access.

    Raises:
        UserError: a missing file, a broken line, a missing field or one of the wrong type, a box that is not four
            numbers in order, about 0 to 1, an id that occurs twice, a missing image file, no records.
    """
    path = boxes_file(folder, split)
    images = ImageFolder(Path(folder) / IMAGE_FOLDER)
    seen: set[int | str] = set()
    samples = []
    for record in read_lines(path):
        question_id, name = record.identifier("id"), record.text("image")
        once(seen, question_id, "id", record.where)
        picture = images.picture(name, record.where)
        samples.append(BoxSample(question_id, record.text("text"), _box(record), name, picture))
    return not_empty(samples, path)


def _box(record: Fields) -> Box:
    values = record.items("ans")
    numbers = len(values) == 4 and all(isinstance(one, int | float) and not isinstance(one, bool) for one in values)
    if not numbers or not all(-_SLACK <= values[k] <= values[k + 2] <= 1 + _SLACK for k in (0, 1)):
        raise record.wrong("ans", f"is {values!r}", "[left, top, right, bottom], each from 0 to 1")
    left, top, right, bottom = map(float, values)
    return left, top, right, bottom


def write_refcoco_boxes(folder: str | Path, samples: Iterable[BoxSample], split: str = "val") -> None:
    """Write a split; an image that several expressions share is written once."""
    lines, written = [], set()
    for sample in samples:
        name = relative_name(sample.image_name, f"question {sample.id}")
        if name not in written:
            sample.picture.write(Path(folder) / IMAGE_FOLDER / name)
            written.add(name)
        record = {"id": sample.question_id, "image": name, "text": sample.text, "ans": list(sample.box)}
        lines.append(json.dumps(record, ensure_ascii=False) + "\n")
    atomic_write_text(boxes_file(folder, split), "".join(lines))
