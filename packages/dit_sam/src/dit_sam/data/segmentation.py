"""COCO's three ways to write a mask: polygons, and run lengths in numbers or as text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from pycocotools import mask as coco

from tenfold import UserError

# Masks of more pixels are not believed.
_PIXELS = 100_000_000


def decode(segmentation: Any, height: int, width: int, where: str) -> np.ndarray:
    """A segmentation as uint8 [height, width]: how many of its polygons cover a pixel (run lengths: 0 or 1).

    Args:
        segmentation: a list of polygons [x, y, x, y, ...], or {"size": [h, w], "counts": text or numbers}.

    Raises:
        UserError: none of these, or of another size.
    """
    if not 0 < height * width <= _PIXELS:
        raise UserError(f"a mask of {width} x {height} pixels", where, "the size of a picture")
    if isinstance(segmentation, Mapping):
        return _decode_runs(segmentation, height, width, where)
    if not isinstance(segmentation, Sequence) or isinstance(segmentation, str) or not segmentation:
        raise UserError(f"a segmentation of type {type(segmentation).__name__}", where, "polygons or run lengths")
    total = np.zeros((height, width), dtype=np.uint8)
    for polygon in segmentation:
        numbers = isinstance(polygon, list | tuple) and all(_number(one) for one in polygon)
        if not numbers or len(polygon) < 6 or len(polygon) % 2:
            raise UserError(f"a polygon {str(polygon)[:60]}", where, "[x, y, x, y, x, y, ...]")
        runs = coco.frPyObjects([[float(one) for one in polygon]], height, width)[0]
        total += _decode_text(runs["counts"].decode("ascii"), height, width, where)
    return total


def _decode_runs(segmentation: Mapping[str, Any], height: int, width: int, where: str) -> np.ndarray:
    size, counts = segmentation.get("size"), segmentation.get("counts")
    if size != [height, width]:
        raise UserError(f"run lengths of size {size}", where, f"[{height}, {width}], the picture's height and width")
    if isinstance(counts, list):
        if not all(isinstance(one, int) and not isinstance(one, bool) and one >= 0 for one in counts):
            raise UserError("run lengths that are no counts", where, "integers, 0 or more")
        if sum(counts) != height * width:
            raise UserError(f"run lengths of {sum(counts)} pixels", where, f"{height * width}")
        values = np.arange(len(counts)) % 2 == 1
        return np.repeat(values, counts).reshape(width, height).T.astype(np.uint8)
    if isinstance(counts, str):
        return _decode_text(counts, height, width, where)
    raise UserError(f"run lengths of type {type(counts).__name__}", where, "text or numbers")


def _decode_text(counts: str, height: int, width: int, where: str) -> np.ndarray:
    """COCO's compressed run lengths: five bits a character, differences to the last count but one from the third on.

    Decoded here, because pycocotools' own decoder trusts its input.
    """
    runs: list[int] = []
    value, shift = 0, 0
    for character in counts:
        bits = ord(character) - 48
        if not 0 <= bits < 64 or shift > 50:
            raise UserError("broken run lengths", where, "COCO's compressed text")
        value |= (bits & 31) << shift
        shift += 5
        if not bits & 32:
            if bits & 16:
                value -= 1 << shift
            runs.append(value + (runs[-2] if len(runs) > 2 else 0))
            value, shift = 0, 0
    if shift or any(run < 0 for run in runs) or sum(runs) != height * width:
        raise UserError("broken run lengths", where, f"{height * width} pixels")
    return _decode_runs({"size": [height, width], "counts": runs}, height, width, where)


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e9
