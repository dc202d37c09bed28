"""LLaVA's question files, which FitPrune calibrates on: JSON lines and a folder of images.

{"question_id": "000001", "image": "coco/train2017/000001.jpg", "text": "How many dogs are there?"}
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from tenfold.data.formats.records import ImageFolder, Picture, not_empty, once, read_lines, relative_name
from tenfold.runs import atomic_write_text

# Categories are optional; LLaVA writes this one where there is nothing to tell apart.
DEFAULT_CATEGORY = "default"


@dataclass(frozen=True)
class CalibrationSample:
    """One question about one image; `image_name` is relative to the image folder."""

    question_id: int | str
    text: str
    image_name: str
    picture: Picture
    category: str = DEFAULT_CATEGORY

    def image(self) -> Image.Image:
        """The decoded image, RGB. Raises UserError naming a broken file."""
        return self.picture.open()


def read_calibration(path: str | Path, image_folder: str | Path) -> list[CalibrationSample]:
    """Read a question file line by line; images are looked up now and opened on access.

    Raises:
        UserError: a missing file, a broken line, a missing field or one of the wrong type, a question_id that occurs
            twice, a missing image file, no records.
    """
    images = ImageFolder(image_folder)
    seen: set[int | str] = set()
    samples = []
    for record in read_lines(path):
        question_id = record.identifier("question_id")
        once(seen, question_id, "question_id", record.where)
        name = record.text("image")
        category = record.text("category") if "category" in record else DEFAULT_CATEGORY
        picture = images.picture(name, record.where)
        samples.append(CalibrationSample(question_id, record.text("text"), name, picture, category))
    return not_empty(samples, path)


def write_calibration(path: str | Path, image_folder: str | Path, samples: Iterable[CalibrationSample]) -> None:
    """Write questions to `path` and their images below `image_folder`."""
    lines = []
    for sample in samples:
        name = relative_name(sample.image_name, f"question {sample.question_id}")
        sample.picture.write(Path(image_folder) / name)
        record = {"question_id": sample.question_id, "image": name, "text": sample.text, "category": sample.category}
        lines.append(json.dumps(record, ensure_ascii=False) + "\n")
    atomic_write_text(path, "".join(lines))
