"""Pictures from files, whatever they are, as 8-bit RGB.

    open_picture("photo.jpg")                    # upright, values scaled: what a user means
    open_picture(path, raw=True)                 # pixels as stored: what published numbers were computed from

The size is read from the header and bounded before any memory is taken for pixels.
"""

from __future__ import annotations

import io
import logging
import re
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import IO, Any

import numpy as np
from PIL import Image, ImageOps

from tenfold.errors import UserError

logger = logging.getLogger(__name__)

# Pillow itself warns from here on; as RGB it is a quarter of a gigabyte.
MAX_PIXELS = 89_478_485
# Resized by its short side, a picture as long as this would be no picture any more, but all of the memory.
MAX_ASPECT = 200
DECODING_ERRORS = (OSError, SyntaxError, ValueError, EOFError, TypeError, KeyError, IndexError, struct.error)

_URL = re.compile(r"(https?|ftp|s3|gs|hdfs|file):/|data:", re.IGNORECASE)
_EXPECTED = "a whole PNG, JPEG or other image file"


def open_picture(path: str | Path, *, raw: bool = False) -> Image.Image:
    """An image file as RGB, decoded to the last byte.

    Args:
        path: of a file on this machine.
        raw: keep the pixels as Pillow converts them, lying as they are stored. Else the picture is turned as its EXIF
            orientation says, 16-bit, `I` and `F` values are scaled to 8 bits instead of clipped, and transparency,
            which is left out either way, is warned of once.

    Raises:
        UserError: no such file, a URL, a folder, no image or a broken one, one that is too large, or numbers that are
            not finite; one line.
    """
    if _URL.match(str(path)):
        # A path has lost the second of its slashes.
        url = re.sub(r"^(?!file)(\w+):/(?=[^/])", r"\1://", str(path))
        raise UserError("a URL instead of a file", url, "an image file on this machine: download it first")
    if Path(path).is_dir():
        raise UserError("a folder instead of an image", path, _EXPECTED)
    return _read(path, path, raw)


def decode_picture(content: bytes, where: str | Path, *, raw: bool = True) -> Image.Image:
    """The bytes of an image file, as `open_picture`. Raises UserError naming `where`."""
    return _read(io.BytesIO(content), where, raw)


def require_size(size: tuple[int, int], where: str | Path | None) -> None:
    """Refuse a picture without pixels, one of too many, and one that is a line.

    Args:
        size: width and height in pixels.
        where: of the picture, for messages.

    Raises:
        UserError: says which.
    """
    width, height = size
    if width < 1 or height < 1:
        raise UserError("a picture without pixels", where, "at least one row and one column")
    if width * height > MAX_PIXELS:
        raise UserError(f"an image of {width} x {height} pixels", where, f"at most {MAX_PIXELS:,} pixels")
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise UserError(f"an image of {width} x {height} pixels", where, f"edges that differ by {MAX_ASPECT} times")


def read_stored(path: str | Path) -> np.ndarray[Any, Any]:
    """The values of an image file as they are stored: palette entries, grey values or colours.

    Returns:
        ``[height, width]`` or ``[height, width, channels]``, of the file's own type.

    Raises:
        UserError: as `open_picture`.
    """
    with _opened(path, path) as opened:
        try:
            return np.array(opened)
        except (*DECODING_ERRORS, Image.DecompressionBombError) as error:
            raise UserError(f"broken image ({error})", path, _EXPECTED) from error


def _read(source: str | Path | IO[bytes], where: str | Path, raw: bool) -> Image.Image:
    with _opened(source, where) as opened:
        try:
            opened.load()
            return opened.convert("RGB") if raw else _by_value(_upright(opened, where), where)
        except (*DECODING_ERRORS, Image.DecompressionBombError) as error:
            raise UserError(f"broken image ({error})", where, _EXPECTED) from error


@contextmanager
def _opened(source: str | Path | IO[bytes], where: str | Path) -> Iterator[Image.Image]:
    """An image file whose size is known to be bearable; nothing of it is decoded yet."""
    try:
        with warnings.catch_warnings():
            # Of large pictures, before ours is.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            opened = Image.open(source, formats=_formats())
    except FileNotFoundError as error:
        raise UserError("no such image", where) from error
    except Image.DecompressionBombError as error:
        raise UserError("an image of too many pixels", where, f"at most {MAX_PIXELS:,} pixels") from error
    except DECODING_ERRORS as error:
        raise UserError(f"broken image ({error})", where, _EXPECTED) from error
    with opened:
        require_size(opened.size, where)
        yield opened


@lru_cache(maxsize=1)
def _formats() -> tuple[str, ...]:
    """All that Pillow reads but PostScript, which is a program."""
    Image.init()
    return tuple(name for name in Image.OPEN if name != "EPS")


def _upright(image: Image.Image, where: str | Path) -> Image.Image:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # Pillow's, of damaged notes
            return ImageOps.exif_transpose(image)
    except Exception as error:  # whatever a damaged note makes of Pillow's reader: the pixels are whole
        logger.warning("the orientation of %s cannot be read (%s): taken as it is stored", where, error)
        return image


def _by_value(image: Image.Image, where: str | Path) -> Image.Image:
    """RGB of any mode, by the values that the mode stands for."""
    if image.mode == "F" or image.mode.startswith("I"):
        return Image.fromarray(_as_bytes(np.asarray(image), where)).convert("RGB")
    if _is_transparent(image):
        _warn_of_transparency()
    return image.convert("RGB")


def _as_bytes(values: np.ndarray[Any, Any], where: str | Path) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Grey values `[height, width]` as uint8.

    Whole numbers are of 16 bits, numbers with a point from 0 to 1 or from 0 to 255; where they lie outside of it, their
    own least and largest become black and white.
    """
    numbers = values.astype(np.float64)
    if not np.isfinite(numbers).all():
        raise UserError("an image with values that are not numbers", where, "finite ones")
    low, high = float(numbers.min()), float(numbers.max())
    whole = np.issubdtype(values.dtype, np.integer)
    ranges = (65535.0,) if whole else (1.0, 255.0)
    top = next((one for one in ranges if low >= 0 and high <= one), None)
    if top is None:
        logger.warning("%s: values from %g to %g, which are made black and white", where, low, high)
        numbers, top = numbers - low, max(high - low, np.finfo(np.float64).tiny)
    return np.rint(numbers / top * 255).astype(np.uint8)


def _is_transparent(image: Image.Image) -> bool:
    """Whether any pixel lets something through."""
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La"):
        alpha = image.getchannel("A" if "A" in image.mode else "a")
        return bool((np.asarray(alpha) < 255).any())
    return "transparency" in image.info


@lru_cache(maxsize=1)
def _warn_of_transparency() -> None:
    logger.warning("transparency is left out: pixels keep the colour that lies below it")
