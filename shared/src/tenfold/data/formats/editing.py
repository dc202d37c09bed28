"""Image editing lists: Editing-Mask, ImageNet (FlexIT's protocol) and Imagen, as InstDiffEdit's authors release them.

<folder>/ImageNet_list.txt       ILSVRC2012_val_00012345.JPEG <> mug cup <> tea pot
<folder>/Imagen_list.txt         12 <> A photo of a brown bear on a hill. <> brown bear <> a grey wolf
<folder>/Editing-Mask_list.txt   records of both kinds
<folder>/<set>/image/<file>      12.jpg, ILSVRC2012_val_00012345.JPEG     (or <folder>/<set>/<file>)
<folder>/Editing-Mask/mask/<stem>.png     what a person says may change: white; .jpg and .jpeg too

One record a line, UTF-8, fields separated by " <> ", no header.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from tenfold.data.formats.records import ImageFolder, Picture, not_empty, once, relative_name
from tenfold.errors import UserError
from tenfold.runs import atomic_write_text

SETS = ("Editing-Mask", "ImageNet", "Imagen")
SEPARATOR = " <> "
MASK_SUFFIXES = (".png", ".jpg", ".jpeg")
# A mask's grey level from which a pixel counts as white.
WHITE = 128


@dataclass(frozen=True)
class EditRecord:
    """One line of a list.

    Attributes:
        id: five digits of an ImageNet file's name, or the number of an Imagen picture.
        file_name: of the picture.
        edit_prompt: what the edit is asked for: "a " and the target label, or the target phrase alone.
        source: what is there: label or phrase.
        target: what shall be there: label or phrase.
        sentence: the full prompt of an Imagen picture; None for ImageNet.
    """

    id: str
    file_name: str
    edit_prompt: str
    source: str
    target: str
    sentence: str | None

    @property
    def target_sentence(self) -> str:
        """The whole sentence that describes the edited picture; without a sentence the edit prompt."""
        return self.edit_prompt if self.sentence is None else self.sentence.replace(self.source, self.target)


@dataclass(frozen=True)
class EditSample:
    """A record with its picture and, in Editing-Mask, its mask."""

    record: EditRecord
    picture: Picture
    mask_picture: Picture | None

    def image(self) -> Image.Image:
        """The decoded picture, RGB. Raises UserError naming a broken file."""
        return self.picture.open()

    def mask(self) -> np.ndarray:
        """``[height, width]`` bool: what may change. Raises UserError: no mask, or a broken file."""
        if self.mask_picture is None:
            raise UserError("no mask", self.picture.where, "a record of Editing-Mask")
        return np.asarray(self.mask_picture.open().convert("L")) >= WHITE


def parse_edit_record(line: str, where: str) -> EditRecord:
    """One line of a list.

    Raises:
        UserError: neither three nor four fields, an empty one, or an ImageNet name without its five digits.
    """
    fields = line.rstrip("\n").split(SEPARATOR)
    if not all(field.strip() for field in fields):
        raise UserError("an empty field", where, f"fields separated by {SEPARATOR!r}")
    if len(fields) == 3:
        name, source, target = fields
        # ILSVRC2012_val_00012345.JPEG: the last five digits before the suffix.
        number = name[18:-5]
        if len(number) != 5 or not number.isdigit():
            raise UserError(f"picture name {name!r}", where, "ILSVRC2012_val_<eight digits>.JPEG")
        return EditRecord(number, name, f"a {target}", source, target, None)
    if len(fields) == 4:
        number, sentence, source, target = fields
        return EditRecord(number, f"{number}.jpg", target, source, target, sentence)
    raise UserError(f"{len(fields)} fields", where, f"three or four, separated by {SEPARATOR!r}")


def list_file(folder: str | Path, name: str) -> Path:
    """The official name of a set's list. Raises UserError for an unknown set."""
    if name not in SETS:
        raise UserError("unknown editing set", name, " or ".join(SETS))
    return Path(folder) / f"{name}_list.txt"


def read_edit_list(path: str | Path) -> list[EditRecord]:
    """The records of a list.

    Raises:
        UserError: no such file, not UTF-8, a broken line, a picture that occurs twice with the same target, no records.
    """
    path = Path(path)
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise UserError("is not text", path, "UTF-8") from error
    except OSError as error:
        raise UserError(f"cannot read ({error.strerror})", path, "a list of edits") from error
    seen: set[tuple[str, str]] = set()
    records = []
    for number, line in enumerate(lines, start=1):
        if line.strip():
            where = f"{path}, line {number}"
            record = parse_edit_record(line, where)
            once(seen, (record.file_name, record.edit_prompt), "edit", where)
            records.append(record)
    return not_empty(records, path)


def read_edits(folder: str | Path, name: str) -> list[EditSample]:
    """A set with its pictures (and Editing-Mask's masks), looked up now, opened on access.

    Raises:
        UserError: as in `read_edit_list`; a picture or a mask that is not there.
    """
    folder = Path(folder)
    inside = folder / name / "image"
    images = ImageFolder(inside if inside.is_dir() else folder / name)
    masks = ImageFolder(folder / name / "mask")
    samples = []
    for record in read_edit_list(list_file(folder, name)):
        where = f"{name}, record {record.id}"
        picture = images.picture(record.file_name, where)
        mask = None
        if name == "Editing-Mask":
            stem = Path(record.file_name).stem
            mask = masks.first(tuple(f"{stem}{suffix}" for suffix in MASK_SUFFIXES), where)
        samples.append(EditSample(record, picture, mask))
    return samples


def write_edits(folder: str | Path, name: str, samples: Iterable[EditSample]) -> None:
    """Write a set in the official layout: pictures and masks first, the list last."""
    folder, lines = Path(folder), []
    for sample in samples:
        record = sample.record
        file_name = relative_name(record.file_name, f"record {record.id}")
        sample.picture.write(folder / name / "image" / file_name)
        if sample.mask_picture is not None:
            sample.mask_picture.write(folder / name / "mask" / f"{Path(file_name).stem}.png")
        lines.append(SEPARATOR.join(_fields(record)))
    atomic_write_text(list_file(folder, name), "\n".join(lines))


def _fields(record: EditRecord) -> Sequence[str]:
    if record.sentence is None:
        return record.file_name, record.source, record.target
    return record.id, record.sentence, record.source, record.target
