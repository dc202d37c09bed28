"""What some official files do that `records` does not cover: records under keys, images without a file of their own."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

from PIL import Image

from tenfold.data.formats.records import Fields, Picture
from tenfold.data.pictures import decode_picture
from tenfold.errors import UserError
from tenfold.runs import read_text
from tenfold.runs.parse import parse_json


def read_keyed(path: str | Path) -> list[tuple[str, Fields]]:
    """The records of a file `{"id": {...}, ...}`, in its order.

    Raises:
        UserError: no such file, broken JSON, no object of objects, a key that occurs twice (json would take the last).
    """

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(items)
        if len(found) < len(items):
            keys = [key for key, _ in items]
            twice = next(key for key in keys if keys.count(key) > 1)
            raise UserError(f"key {twice!r} twice", path, "unique ids")
        return found

    text = read_text(path)
    parse_json(text, path)  # refuses what is no plain JSON; keys that occur twice are found below
    values = json.loads(text, object_pairs_hook=pairs)
    if not isinstance(values, dict):
        raise UserError(f"{type(values).__name__} instead of an object", path, "{...}")
    return [(key, Fields(value, f"{path}, {key}")) for key, value in values.items()]


def encode_image(picture: Picture) -> bytes:
    """An image as the bytes of a file: those of its own file, or a PNG of the image in memory."""
    if isinstance(picture.source, Path):
        return picture.source.read_bytes()
    buffer = io.BytesIO()
    picture.source.save(buffer, format="PNG")
    return buffer.getvalue()


def decode_image(content: bytes, where: str) -> Image.Image:
    """The bytes of an image file, decoded to the last one, RGB. Raises UserError naming `where` when they are none."""
    return decode_picture(content, where)
