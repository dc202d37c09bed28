"""NLVR2: is a sentence true of two photographs (Suhr et al. 2019)?

<folder>/nlvr2/data/train.json, dev.json, test1.json    a record a line: {"identifier": "dev-850-0-0", "sentence",
                                                        "label": "True", and in train.json "directory": 3}
<folder>/images/train/<directory>/<pair>-img0.png       <pair> is the identifier without its last number
<folder>/dev/<pair>-img0.png, test1/<pair>-img1.png
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from tenfold.data.formats.records import ImageFolder, Picture, not_empty, once, read_lines
from tenfold.runs.files import atomic_write_text

SPLITS = ("train", "dev", "test1")
LABELS = ("False", "True")


@dataclass(frozen=True)
class NLVR2Sample:
    """A sentence about a left and a right picture; `pair` names the two, which several sentences share."""

    identifier: str
    pair: str
    sentence: str
    answer: bool
    pictures: tuple[Picture, Picture]


def sentences_file(folder: str | Path, split: str) -> Path:
    """The official name of a split's sentences."""
    return Path(folder) / "nlvr2" / "data" / f"{split}.json"


def read_nlvr2(folder: str | Path, split: str = "dev") -> list[NLVR2Sample]:
    """Read a split; pictures are looked up now and opened on access.

    Raises:
        UserError: a missing or broken file, a missing field or one of the wrong type, an identifier that occurs twice
            or names no pair, a missing picture, no records.
    """
    path, images = sentences_file(folder, split), ImageFolder(folder)
    seen: set[str] = set()
    samples = []
    for record in read_lines(path):
        identifier = record.text("identifier")
        once(seen, identifier, "identifier", record.where)
        pair, dash, number = identifier.rpartition("-")
        if not dash or not number.isdigit() or not pair:
            raise record.wrong("identifier", f"is {identifier!r}", "a pair and a number, such as dev-850-0-0")
        place = f"images/train/{record.integer('directory')}" if split == "train" else split
        left, right = (images.picture(f"{place}/{pair}-img{side}.png", record.where) for side in (0, 1))
        sentence, answer = record.text("sentence"), record.choice("label", LABELS) == "True"
        samples.append(NLVR2Sample(identifier, pair, sentence, answer, (left, right)))
    return not_empty(samples, path)


def write_nlvr2(folder: str | Path, samples: Iterable[NLVR2Sample], split: str = "dev") -> None:
    """Write a split in the official layout; train's pictures go to directory 0."""
    lines = []
    for sample in samples:
        record: dict[str, object] = {"identifier": sample.identifier, "sentence": sample.sentence}
        record["label"] = str(sample.answer)
        if split == "train":
            record["directory"] = 0
        for side, picture in enumerate(sample.pictures):
            place = "images/train/0" if split == "train" else split
            picture.write(Path(folder) / place / f"{sample.pair}-img{side}.png")
        lines.append(json.dumps(record, ensure_ascii=False) + "\n")
    atomic_write_text(sentences_file(folder, split), "".join(lines))
