"""Pictures with captions from a user's folder: the official dataset.json, or json lines.

Three layouts, found by what is there:

    dataset.json (or dataset2.json, the name of the authors' download)
        {"train": {"filenames": [...], "captions": [...]}, "test": {...}}: two parallel lists, one entry a caption,
        names without extension; pictures in a folder such as images_512. MM-CelebA-HQ, CelebAText-HQ and FFHQ-Text
        in the authors' form.
    captions.jsonl or metadata.jsonl
        {"file": "a.png", "text": "A face.", "split": "train"} a line; "file_name" is read as well, a missing split is
        train.

A picture that is in train and in test is refused: such a score says nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from e3_facenet.data.settings import DataSettings
from tenfold import UserError
from tenfold.data.pictures import open_picture
from tenfold.runs import fingerprint, read_json, read_jsonl

INDEXES = ("dataset.json", "dataset2.json", "captions.jsonl", "metadata.jsonl")
SUFFIXES = ("", ".jpg", ".png", ".jpeg", ".webp", ".JPG", ".PNG")
TREE = """FOLDER/dataset.json (or dataset2.json): {"train": {"filenames": [...], "captions": [...]}, "test": {...}}, and
FOLDER/images_512/<name>.jpg; or FOLDER/captions.jsonl with {"file", "text", "split"} a line."""


@dataclass(frozen=True)
class CaptionedPictures:
    """One split.

    Attributes:
        folder, index: where it was read from. name: of the split.
        files: of each pair; captions: of each pair. Both in the file's order.
    """

    folder: Path
    index: Path
    name: str
    files: tuple[Path, ...]
    captions: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.files)

    @property
    def pictures(self) -> tuple[Path, ...]:
        """Every picture once, in order of appearance."""
        return tuple(dict.fromkeys(self.files))

    def fingerprint(self) -> str:
        """Of the captions' file."""
        return fingerprint(self.index)


def open_split(settings: DataSettings, folder: Path, split: str) -> CaptionedPictures:
    """Read one split of a folder.

    Raises:
        UserError: no such folder, index, split or picture; lists that do not match; names in both splits; no caption.
    """
    if not folder.is_dir():
        raise UserError("no such folder", folder, TREE)
    names = (settings.index,) if settings.index else INDEXES
    index = next((folder / name for name in names if (folder / name).is_file()), None)
    if index is None:
        raise UserError("no file of captions", folder, " or ".join(names))
    rows = _from_lines(index) if index.suffix == ".jsonl" else _from_dataset(index)
    shared = sorted({name for name, _ in rows.get("train", ())} & {name for name, _ in rows.get("test", ())})
    if shared:
        raise UserError(f"{len(shared)} pictures in train and in test, {shared[0]} first", index, "splits apart")
    if not rows.get(split):
        raise UserError(f"no captions of {split}", index, ", ".join(name for name in rows if rows[name]) or "captions")
    pictures = _picture_folder(settings, folder, index)
    found: dict[str, Path] = {}
    for name, _ in rows[split]:
        if name not in found:
            found[name] = _find(pictures, name, index)
    pairs = rows[split]
    return CaptionedPictures(
        folder, index, split, tuple(found[name] for name, _ in pairs), tuple(text for _, text in pairs)
    )


def _from_dataset(index: Path) -> dict[str, list[tuple[str, str]]]:
    content = read_json(index)
    if not isinstance(content, dict) or not content:
        raise UserError("not an index of captions", index, '{"train": {"filenames": [...], "captions": [...]}}')
    rows = {}
    for split, lists in content.items():
        names, captions = (lists.get(key) if isinstance(lists, dict) else None for key in ("filenames", "captions"))
        if not (isinstance(names, list) and isinstance(captions, list)):
            raise UserError(f"{split} has no two lists", index, "filenames and captions")
        if len(names) != len(captions):
            raise UserError(f"{split}: {len(names)} filenames, {len(captions)} captions", index, "one caption a name")
        rows[split] = [
            _pair(name, text, f"{index}, {split} {n}")
            for n, (name, text) in enumerate(zip(names, captions, strict=True))
        ]
    return rows


def _from_lines(index: Path) -> dict[str, list[tuple[str, str]]]:
    rows: dict[str, list[tuple[str, str]]] = {}
    for number, row in enumerate(read_jsonl(index), start=1):
        name = row.get("file", row.get("file_name"))
        split = row.get("split", "train")
        if not isinstance(split, str):
            raise UserError(f"split {split!r}", f"{index}, line {number}", "a name")
        rows.setdefault(split, []).append(_pair(name, row.get("text"), f"{index}, line {number}"))
    return rows


def _pair(name: object, text: object, where: str) -> tuple[str, str]:
    if not isinstance(name, str) or not name:
        raise UserError(f"{name!r} instead of a picture's name", where, "text")
    if not isinstance(text, str) or not text.strip():
        raise UserError(f"{text!r} instead of a caption", where, "text")
    return name, text


def _picture_folder(settings: DataSettings, folder: Path, index: Path) -> Path:
    if settings.images is not None:
        if not (folder / settings.images).is_dir():
            raise UserError("no such folder of pictures", folder / settings.images, "data.images")
        return folder / settings.images
    found = sorted(path for path in folder.iterdir() if path.is_dir() and path.name.startswith("images"))
    if len(found) > 1:
        raise UserError(f"{len(found)} folders of pictures", folder, f"data.images={found[0].name}, say")
    return found[0] if found else folder


def _find(folder: Path, name: str, index: Path) -> Path:
    if Path(name).is_absolute() or ".." in Path(name).parts:
        raise UserError(f"{name!r} leads out of the folder", index, "a name below it")
    for suffix in SUFFIXES:
        path = folder / f"{name}{suffix}"
        if path.is_file():
            return path
    raise UserError(f"no picture {name}", folder, f"{name}.jpg, as {index.name} says")


def read_picture(path: Path, resolution: int) -> Tensor:
    """A picture [3, R, R] uint8; resized by area where its size differs.

    Raises:
        UserError: not a whole picture, or not square.
    """
    image = open_picture(path, raw=True)
    if image.width != image.height:
        raise UserError(f"{image.width} x {image.height}", path, "a square picture (faces aligned as FFHQ's)")
    if image.width != resolution:
        way = Image.Resampling.BOX if image.width > resolution else Image.Resampling.LANCZOS
        image = image.resize((resolution, resolution), way)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


class Pictures:
    """Decoded pictures of a split, kept where asked for."""

    def __init__(self, split: CaptionedPictures, resolution: int, in_memory: bool) -> None:
        self.split, self.resolution = split, resolution
        self._kept: dict[Path, Tensor] | None = {} if in_memory else None

    def batch(self, rows: Sequence[int], mirrored: Sequence[bool]) -> Tensor:
        """Pictures of pairs in [-1, 1]: [B, 3, R, R] float32."""
        found = []
        for row, flip in zip(rows, mirrored, strict=True):
            picture = self._read(self.split.files[row])
            found.append(picture.flip(-1) if flip else picture)
        return torch.stack(found).float() / 127.5 - 1

    def _read(self, path: Path) -> Tensor:
        if self._kept is None:
            return read_picture(path, self.resolution)
        if path not in self._kept:
            self._kept[path] = read_picture(path, self.resolution)
        return self._kept[path]
