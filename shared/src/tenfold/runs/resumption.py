"""What a training needs to go on where it was killed, and to refuse to go on with something else."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tenfold.errors import UserError
from tenfold.runs.files import atomic_write_json, read_json

IDENTITY = "checkpoint-identity.json"  # by its name no part of a run's outcome


def identity(
    settings: Mapping[str, Any], seed: int, world: int, fingerprints: Mapping[str, str], free: Collection[str]
) -> dict[str, Any]:
    """What a continuation must agree in: name -> value.

    Args:
        settings: nested, JSON-able; names become ``stage.rate``.
        world: how many ranks share a batch.
        fingerprints: of the data.
        free: names of settings that may change between two legs, such as how often a checkpoint is written.
    """
    values = {name: value for name, value in flat(settings) if name not in free}
    data = {f"data {name}": value for name, value in fingerprints.items()}
    return json.loads(json.dumps({**values, "seed": seed, "ranks": world, **data}))


def flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Nested settings as ``(dotted name, value)``."""
    for name, value in values.items():
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def require_same(ours: Mapping[str, Any], theirs: Mapping[str, Any], where: Path) -> None:
    """Two identities agree.

    Raises:
        UserError: other settings, seed, ranks or data (names them).
    """
    changed = [name for name in sorted(ours.keys() | theirs.keys()) if ours.get(name) != theirs.get(name)]
    if changed:
        expected = ", ".join(f"{name}={theirs.get(name)}" for name in changed)
        raise UserError(f"begun with another {', '.join(changed)}", where, expected)


def keep_identity(output: Path, ours: Mapping[str, Any]) -> None:
    """Keep an identity in a training's folder, or compare it with what an earlier leg kept there.

    Raises:
        UserError: as `require_same`.
    """
    path = output / IDENTITY
    if path.exists():
        require_same(ours, read_json(path), output)
    else:
        atomic_write_json(path, dict(ours))


def require_new(output: Path, resume: bool, own: Collection[str] = ()) -> None:
    """A training's folder is new, or empty, or is to be gone on in.

    Args:
        own: names in it that are no part of an earlier training, such as data that were drawn for it.

    Raises:
        UserError: no folder, or one that holds something and no ``resume``.
    """
    if output.exists() and not output.is_dir():
        raise UserError("not a folder", output, "a new folder")
    there = {path.name for path in output.iterdir()} - set(own) if output.is_dir() else set()
    if there and not resume:
        raise UserError(f"not empty ({sorted(there)[0]})", output, "--resume, or a new folder")


@contextmanager
def threads(count: int | None) -> Iterator[None]:
    """So many threads of torch meanwhile; None leaves them as they are."""
    import torch

    before = torch.get_num_threads()
    if count is not None:
        torch.set_num_threads(count)
        # Where it is not set, accelerate gives each rank as many threads as it thinks good.
        os.environ.setdefault("OMP_NUM_THREADS", str(count))
    try:
        yield
    finally:
        torch.set_num_threads(before)
