"""One's own pictures, sentences and masks: no boxes, no categories.

    <folder>/<part>.jsonl    {"image": "a.jpg", "sentence": "the left cup", "mask": "a_cup.png"} a line

"sentences": [...] gives several for one mask; "mask": null says that the sentence means nothing in the picture. A mask
is a picture of the same size whose pixels are 0 outside: 0 / 1, 0 / 255 and palettes are all the same.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from dit_sam.data.samples import Sample
from tenfold.data.formats.records import Fields, ImageFolder, not_empty, read_lines, relative_name
from tenfold.data.pictures import read_stored


def read_own(folder: str | Path, part: str) -> list[Sample]:
    """The samples of a part; pictures are looked up now and opened on access.

    Raises:
        UserError: a missing file, a broken line, a missing picture or mask, no records.
    """
    path = Path(folder) / f"{part}.jsonl"
    files = ImageFolder(folder)
    samples = []
    for number, record in enumerate(read_lines(path), start=1):
        picture = files.picture(record.text("image"), record.where)
        read_mask = None
        if "mask" not in record or record.optional_text("mask") is not None:
            name = relative_name(record.text("mask"), record.where)
            file = files.picture(name, record.where).source
            assert isinstance(file, Path)
            read_mask = _Reader(file)
        samples.append(Sample(str(number), picture, _sentences(record), read_mask, record.where))
    return not_empty(samples, path)


def _sentences(record: Fields) -> tuple[str, ...]:
    found = (record.text("sentence"),) if "sentence" in record else tuple(record.items("sentences"))
    if not all(isinstance(one, str) and one.strip() for one in found):
        raise record.wrong("sentences", "has an empty one", "texts")
    return found


class _Reader:
    """Opens a mask when it is called; can be sent to another process."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __call__(self) -> np.ndarray:
        return read_mask(self.path)


def read_mask(path: str | Path) -> np.ndarray:
    """A mask file as uint8 [height, width] of 0 and 1: any palette entry, grey or colour but 0 is foreground.

    Raises:
        UserError: no such file, or no picture.
    """
    values = read_stored(path)
    if values.ndim == 2:
        return (values != 0).astype(np.uint8)
    # An alpha channel says nothing of colour: opaque black is outside.
    channels = values.shape[2] - (1 if values.shape[2] in (2, 4) else 0)
    return (values[:, :, :channels] != 0).max(axis=2).astype(np.uint8)
