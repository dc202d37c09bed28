"""Official pickles, read without running anything that they hold.

The released file stores whole network objects: each is a call of `torch_utils.persistence._reconstruct_persistent_obj`
with the object's Python source beside its state. Here that call makes a plain `Node` that keeps the state and never
looks at the source; tensors are rebuilt by torch's own functions from bytes read with `weights_only=True`; everything
else becomes an inert stub. Needs neither the official code base nor its compiled extensions.
"""

from __future__ import annotations

import io
import pickle
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from tenfold import UserError
from tenfold.pickled import load_saved, require_stored
from tenfold.runs.files import read_bytes
from tenfold.runs.unpickling import check_opcodes

# Deeper than any network, shallower than Python's stack.
DEPTH = 64
# More than any network has; one that shares its parts at every level would have no end.
MOST = 20_000


class Node:
    """A stored network object: its state, nothing of its behaviour."""

    visits = 0

    def __init__(self, *arguments: Any) -> None:
        self.state: dict[str, Any] = {}
        if arguments and isinstance(arguments[0], dict):
            state = arguments[0].get("state")
            self.state = dict(state) if isinstance(state, dict) else {}

    def __setstate__(self, state: Any) -> None:
        self.state = dict(state) if isinstance(state, dict) else {}


class Stub:
    """Whatever else a pickle names: takes any arguments and state, does nothing."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass

    def __setitem__(self, key: Any, value: Any) -> None:
        pass

    def append(self, value: Any) -> None:
        pass

    def extend(self, values: Any) -> None:
        pass


class EasyDict(dict[Any, Any]):
    """The official code's dict with attributes; here a dict."""

    def __setstate__(self, state: Any) -> None:
        pass


def _storage(data: bytes) -> Any:
    return load_saved(io.BytesIO(data))


_ALLOWED: dict[tuple[str, str], Any] = {
    ("torch_utils.persistence", "_reconstruct_persistent_obj"): Node,
    ("dnnlib.util", "EasyDict"): EasyDict,
    ("torch.storage", "_load_from_bytes"): _storage,
    ("torch._utils", "_rebuild_tensor_v2"): torch._utils._rebuild_tensor_v2,
    ("torch._utils", "_rebuild_parameter"): torch._utils._rebuild_parameter,
    ("collections", "OrderedDict"): OrderedDict,
}


class _Reader(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _ALLOWED:
            return _ALLOWED[module, name]
        # Modules of torch are kept for their parameters; anything else is inert.
        return Node if module.startswith("torch.nn.modules.") else Stub

    def persistent_load(self, pid: Any) -> Any:
        raise pickle.UnpicklingError("a persistent id")


@dataclass(frozen=True)
class Release:
    """The networks of a file, under official names.

    Attributes:
        generator: the averaged one where the file has it. discriminator: None where there is none.
    """

    generator: dict[str, Tensor]
    discriminator: dict[str, Tensor] | None


def read_release(path: str | Path) -> Release:
    """Read an official pickle (E3-FaceNet's or StyleNeRF's), or safetensors with official names.

    Raises:
        UserError: no such file, a Git LFS pointer, a web page, a broken file, or one without networks.
    """
    path = Path(path)
    if path.suffix == ".safetensors":
        return _from_safetensors(path)
    data = read_bytes(path)
    start = data[:200].lstrip().lower()
    if start.startswith(b"version https://git-lfs.github.com"):
        raise UserError("a Git LFS pointer, not the weights", path, "the file itself (git lfs pull)")
    if start.startswith((b"<!doctype", b"<html", b"<?xml")):
        raise UserError("a web page, not the weights", path, "the file itself, downloaded again")
    try:
        check_opcodes(data)
        content = _Reader(io.BytesIO(data)).load()
    except _BROKEN as error:
        reason = f"{type(error).__name__}: {str(error).splitlines()[0][:100]}" if str(error) else type(error).__name__
        raise UserError(f"not a readable pickle ({reason})", path, "an official network pickle") from error
    if not isinstance(content, Mapping):
        raise UserError("no networks in it", path, "a dict with G_ema or G, and D")
    generator = next((content[name] for name in ("G_ema", "G") if isinstance(content.get(name), Node)), None)
    if generator is None:
        raise UserError("no networks in it", path, "a dict with G_ema or G, and D")
    discriminator = content.get("D")
    return Release(
        state_dict(generator, path), state_dict(discriminator, path) if isinstance(discriminator, Node) else None
    )


# What broken or hostile bytes raise while they are read.
_BROKEN = (
    pickle.UnpicklingError, EOFError, AttributeError, TypeError, ValueError, IndexError, KeyError, RuntimeError,
    MemoryError, OverflowError, AssertionError, ImportError,
)  # fmt: skip


def state_dict(network: Node, where: Path) -> dict[str, Tensor]:
    """A stored network's parameters and persistent buffers by name.

    Raises:
        UserError: none, or one that is not finite.
    """
    state: dict[str, Tensor] = {}
    for name, tensor in _tensors(network, "", 0, where):
        state[name] = tensor
        if len(state) > MOST:
            raise UserError("more tensors than any network has", where, f"at most {MOST:,}")
    try:
        require_stored(state)
    except pickle.UnpicklingError as error:
        raise UserError(str(error), where, "an official network pickle") from error
    if not state:
        raise UserError("a network without tensors", where, "parameters and buffers")
    for name, tensor in state.items():
        if not bool(tensor.isfinite().all()):
            raise UserError(f"{name} is not finite", where, "numbers")
    return state


def _tensors(node: Node, prefix: str, depth: int, where: Path) -> Iterator[tuple[str, Tensor]]:
    node.visits += 1
    if depth > DEPTH or node.visits > MOST:
        raise UserError("modules nested without end", where, "an official network pickle")
    hidden = node.state.get("_non_persistent_buffers_set")
    skipped = hidden if isinstance(hidden, (set, list, tuple)) else ()
    for kind in ("_parameters", "_buffers"):
        values = node.state.get(kind)
        for name, tensor in values.items() if isinstance(values, Mapping) else ():
            if isinstance(tensor, Tensor) and isinstance(name, str) and name not in skipped:
                yield prefix + name, tensor.detach()
    children = node.state.get("_modules")
    for name, child in children.items() if isinstance(children, Mapping) else ():
        if isinstance(child, Node):
            yield from _tensors(child, f"{prefix}{name}.", depth + 1, where)


def _from_safetensors(path: Path) -> Release:
    try:
        state = load_file(path)
    except FileNotFoundError as error:
        raise UserError("no such file", path) from error
    except (SafetensorError, OSError) as error:
        raise UserError(f"not readable ({str(error).splitlines()[0][:100]})", path, "safetensors") from error
    parts: dict[str, dict[str, Tensor]] = {"G_ema": {}, "D": {}}
    for name, tensor in state.items():
        part, _, rest = name.partition(".")
        if part not in parts:
            raise UserError(f"unknown name {name!r}", path, "G_ema.* and D.*")
        if not bool(tensor.isfinite().all()):
            raise UserError(f"{name} is not finite", path, "numbers")
        parts[part][rest] = tensor
    if not parts["G_ema"]:
        raise UserError("no generator in it", path, "G_ema.*")
    return Release(parts["G_ema"], parts["D"] or None)
