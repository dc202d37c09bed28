"""POPE: three files of yes/no questions about objects, and a folder of COCO images (Li et al. 2023).

<folder>/coco/coco_pope_random.json, coco_pope_popular.json, coco_pope_adversarial.json     (JSON lines)
<folder>/val2014/COCO_val2014_000000310196.jpg

{"question_id": 1, "image": "COCO_val2014_000000310196.jpg", "text": "Is there a dog in the image?", "label": "yes"}
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from tenfold.data.formats.records import ImageFolder, Picture, not_empty, once, read_lines, relative_name
from tenfold.errors import UserError
from tenfold.metrics.pope import SUBSETS
from tenfold.runs import atomic_write_text

IMAGE_FOLDER = "val2014"


@dataclass(frozen=True)
class PopeSample:
    """One question about one image; `label` is "yes" or "no"."""

    question_id: int | str
    text: str
    label: str
    image_name: str
    picture: Picture

    def image(self) -> Image.Image:
        """The decoded image, RGB. Raises UserError naming a broken file."""
        return self.picture.open()


def pope_file(folder: str | Path, subset: str) -> Path:
    """The official name of a subset's questions. Raises UserError for an unknown subset."""
    if subset not in SUBSETS:
        raise UserError("unknown POPE subset", subset, " or ".join(SUBSETS))
    return Path(folder) / "coco" / f"coco_pope_{subset}.json"


def read_pope(folder: str | Path, subset: str) -> list[PopeSample]:
    """Read a subset ("random", "popular", "adversarial") line by line; images are looked up now, opened on access.

    Raises:
        UserError: an unknown subset, a missing file, a broken line, a missing field or one of the wrong type, a label
            that is neither yes nor no, a question_id that occurs twice, a missing image file, no records.
    """
    path = pope_file(folder, subset)
    images = ImageFolder(Path(folder) / IMAGE_FOLDER)
    seen: set[int | str] = set()
    samples = []
    for record in read_lines(path):
        question_id = record.identifier("question_id")
        once(seen, question_id, "question_id", record.where)
        name, label = record.text("image"), record.choice("label", ("yes", "no"))
        picture = images.picture(name, record.where)
        samples.append(PopeSample(question_id, record.text("text"), label, name, picture))
    return not_empty(samples, path)


def write_pope(folder: str | Path, subset: str, samples: Iterable[PopeSample]) -> None:
    """Write a subset in the official layout; an image that several questions share is written once."""
    lines, written = [], set()
    for sample in samples:
        name = relative_name(sample.image_name, f"question {sample.question_id}")
        if name not in written:
            sample.picture.write(Path(folder) / IMAGE_FOLDER / name)
            written.add(name)
        record = {"question_id": sample.question_id, "image": name, "text": sample.text, "label": sample.label}
        lines.append(json.dumps(record, ensure_ascii=False) + "\n")
    atomic_write_text(pope_file(folder, subset), "".join(lines))
