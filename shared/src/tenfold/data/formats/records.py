"""What all readers and writers share: checked fields, images opened when asked for, safe relative names."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from PIL import Image

from tenfold.data.pictures import open_picture
from tenfold.errors import UserError
from tenfold.runs.parse import parse_json

# What Pillow's decoders raise on broken files, besides UnidentifiedImageError (an OSError).


@dataclass(frozen=True)
class Picture:
    """An image that is opened when asked for.

    Args:
        source: the file, or an image in memory.
        where: the record that names it, for messages.
    """

    source: Path | Image.Image
    where: str = ""

    def open(self) -> Image.Image:
        """The decoded image, RGB, as stored: what published numbers were computed from.

        Raises:
            UserError: the file is missing, no image, or cut off; names the file.
        """
        if isinstance(self.source, Image.Image):
            return self.source.convert("RGB")
        return open_picture(self.source, raw=True)

    def write(self, path: Path) -> None:
        """Write to `path`: a file is copied byte for byte, an image in memory is encoded by the name's suffix."""
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(self.source, Image.Image):
            self.source.save(path)
        else:
            shutil.copyfile(self.source, path)


class Fields:
    """One record of a file, read field by field; every complaint names file, record and field.

    Args:
        values: the record as JSON gave it.
        where: file and record.

    Raises:
        UserError: the record is no JSON object.
    """

    def __init__(self, values: Any, where: str) -> None:
        if not isinstance(values, Mapping):
            raise UserError(f"{type(values).__name__} instead of an object", where, "{...}")
        self._values = values
        self.where = where

    def __contains__(self, name: str) -> bool:
        return name in self._values

    def text(self, name: str) -> str:
        """A string."""
        return self._typed(name, str, "a string")

    def integer(self, name: str) -> int:
        """An integer (true and false are none)."""
        return self._typed(name, int, "an integer")

    def identifier(self, name: str) -> int | str:
        """A string or an integer: the official files have both."""
        return self._typed(name, (int, str), "a string or an integer")

    def choice(self, name: str, allowed: tuple[str, ...]) -> str:
        """One of some strings."""
        value = self.text(name)
        if value not in allowed:
            raise self.wrong(name, f"is {value!r}", " or ".join(f'"{one}"' for one in allowed))
        return value

    def optional_text(self, name: str) -> str | None:
        """A string, or None where the file says null."""
        if name in self._values and self._values[name] is None:
            return None
        return self.text(name)

    def items(self, name: str) -> list[Any]:
        """A list with at least one item."""
        values = self._typed(name, list, "a list")
        if not values:
            raise self.wrong(name, "is empty", "at least one item")
        return values

    def record(self, name: str) -> Fields:
        """A record in the record."""
        if name not in self._values:
            raise self.wrong(name, "is missing", "an object")
        return Fields(self._values[name], f"{self.where}, {name}")

    def wrong(self, name: str, what: str, expected: str) -> UserError:
        """The error for a field of this record."""
        return UserError(f"field {name!r} {what}", self.where, expected)

    def _typed(self, name: str, kind: type | tuple[type, ...], expected: str) -> Any:
        if name not in self._values:
            raise self.wrong(name, "is missing", expected)
        value = self._values[name]
        if not isinstance(value, kind) or isinstance(value, bool):
            raise self.wrong(name, f"is of type {type(value).__name__}", expected)
        return value


class ImageFolder:
    """The image files below a folder. Each folder is listed once, so checking a million names asks the disk little."""

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)
        self._names: dict[Path, set[str]] = {}

    def picture(self, name: str, where: str) -> Picture:
        """The image of that relative name, unopened.

        Raises:
            UserError: the name leaves the folder, or there is no such file.
        """
        path = self.root / relative_name(name, where)
        if not self._there(path):
            raise UserError("no such image", path, f"the image that {where} names")
        return Picture(path, where)

    def first(self, names: tuple[str, ...], where: str) -> Picture:
        """The first of several names that is there; the error names the first one."""
        for name in names:
            if self._there(self.root / name):
                return Picture(self.root / name, where)
        return self.picture(names[0], where)

    def _there(self, path: Path) -> bool:
        folder = path.parent
        if folder not in self._names:
            self._names[folder] = {entry.name for entry in folder.iterdir()} if folder.is_dir() else set()
        return path.name in self._names[folder]


def relative_name(name: str, where: str) -> str:
    """An image name that stays below its folder.

    Raises:
        UserError: an empty or absolute name, or one with "..".
    """
    path = PurePosixPath(name)
    if not name or path.is_absolute() or ".." in path.parts or "\\" in name or "\0" in name:
        raise UserError(f"image name {name!r} leaves the image folder", where, 'a relative name without ".."')
    return name


def read_lines(path: str | Path) -> Iterator[Fields]:
    """The records of a JSON-lines file, one at a time; blank lines are passed over.

    Raises:
        UserError: no such file, not UTF-8, or a line that is no JSON object (a torn last line too: a data set is not
            a log that was being written).
    """
    path = Path(path)
    number = 0
    try:
        with open(path, encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    where = f"{path}, line {number}"
                    yield Fields(parse_json(line, where), where)
    except UnicodeDecodeError as error:
        raise UserError("is not text", f"{path}, after line {number}", "UTF-8") from error
    except OSError as error:
        raise UserError(f"cannot read ({error.strerror})", path, "a readable file") from error


def once(seen: set[Any], value: Any, name: str, where: str) -> None:
    """Remember an id; raise UserError when it was there before."""
    if value in seen:
        raise UserError(f"{name} {value!r} twice", where, "unique ids")
    seen.add(value)


def not_empty(samples: list[Any], path: str | Path) -> list[Any]:
    """The samples, if there are any; else UserError: an empty data set is a mistake in a path or a download."""
    if not samples:
        raise UserError("no records", path, "at least one")
    return samples
