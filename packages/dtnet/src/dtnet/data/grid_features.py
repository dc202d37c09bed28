"""Grid features on the disk: an h5 file with one array of 7 x 7 rows per image.

Key "<image id>_features" in the file DTNet was trained on (`coco_grid_feats2.hdf5`), "<image id>_grids" in the bigger
files of DLCT and RSTNet, whose "_features" are regions of objects: never what this model wants.

    features = GridFeatures("features.h5")
    features[37209]                     # float32 [49, 2048], row-major: row * 7 + column
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from torch import Tensor

from tenfold import UserError
from tenfold.runs.files import TEMPORARY_PREFIX, fsync_path
from tenfold.runs.finite import require_finite_values
from tenfold.runs.parse import parse_json

GRID = 7
KINDS = ("grids", "features")  # "auto" prefers them in this order
EXTRACTOR = "extractor"  # of the file's attributes
WIDEST = 65_536  # a damaged file may declare any width, and h5py takes the memory for it


class GridFeatures:
    """The grid features of a data set: image id -> float32 `[rows, d_in]`.

    The file is opened when it is first read, once per process; the object can be pickled and used by loader workers.

    Args:
        path: the h5 file.
        key: "auto" (grids when the file has them, else features), "grids" or "features".
        rows: how many rows every image must have: the grid's cells.
        preload: read everything into memory at once (small sets only).

    Raises:
        UserError: no such file, no h5 file, no feature in it, or the first image's array has another shape; regions of
            objects, which have boxes; images of which some have the grid under one name and some under the other.
    """

    def __init__(self, path: str | Path, key: str = "auto", rows: int = GRID * GRID, preload: bool = False) -> None:
        if key not in ("auto", *KINDS):
            raise UserError("unknown key of features", key, "auto, grids or features")
        self.path, self.rows = Path(path), rows
        self._file: h5py.File | None = None
        self._owner = 0
        self._ids: tuple[int, ...] | None = None
        self._memory: dict[int, Tensor] | None = None
        self.key, first = self._find_key(key)
        #: What made the features, where the file says so: settings, weights by name and SHA-256, or "random".
        self.extractor: dict[str, Any] | None = self._read_extractor()
        #: Width of the features.
        self.d_in = 0
        self.d_in = self[first].shape[1]
        if preload:
            self._memory = {image_id: self[image_id] for image_id in self.ids()}
        self.close()

    def __getitem__(self, image_id: int) -> Tensor:
        """The features of one image: float32 `[rows, d_in]`.

        Raises:
            UserError: the file has no features of that image, or not one row per grid cell.
        """
        if self._memory is not None and image_id in self._memory:
            return self._memory[image_id]
        name = f"{image_id}_{self.key}"
        file = self._open()
        with _whole(self.path, f"the features of image {image_id}"):
            if name not in file:
                raise UserError(f"no features of image {image_id}", self.path, f"a data set {name!r}")
            dataset = file[name]
            self._check_shape(name, dataset)
            with np.errstate(over="ignore"):  # what is too large for float32 becomes infinity, and is named below
                values = np.ascontiguousarray(dataset[()], dtype=np.float32)
        require_finite_values(values, f"features of image {image_id}", self.path)
        return torch.from_numpy(values)

    def __contains__(self, image_id: int) -> bool:
        with _whole(self.path, "its names"):
            return f"{image_id}_{self.key}" in self._open()

    def __len__(self) -> int:
        return len(self.ids())

    def ids(self) -> tuple[int, ...]:
        """The ids of all images, ascending."""
        if self._ids is None:
            ending = f"_{self.key}"
            with _whole(self.path, "its names"):
                names = [name.removesuffix(ending) for name in self._open() if name.endswith(ending)]
            self._ids = tuple(sorted(int(name) for name in names if name.isascii() and name.isdecimal()))
        return self._ids

    def batch(self, image_ids: Sequence[int]) -> Tensor:
        """The features of several images: float32 `[batch, rows, d_in]`. Raises UserError as indexing does."""
        return torch.stack([self[image_id] for image_id in image_ids])

    def require(self, image_ids: Iterable[int]) -> None:
        """Check before a run that no image is missing.

        Raises:
            UserError: says how many are, and names the first.
        """
        missing = sorted(set(image_ids) - set(self.ids()))
        if missing:
            what = f"no features of {len(missing)} images, the first is {missing[0]}"
            raise UserError(what, self.path, f"a data set '{missing[0]}_{self.key}'")

    def close(self) -> None:
        """Close the file; the next access opens it again."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_file": None}

    def _open(self) -> h5py.File:
        # A handle that came over in a fork shares its place in the file with the parent's: never read through it.
        if self._file is not None and self._owner != os.getpid():
            self.close()
        if self._file is None:
            self._file, self._owner = _open_h5(self.path), os.getpid()
        return self._file

    def _find_key(self, key: str) -> tuple[str, int]:
        """Which of KINDS the file has for its images, and the id of one that has it."""
        ids: dict[str, set[int]] = {kind: set() for kind in (*KINDS, "boxes")}
        with _whole(self.path, "its names"):
            for name in self._open():
                number, _, kind = name.partition("_")
                if kind in ids and number.isascii() and number.isdecimal() and len(number) <= 18:
                    ids[kind].add(int(number))
        for kind in KINDS if key == "auto" else (key,):
            if not ids[kind]:
                continue
            if kind == "features" and (boxes := ids[kind] & ids["boxes"]):
                what = f"'{min(boxes)}_features' has boxes beside it: regions were given instead of grids"
                raise UserError(what, self.path, "grids, under <image id>_grids or without boxes")
            if key == "auto" and (others := ids["features"] - ids["grids"]) and kind == "grids":
                what = f"{len(others)} of {len(others | ids['grids'])} images have no grids, the first is {min(others)}"
                raise UserError(what, self.path, "a grid of every image; the option key chooses _grids or _features")
            return kind, min(ids[kind])
        wanted = " or ".join(f"<image id>_{kind}" for kind in (KINDS if key == "auto" else (key,)))
        raise UserError("no grid features", self.path, f"data sets named {wanted}")

    def _read_extractor(self) -> dict[str, Any] | None:
        with _whole(self.path, "its extractor"):
            said = self._open().attrs.get(EXTRACTOR)
        if said is None:
            return None
        about = parse_json(said if isinstance(said, str) else str(said), f"{self.path}, {EXTRACTOR}")
        if not isinstance(about, dict):
            raise UserError(f"{type(about).__name__} instead of settings", f"{self.path}, {EXTRACTOR}", "{...}")
        return about

    def _check_shape(self, name: str, dataset: Any) -> None:
        shape = getattr(dataset, "shape", None)
        if shape is None or len(shape) != 2 or not np.issubdtype(dataset.dtype, np.floating):
            raise UserError(f"{name!r} holds no rows of features", self.path, f"floats [{self.rows}, width]")
        if shape[0] != self.rows:
            raise UserError(
                f"{name!r} has {shape[0]} rows: regions were given instead of grids",
                self.path,
                f"{self.rows} rows, one a grid cell; the option key chooses _grids or _features",
            )
        if not 0 < shape[1] <= WIDEST:
            raise UserError(f"{name!r} is {shape[1]} wide", self.path, f"1 to {WIDEST:,} channels")
        if self.d_in and shape[1] != self.d_in:
            raise UserError(f"{name!r} is {shape[1]} wide", self.path, f"{self.d_in}, like the file's first image")


@contextmanager
def _whole(path: Path, what: str) -> Iterator[None]:
    """What h5py raises on an object that is damaged, as one line."""
    try:
        yield
    except (OSError, RuntimeError, KeyError, ValueError, TypeError, AttributeError, MemoryError) as error:
        reason = str(error).strip().strip("'\"").partition("\n")[0][:120] or type(error).__name__
        raise UserError(f"cannot read {what} ({reason})", path, "a whole h5 file") from error


def _open_h5(path: Path) -> h5py.File:
    if not path.is_file():
        raise UserError("no such file", path, "an h5 file of grid features")
    try:
        return h5py.File(path, "r")
    except OSError as error:
        raise UserError(f"cannot read ({error})", path, "an h5 file of grid features") from error


class _Disk:
    """A file as HDF5 writes it: once the disk takes no more, what follows goes nowhere, and the error is kept.

    HDF5 tells of a failed write of a small data set by a warning, goes on, and crashes when it closes the file.
    """

    def __init__(self, file: io.FileIO) -> None:
        self.file = file
        self.error: OSError | None = None

    def require_room(self) -> None:
        """Raise the OSError of the first write that failed."""
        if self.error is not None:
            raise OSError(self.error.errno, self.error.strerror, str(self.file.name))

    def write(self, data: Any) -> int:
        left = memoryview(data).cast("B")
        count = len(left)
        try:
            while self.error is None and left:
                left = left[self.file.write(left) :]
        except OSError as error:
            self.error = error
        return count

    def truncate(self, size: int) -> None:
        try:
            self.file.truncate(size)
        except OSError as error:
            self.error = self.error or error

    def read(self, size: int = -1) -> bytes:
        return self.file.read(size)

    def readinto(self, buffer: Any) -> int:
        return self.file.readinto(buffer)

    def seek(self, place: int, whence: int = 0) -> int:
        return self.file.seek(place, whence)

    def tell(self) -> int:
        return self.file.tell()

    def flush(self) -> None:
        """Nothing is held back here."""


@contextmanager
def _atomic_h5(path: str | Path) -> Iterator[tuple[h5py.File, _Disk]]:
    """An h5 file that appears under its name when it is complete, and the disk, to be asked whether it takes more."""
    path = Path(path)
    temporary = path.with_name(f"{TEMPORARY_PREFIX}{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        opened = open(temporary, "w+b", buffering=0)  # noqa: SIM115
    except OSError as error:
        raise UserError(f"cannot write ({error})", path, "a writable folder") from error
    try:
        with opened:
            disk = _Disk(opened)
            with h5py.File(disk, "w") as file:
                yield file, disk
            disk.require_room()
        fsync_path(temporary)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    fsync_path(path.parent)


def write_grid_features(
    path: str | Path,
    features: Iterable[tuple[int, Tensor | np.ndarray]],
    key: str = "grids",
    dtype: str = "float32",
    extractor: Mapping[str, Any] | None = None,
) -> int:
    """Write features as "<image id>_<key>"; the file appears whole or not at all.

    Args:
        path: the h5 file.
        features: pairs of an image's id and its features `[rows, d_in]`; may be a generator.
        key: "grids", or "features" as in the file that DTNet was trained on.
        dtype: "float32", or "float16" for half the room.
        extractor: what made them, as JSON; kept in the file.

    Returns:
        How many images were written.

    Raises:
        UserError: an image twice, an array that is not `[rows, d_in]` like the first, no image, or a folder that
            cannot be written.
    """
    if key not in KINDS or dtype not in ("float32", "float16"):
        raise UserError(
            "cannot write features so", f"key={key}, dtype={dtype}", "grids or features; float32 or float16"
        )
    count, shape = 0, None
    with _atomic_h5(path) as (file, disk):
        for image_id, values in features:
            array = np.asarray(values.detach().cpu() if isinstance(values, Tensor) else values)
            name = f"{image_id}_{key}"
            if name in file:
                raise UserError(f"image {image_id} twice", path, "every image once")
            shape = shape or array.shape
            if array.ndim != 2 or array.shape != shape:
                raise UserError(f"features {list(array.shape)}", f"image {image_id}", "[rows, width], alike for all")
            with np.errstate(over="ignore"):
                stored = array.astype(dtype)
            require_finite_values(stored, f"features as {dtype}", f"image {image_id}")
            file.create_dataset(name, data=stored)
            disk.require_room()
            count += 1
        if not count:
            raise UserError("no features to write", path, "at least one image")
        if extractor is not None:
            file.attrs[EXTRACTOR] = json.dumps(extractor, sort_keys=True)
    return count
