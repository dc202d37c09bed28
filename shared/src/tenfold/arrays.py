"""Files of `numpy.save`: numbers, never pickles."""

from __future__ import annotations

import tokenize
import zipfile
from pathlib import Path

import numpy as np

from tenfold.errors import UserError

# What numpy.load raises on random, cut and altered bytes; the header is a Python literal, which it parses.
_BROKEN = (
    OSError, ValueError, EOFError, MemoryError, OverflowError, RecursionError, SyntaxError, TypeError,
    tokenize.TokenError, zipfile.BadZipFile,
)  # fmt: skip


def read_array(path: str | Path, expected: str) -> np.ndarray:
    """The array in a .npy file.

    Args:
        expected: for messages.

    Raises:
        UserError: no such file; broken, truncated or pickled; an archive of several arrays.
    """
    path = Path(path)
    try:
        found = np.load(path, allow_pickle=False)
    except FileNotFoundError as error:
        raise UserError("no such file", path, expected) from error
    except _BROKEN as error:
        reason = str(error).strip().partition("\n")[0][:100] or type(error).__name__
        raise UserError(f"cannot be read ({reason})", path, expected) from error
    if not isinstance(found, np.ndarray):
        found.close()
        raise UserError("an archive of arrays", path, expected)
    return found
