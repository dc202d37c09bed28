"""Picture files that a reader must not take as they come: lying, of 16 bits, without end."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

ORIENTATION = 0x0112  # of EXIF


def announced(width: int, height: int) -> bytes:
    """A PNG that announces a size and holds nothing of it."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        body = kind + content
        return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    content = zlib.compress(b"\x00" * 1000)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", content) + chunk(b"IEND", b"")


def photograph(width: int, height: int, seed: int = 0) -> Image.Image:
    """Noise: no turn of it, and no part, is like another."""
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values)


def lying(upright: Image.Image, path: Path) -> Path:
    """A file as a phone held upright writes it: stored lying on its side, with a note that says so."""
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    upright.transpose(Image.Transpose.ROTATE_90).save(path, exif=exif)
    return path


def of_16_bits(grey: Image.Image, path: Path) -> Path:
    """The same grey values (mode L) in a PNG of 16 bits."""
    Image.fromarray(np.asarray(grey).astype(np.uint16) * 257).save(path)
    return path
