"""Files of `torch.save` from elsewhere: data, never code, and bounded before anything is built.

`weights_only=True` runs nothing, but follows every opcode: a pickle of 500 bytes whose dictionary's key is made of
tuples that share their parts keeps it busy for ever, a compressed archive grows a thousandfold, and a view of stride 0
stands for a terabyte. Each is refused here, before torch sees the file or before anybody reads the tensor.
"""

from __future__ import annotations

import io
import pickle
import struct
import zipfile
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tenfold.errors import UserError
from tenfold.runs.files import read_bytes
from tenfold.runs.unpickling import check_opcodes

_MULTIARRAY = import_module("numpy._core.multiarray")
_NUMBERS = tuple(type(np.dtype(name)) for name in ("uint8", "uint32", "uint64", "int32", "int64", "float32", "float64"))
# Random states and scores in official checkpoints are NumPy's; NumPy 2 moved these functions.
_NUMPY: tuple[Any, ...] = (
    np.ndarray,
    np.dtype,
    *_NUMBERS,
    *((_MULTIARRAY._reconstruct, f"{core}.multiarray._reconstruct") for core in ("numpy.core", "numpy._core")),
    *((_MULTIARRAY.scalar, f"{core}.multiarray.scalar") for core in ("numpy.core", "numpy._core")),
)
# What torch.load raises on random, cut and altered bytes.
BROKEN = (
    pickle.UnpicklingError,
    struct.error,
    zipfile.BadZipFile,
    NotImplementedError,
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    OSError,
    OverflowError,
    RecursionError,
    RuntimeError,
    TypeError,
    ValueError,
)
# Before torch 1.6 a file is some pickles in a row, then the numbers: a magic number, a protocol, the system, the
# content, the storages' keys.
_OLD_PICKLES = 5
_MOST_PICKLE = 2**28


def load_pickled(path: str | Path, expected: str, *, mmap: bool = False, numpy: bool = False) -> Any:
    """What `torch.save` wrote, on the CPU: tensors and plain values only.

    Args:
        path: of the file.
        expected: for messages.
        mmap: map zip archives (torch 1.6 and later), so that only what is used is read.
        numpy: also take NumPy's arrays and numbers.

    Raises:
        UserError: no such file; broken or truncated; a class that is none of these; out of all proportion.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError("no such file", path, expected)
    try:
        with torch.serialization.safe_globals(list(_NUMPY) if numpy else []):
            return load_saved(path, mmap=mmap)
    except BROKEN as error:
        reason = str(error).strip().partition("\n")[0].partition(". ")[0][:120] or type(error).__name__
        raise UserError(f"broken, truncated or no plain weights ({reason})", path, expected) from error


def load_saved(source: Path | io.BytesIO, *, mmap: bool = False) -> Any:
    """As `load_pickled`, from a file or from bytes.

    Raises:
        One of `BROKEN`.
    """
    archive = zipfile.is_zipfile(source)
    if archive:
        _check_archive(source)
    else:
        _check_old(source.getvalue() if isinstance(source, io.BytesIO) else read_bytes(source))
    if isinstance(source, io.BytesIO):
        source.seek(0)
    content = torch.load(source, map_location="cpu", weights_only=True, mmap=mmap and archive)
    require_stored(content)
    return content


def _check_archive(source: Path | io.BytesIO) -> None:
    with zipfile.ZipFile(source) as archive:
        for entry in archive.infolist():
            # torch stores, and never compresses.
            if entry.compress_type != zipfile.ZIP_STORED or entry.file_size != entry.compress_size:
                raise pickle.UnpicklingError(f"{entry.filename[:60]} is compressed")
            if entry.filename.endswith(".pkl"):
                if entry.file_size > _MOST_PICKLE:
                    raise pickle.UnpicklingError(f"a pickle of {entry.file_size} bytes")
                check_opcodes(archive.read(entry), persistent=True)


def _check_old(data: bytes) -> None:
    at = 0
    for _ in range(_OLD_PICKLES):
        at = check_opcodes(data, persistent=True, start=at)


def require_stored(content: Any) -> None:
    """Every tensor in it lies in the file as a whole, number by number: a view of stride 0 stands for more than its
    bytes, and a sparse, nested or quantised one is not what weights or features are read as.

    Raises:
        pickle.UnpicklingError: one does not.
    """
    level = [content]
    while level:
        inner: list[Any] = []
        for one in level:
            if isinstance(one, Tensor):
                if one.layout is not torch.strided or one.is_quantized or one.is_nested:
                    kind = str(one.layout).removeprefix("torch.") if one.layout is not torch.strided else one.dtype
                    raise pickle.UnpicklingError(f"a tensor stored as {kind}, not number by number")
                if one.numel() * one.element_size() > one.untyped_storage().nbytes():
                    raise pickle.UnpicklingError(f"a tensor {list(one.shape)} of fewer bytes than numbers")
            elif isinstance(one, dict):
                inner += one.values()
            elif isinstance(one, list | tuple | set):
                inner += one
        level = inner
