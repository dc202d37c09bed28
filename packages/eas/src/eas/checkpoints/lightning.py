"""A checkpoint of a training as data: its weights under one key, and the names of what was left out.

METER's (PyTorch Lightning, ``state_dict``) and LaVIN's (``model``) hold a whole configuration object, metrics and
optimiser states beside the weights;
`torch.load(weights_only=True)` refuses them for their classes. Here no class is looked up at all: what is no tensor
becomes an empty stub whose class is reported, and the numbers of optimiser states are never read.
"""

from __future__ import annotations

import struct
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tenfold import UserError
from tenfold.runs.unpickling import unpickle

EXPECTED = "a checkpoint of torch 1.6 or later"
_DTYPES = {
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "DoubleStorage": torch.float64,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
_MOST_PICKLE = 2**26
# What zipfile raises on damaged archives; names that are no text and flags of encryption among it.
_BROKEN = (
    zipfile.BadZipFile, zlib.error, struct.error, OSError, EOFError, NotImplementedError, RuntimeError, OverflowError,
    UnicodeDecodeError,
)  # fmt: skip


@dataclass(frozen=True)
class _Storage:
    """Where numbers lie in the archive, not yet read."""

    key: str
    dtype: torch.dtype
    numbers: int


@dataclass(frozen=True)
class _Stored:
    """A tensor, not yet read: a view of a storage."""

    storage: _Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> _Stored:
    if not isinstance(storage, _Storage) or not all(type(n) is int and n >= 0 for n in (offset, *size, *stride)):
        raise ValueError("a tensor of no storage")
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True)) + 1
    contiguous = torch.empty(size, device="meta").stride() == tuple(stride) if 0 not in size else True
    if last > storage.numbers or not contiguous:
        raise ValueError("a tensor outside of its storage, or none that lies in one piece")
    return _Stored(storage, offset, tuple(size), tuple(stride))


def _parameter(data: Any, *_: Any) -> Any:
    return data


_ALLOWED: dict[tuple[str, str], Any] = {
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_parameter"): _parameter,
    ("collections", "OrderedDict"): OrderedDict,
    **{("torch", name): dtype for name, dtype in _DTYPES.items()},
}


def read_lightning(path: str | Path, key: str = "state_dict") -> tuple[dict[str, Tensor], list[str]]:
    """The weights that a checkpoint holds under `key`, and the classes of all that was left out.

    Raises:
        UserError: no such file, no archive of torch, a broken or hostile pickle, nothing under that key.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError("no such file", path, EXPECTED)
    try:
        with zipfile.ZipFile(path) as archive:
            return _read(archive, path, key)
    except _BROKEN as error:
        raise UserError(f"no archive of torch, or a truncated one ({error})", path, EXPECTED) from error


def _read(archive: zipfile.ZipFile, path: Path, key: str) -> tuple[dict[str, Tensor], list[str]]:
    entries = {entry.filename: entry for entry in archive.infolist()}
    pickles = [name for name in entries if name.endswith("/data.pkl")]
    stored = all(entry.compress_type == zipfile.ZIP_STORED for entry in entries.values())
    if len(pickles) != 1 or not stored or entries[pickles[0]].file_size > _MOST_PICKLE:
        raise UserError("no data.pkl as torch writes it", path, EXPECTED)
    skipped: list[str] = []
    content = unpickle(
        archive.read(pickles[0]),
        path,
        _ALLOWED,
        what="a checkpoint",
        expected=EXPECTED,
        persistent=_storage,
        skipped=skipped,
    )
    state = content.get(key) if isinstance(content, dict) else None
    if not isinstance(state, Mapping) or not state:
        raise UserError(f"no {key} in it", path, f"{EXPECTED} with its weights under {key}")
    root, found = pickles[0].removesuffix("data.pkl"), {}
    for name, tensor in state.items():
        if not isinstance(name, str) or not isinstance(tensor, _Stored):
            raise UserError(f"{str(name)[:60]} is no tensor", path, EXPECTED)
        entry = entries.get(f"{root}data/{tensor.storage.key}")
        size = tensor.storage.numbers * tensor.storage.dtype.itemsize
        if entry is None or entry.file_size != size:
            raise UserError(f"the numbers of {name[:60]} are missing or cut", path, EXPECTED)
        flat = torch.frombuffer(bytearray(archive.read(entry)), dtype=tensor.storage.dtype) if size else torch.empty(0)
        count = torch.Size(tensor.size).numel()
        found[name] = flat[tensor.offset : tensor.offset + count].view(tensor.size)
    return found, skipped


def _storage(identifier: Any) -> _Storage:
    if not isinstance(identifier, tuple) or len(identifier) != 5 or identifier[0] != "storage":
        raise ValueError("a persistent id that is no storage")
    _, dtype, key, _, numbers = identifier
    good = isinstance(dtype, torch.dtype) and isinstance(key, str) and type(numbers) is int and numbers >= 0
    if not good:
        raise ValueError("a storage of no known type")
    return _Storage(key, dtype, numbers)
