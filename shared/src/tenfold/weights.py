"""Weights on disk: read without running anything in a file, tensor by tensor, and checked before they go in.

Files from elsewhere are data: pickles are read with `weights_only=True`. `WeightFiles` reads lazily, so a checkpoint
that is larger than memory is copied shard by shard; `read_weights` takes a whole file of `torch.save`, also one that
holds numbers and NumPy arrays beside its tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tenfold.errors import UserError
from tenfold.pickled import load_pickled as load_pickled
from tenfold.runs import atomic_write_json, read_json, track

LONGEST_NAME = 255  # bytes that a file system lets a file's name have
# (index, single file) in the order in which transformers prefers them; open_clip's releases are single files.
LAYOUTS = (
    ("model.safetensors.index.json", "model.safetensors"),
    ("pytorch_model.bin.index.json", "pytorch_model.bin"),
    ("open_clip_model.safetensors.index.json", "open_clip_model.safetensors"),
    ("open_clip_pytorch_model.bin.index.json", "open_clip_pytorch_model.bin"),
)
SHARD_BYTES = 4 * 10**9
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
}


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of a checkpoint, not yet read.

    Attributes:
        shape: its dimensions.
        dtype: its type.
        read: reads it from its file.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    read: Callable[[], Tensor]

    @classmethod
    def of(cls, tensor: Tensor) -> StoredTensor:
        """One that is in memory, or mapped."""
        return cls(tuple(tensor.shape), tensor.dtype, tensor.detach)

    @property
    def numbers(self) -> int:
        return torch.Size(self.shape).numel()

    @property
    def bytes(self) -> int:
        return self.numbers * self.dtype.itemsize


class WeightFiles:
    """The weights in a folder, or in one file; a context manager that closes the files.

        with WeightFiles(folder) as weights:
            weights.tensors["lm_head.weight"].read()

    Attributes:
        path: where they lie.
        tensors: name -> tensor; shapes and types are known, values are read on demand.

    Raises:
        UserError: no weights there, a broken index, a shard that is missing, broken or truncated, a tensor that the
            index promises and no shard holds, or one that two shards hold.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.tensors: dict[str, StoredTensor] = {}
        self._open = ExitStack()

    def __enter__(self) -> WeightFiles:
        with ExitStack() as undo:
            undo.callback(self._open.close)
            promised, shards = find_files(self.path)
            for shard in shards:
                read = self._safetensors if shard.suffix == ".safetensors" else _pickled
                for name, tensor in read(shard).items():
                    if name in self.tensors:
                        raise UserError(f"{name} is in two shards", shard, "each weight once")
                    self.tensors[name] = tensor
            for name, file in promised.items():
                if name not in self.tensors:
                    raise UserError(f"no weight {name}", self.path / file, "what the index promises")
            undo.pop_all()
        return self

    def __exit__(self, *exception: object) -> None:
        self._open.close()

    def _safetensors(self, path: Path) -> dict[str, StoredTensor]:
        try:
            file = self._open.enter_context(safe_open(path, framework="pt"))
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise UserError(f"broken or truncated ({error})", path, "a safetensors file") from error
        stored = {}
        for name, part in slices.items():
            if part.get_dtype() not in _DTYPES:
                raise UserError(f"{name} is of type {part.get_dtype()}", path, ", ".join(_DTYPES))
            read = partial(file.get_tensor, name)
            stored[name] = StoredTensor(tuple(part.get_shape()), _DTYPES[part.get_dtype()], read)
        return stored


def without_wrapper(state: Mapping[str, Any], wrapper: str = "module.") -> dict[str, Any]:
    """Names as the model's own where a wrapper, DistributedDataParallel's or DataParallel's, stands before all."""
    if state and all(isinstance(name, str) and name.startswith(wrapper) for name in state):
        return {name.removeprefix(wrapper): value for name, value in state.items()}
    return dict(state)


def has_weights(folder: Path) -> bool:
    """Whether a folder holds a model's weights, in any of the layouts."""
    return any((folder / name).is_file() for layout in LAYOUTS for name in layout)


def find_files(path: Path) -> tuple[Mapping[str, str], list[Path]]:
    """What the index promises (name -> shard; empty without an index), and the files that hold weights.

    Raises:
        UserError: no weights there, a broken index, or a shard that is missing.
    """
    if path.is_file():
        return {}, [path]
    if not path.is_dir():
        raise UserError("no such file or folder", path, "a checkpoint")
    for index, single in LAYOUTS:
        if (path / index).is_file():
            weight_map = _read_index(path / index)
            shards = [path / name for name in dict.fromkeys(weight_map.values())]
            if missing := [shard for shard in shards if not shard.is_file()]:
                raise UserError(f"{len(missing)} of {len(shards)} shards missing", missing[0], f"as {index} says")
            return weight_map, shards
        if (path / single).is_file():
            return {}, [path / single]
        pattern = f"{Path(single).stem}-*-of-*{Path(single).suffix}"
        if shard := next(iter(sorted(path.glob(pattern))), None):
            raise UserError("shards without their index", shard, f"{index} beside them")
    raise UserError("no weights", path, " or ".join(single for _, single in LAYOUTS[:2]) + ", or shards with an index")


def _read_index(path: Path) -> dict[str, str]:
    content = read_json(path)
    weight_map = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise UserError("no weight_map", path, "an index of shards: weight name -> file name")
    for name, shard in weight_map.items():
        # A plain name: an index from elsewhere must not point outside of its folder.
        if (
            not isinstance(shard, str)
            or Path(shard).name != shard
            or len(shard.encode(errors="replace")) > LONGEST_NAME
        ):
            raise UserError(f"{name[:60]} is in {str(shard)[:60]!r}", path, "the name of a file beside the index")
    return weight_map


def _pickled(path: Path) -> dict[str, StoredTensor]:
    content = load_pickled(path, "a pickle of tensors", mmap=True)
    if not isinstance(content, dict) or not all(isinstance(tensor, Tensor) for tensor in content.values()):
        raise UserError("not a state dict", path, "weight name -> tensor")
    return {str(name): StoredTensor.of(tensor) for name, tensor in content.items()}


def write_weights(folder: Path, tensors: Mapping[str, StoredTensor], shard_bytes: int = SHARD_BYTES) -> list[Path]:
    """Write safetensors files into a folder, one shard in memory at a time.

    Args:
        tensors: name -> tensor, written in this order.
        shard_bytes: a shard is closed before it grows beyond this; a larger tensor gets its own.

    Returns:
        The files: one `model.safetensors`, or numbered shards with `model.safetensors.index.json`.
    """
    return _write_shards(folder, tensors, shard_bytes, LAYOUTS[0], write_file)


def write_pickled_weights(folder: Path, tensors: Mapping[str, StoredTensor], shard_bytes: int) -> list[Path]:
    """Write files of `torch.save` into a folder, as older releases have them; else as `write_weights`.

    Returns:
        The files: one `pytorch_model.bin`, or numbered shards with `pytorch_model.bin.index.json`.
    """
    return _write_shards(folder, tensors, shard_bytes, LAYOUTS[1], _write_pickle)


def _write_pickle(path: Path, tensors: Mapping[str, StoredTensor]) -> None:
    # Copies: of a view, all that it is a view into would be written.
    torch.save({name: tensor.read().contiguous().clone() for name, tensor in tensors.items()}, path)


def _write_shards(
    folder: Path,
    tensors: Mapping[str, StoredTensor],
    shard_bytes: int,
    layout: tuple[str, str],
    write: Callable[[Path, Mapping[str, StoredTensor]], None],
) -> list[Path]:
    shards = _plan(tensors, shard_bytes)
    index, single = layout
    names = [single]
    if len(shards) > 1:
        stem, _, ending = single.rpartition(".")
        names = [f"{stem}-{number:05d}-of-{len(shards):05d}.{ending}" for number in range(1, len(shards) + 1)]
    for name, shard in track(list(zip(names, shards, strict=True)), "shards"):
        write(folder / name, {key: tensors[key] for key in shard})
    if len(shards) > 1:
        weight_map = {key: name for name, shard in zip(names, shards, strict=True) for key in shard}
        size = sum(tensor.bytes for tensor in tensors.values())
        atomic_write_json(folder / index, {"metadata": {"total_size": size}, "weight_map": weight_map})
    return [folder / name for name in names]


def write_file(path: Path, tensors: Mapping[str, StoredTensor]) -> None:
    """Write one safetensors file."""
    # Copies: safetensors refuses views into one storage, as mapped pickles hold.
    loaded = {name: tensor.read().contiguous().clone() for name, tensor in tensors.items()}
    save_file(loaded, path, metadata={"format": "pt"})


def _plan(tensors: Mapping[str, StoredTensor], shard_bytes: int) -> list[list[str]]:
    shards: list[list[str]] = [[]]
    filled = 0
    for name, tensor in tensors.items():
        if shards[-1] and filled + tensor.bytes > shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += tensor.bytes
    return shards


def count_numbers(tensors: Iterable[StoredTensor]) -> int:
    """How many numbers these tensors hold."""
    return sum(tensor.numbers for tensor in tensors)


def read_weights(path: str | Path) -> dict[str, Any]:
    """The content of a .safetensors file, or of a file of `torch.save` that holds tensors, numbers and NumPy arrays.

    Raises:
        UserError: no such file; broken or truncated; a pickle that names any other class.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError("no such file", path, "a checkpoint: .pth, .pt or .safetensors")
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except (SafetensorError, OSError) as error:
            raise UserError(f"broken or truncated ({error})", path, "a safetensors file") from error
    content = load_pickled(path, "a checkpoint", numpy=True)
    if not isinstance(content, dict):
        raise UserError(f"{type(content).__name__} instead of a dict", path, "a checkpoint")
    return content


def check_fits(expected: Mapping[str, Any], state: Mapping[str, Tensor], where: str | Path) -> None:
    """Every key of `expected` is in `state`, no other is, and shapes are equal.

    Raises:
        UserError: names the first key that does not fit, and says how many there are.
    """
    missing = [name for name in expected if name not in state]
    unknown = [name for name in state if name not in expected]
    other = [name for name in expected if name in state and expected[name].shape != state[name].shape]
    if missing:
        raise UserError(f"{len(missing)} weights missing, such as {missing[0]}", where, "those of this model")
    if unknown:
        raise UserError(f"{len(unknown)} weights of another model, such as {unknown[0]}", where, "those of this model")
    if other:
        name = other[0]
        shapes = f"{list(state[name].shape)} in the file, {list(expected[name].shape)} in the model"
        raise UserError(f"{len(other)} weights of another shape, such as {name}", where, shapes)


def require_finite(tensors: Mapping[str, Tensor], where: str | Path) -> None:
    """Refuse weights that are not numbers.

    Raises:
        UserError: NaN or infinity; names the first weight, and says how many hold them.
    """
    bad = [name for name, tensor in tensors.items() if tensor.is_floating_point() and not tensor.isfinite().all()]
    if bad:
        raise UserError(f"{len(bad)} weights that are not finite, such as {bad[0]}", where, "finite numbers")


def load_into(module: nn.Module, state: Mapping[str, Tensor], where: str | Path) -> None:
    """Copy weights into a module, all of them or none.

    Raises:
        UserError: as `check_fits` and `require_finite`.
    """
    check_fits(module.state_dict(), state, where)
    require_finite(state, where)
    module.load_state_dict(dict(state))
