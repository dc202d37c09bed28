"""COCO captions as a question: one request for each image of Karpathy's test set, and the five human captions.

<folder>/llava_caption_mscoco_test.jsonl    LLaVA-HR's question file: {"id": 391895, "image": "COCO_val2014_....jpg",
                                            "text": "..."} a line; the id is COCO's
<folder>/captions_test5k.json               the captions, as COCO lays annotations
<folder>/dataset_coco.json                  Karpathy's file, for both, where there is no question file
<folder>/val2014/COCO_val2014_000000391895.jpg
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from tenfold.data.formats.coco_captions import (
    CocoCaption,
    CocoCaptions,
    read_coco_captions,
    read_karpathy,
    write_coco_captions,
)
from tenfold.data.formats.records import ImageFolder, Picture, not_empty, once, read_lines, relative_name
from tenfold.errors import UserError
from tenfold.runs import atomic_write_text

QUESTIONS, CAPTIONS, KARPATHY = "llava_caption_mscoco_test.jsonl", "captions_test5k.json", "dataset_coco.json"
IMAGE_FOLDER = "val2014"
# LLaVA-1.5's own request for a caption, asked where there is no question file.
REQUEST = "Provide a one-sentence caption for the provided image."


@dataclass(frozen=True)
class CaptionSample:
    """One image to describe: COCO's id, the request, and the human captions."""

    image_id: int
    text: str
    references: tuple[str, ...]
    image_name: str
    picture: Picture

    @property
    def id(self) -> str:
        """The image's id as text."""
        return str(self.image_id)

    @property
    def prompt(self) -> str:
        """The text as it is."""
        return self.text

    def image(self) -> Image.Image:
        """The decoded image, RGB. Raises UserError naming a broken file."""
        return self.picture.open()


def read_caption_questions(folder: str | Path) -> list[CaptionSample]:
    """Read the question file and the captions, or Karpathy's file; images are looked up now and opened on access.

    Raises:
        UserError: none of the files, a broken one, a missing field or one of the wrong type, an id that occurs twice,
            an image without captions, a missing image file, no records.
    """
    path, karpathy = Path(folder) / QUESTIONS, Path(folder) / KARPATHY
    images = ImageFolder(Path(folder) / IMAGE_FOLDER)
    if path.exists():
        return not_empty(_read_lines(path, Path(folder) / CAPTIONS, images), path)
    if not karpathy.exists():
        raise UserError("no such file", path, f"this file and {CAPTIONS}, or {KARPATHY}")
    return not_empty(
        [
            CaptionSample(one.image_id, REQUEST, one.captions, one.file_name, images.picture(one.file_name, where))
            for one in read_karpathy(karpathy)
            if one.split == "test" and (where := f"{karpathy}, image {one.image_id}")
        ],
        f"{karpathy}, split test",
    )


def _read_lines(path: Path, captions: Path, images: ImageFolder) -> list[CaptionSample]:
    references: dict[int, list[str]] = defaultdict(list)
    for one in read_coco_captions(captions).annotations:
        references[one.image_id].append(one.caption)
    seen: set[int] = set()
    samples = []
    for record in read_lines(path):
        image_id, name = record.integer("id"), record.text("image")
        once(seen, image_id, "id", record.where)
        if image_id not in references:
            raise UserError(f"image {image_id} has no captions", record.where, f"some in {captions.name}")
        picture = images.picture(name, record.where)
        samples.append(CaptionSample(image_id, record.text("text"), tuple(references[image_id]), name, picture))
    return samples


def write_caption_questions(folder: str | Path, samples: Iterable[CaptionSample]) -> None:
    """Write the question file, the captions and the images."""
    lines: list[Any] = []
    names: dict[Any, Any] = {}
    annotations: list[Any] = []
    for sample in samples:
        name = relative_name(sample.image_name, f"image {sample.image_id}")
        sample.picture.write(Path(folder) / IMAGE_FOLDER / name)
        lines.append(json.dumps({"id": sample.image_id, "image": name, "text": sample.text}, ensure_ascii=False) + "\n")
        names[sample.image_id] = name
        for caption in sample.references:
            annotations.append(CocoCaption(len(annotations), sample.image_id, caption))
    write_coco_captions(Path(folder) / CAPTIONS, CocoCaptions(names, tuple(annotations)))
    atomic_write_text(Path(folder) / QUESTIONS, "".join(lines))
