"""Checkpoints that are broken in every way a disk, a download or somebody else can break them."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file


class Calls:
    """An object whose pickle calls a function when it is read; `called` says whether anybody did."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.marker),)


def broken_copies(folder: Path, target: Path) -> Iterator[tuple[str, Path]]:
    """Copies of a checkpoint's folder, each broken in one way: (what is wrong with it, where).

    Args:
        folder: with ``model.safetensors``, or shards and their index.
        target: for the copies.
    """
    weights = sorted(folder.glob("*.safetensors"))
    first = weights[0].name

    def copy(name: str) -> Path:
        made = target / name.replace(" ", "-")
        shutil.copytree(folder, made)
        return made / first

    file = copy("truncated")
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    yield "truncated", file.parent
    file = copy("zeros")
    file.write_bytes(bytes(file.stat().st_size))
    yield "zeros", file.parent
    file = copy("empty")
    file.write_bytes(b"")
    yield "empty", file.parent
    file = copy("missing weights")
    file.unlink()
    yield "missing weights", file.parent
    tensors = load_file(folder / first)
    name = max(tensors, key=lambda key: tensors[key].numel())
    for what, change in (
        ("wrong shape", {name: tensors[name].flatten()[:-1].clone()}),
        ("extra key", {"somebody.else": torch.zeros(1)}),
        ("not a number", {name: torch.full_like(tensors[name], float("nan"))}),
    ):
        file = copy(what)
        save_file({**tensors, **change}, file, metadata={"format": "pt"})
        yield what, file.parent
    file = copy("missing key")
    save_file({key: value for key, value in tensors.items() if key != name}, file, metadata={"format": "pt"})
    yield "missing key", file.parent
    for config in sorted(path.name for path in folder.glob("config.json")):
        file = copy(f"broken {config}")
        (file.parent / config).write_text("{")
        yield f"broken {config}", file.parent
        file = copy(f"nested {config}")
        (file.parent / config).write_text("[" * 3000 + "]" * 3000)
        yield f"nested {config}", file.parent


def hostile_pickle(path: Path, marker: Path) -> Path:
    """A file of weights that makes the folder `marker` when it is unpickled without care."""
    path.write_bytes(pickle.dumps({"weight": Calls(marker)}))
    return path


def same_bits(one: Path, other: Path) -> bool:
    """Whether two folders hold the same files with the same bytes (records of runs aside)."""
    return _digests(one) == _digests(other)


def _digests(folder: Path) -> dict[str, str]:
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != "run.json"]
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def written_json(path: Path, content: Any) -> Path:
    """A json file with this content."""
    path.write_text(json.dumps(content), encoding="utf-8")
    return path
