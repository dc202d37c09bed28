"""Checkpoints that are complete or absent.

A checkpoint is written to `.tmp-<step>`, flushed, given its marker file `COMPLETE` (its files, their
sizes and SHA-256) and renamed to `checkpoint-<step>`. A process that dies at any moment leaves the checkpoints
before this one untouched. `last_complete_checkpoint` trusts a folder only when its marker is there and
agrees.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import shutil
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from tenfold.errors import UserError
from tenfold.runs.files import TEMPORARY_PREFIX, fsync_path, fsync_tree, publish_directory, read_json, remove_directory

logger = logging.getLogger(__name__)

MARKER = "COMPLETE"
_NAME = re.compile(r"checkpoint-(\d+)")


def write_checkpoint(directory: str | Path, step: int, write: Callable[[Path], None], keep: int = 2) -> Path:
    """Write `directory/checkpoint-<step>` whole or not at all, and keep the newest `keep` complete ones.

    Args:
        directory: the run's folder; made when missing.
        step: the number of finished steps.
        write: fills the (empty) folder that it is given.
        keep: complete checkpoints that stay, this one included; at least 1.

    Returns:
        The finished checkpoint's folder. A folder of that name that is there is replaced.

    Raises:
        UserError: the folder cannot be created.
    """
    directory = Path(directory)
    staging = stage_checkpoint(directory, step)
    try:
        write(staging)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise
    checkpoint = publish_checkpoint(staging, directory, step)
    rotate_complete_checkpoints(directory, keep)
    return checkpoint


def stage_checkpoint(directory: Path, step: int) -> Path:
    """An empty folder `.tmp-<step>` to write into; what killed processes left half-written is removed."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for leftover in directory.glob(f"{TEMPORARY_PREFIX}*"):
            if re.fullmatch(r"\.tmp-(old-checkpoint-)?\d+", leftover.name):
                shutil.rmtree(leftover)
        staging = directory / f"{TEMPORARY_PREFIX}{step}"
        staging.mkdir()
    except OSError as error:
        raise UserError(f"cannot write checkpoints ({error.strerror})", directory, "a writable folder") from error
    return staging


def publish_checkpoint(staging: Path, directory: Path, step: int) -> Path:
    """Flush `staging`, mark it complete and rename it to `directory/checkpoint-<step>`."""
    fsync_tree(staging)
    marker = staging / MARKER
    marker.write_text(json.dumps({"step": step, "files": _digests(staging)}), encoding="utf-8")
    fsync_path(marker)
    fsync_path(staging)
    checkpoint = directory / f"checkpoint-{step}"
    publish_directory(staging, checkpoint)
    return checkpoint


def rotate_complete_checkpoints(directory: Path, keep: int, protect: Collection[Path] = ()) -> None:
    """Delete the oldest complete checkpoints until `keep` are left; the newest and those in `protect`
    always stay.

    Folders without a marker are not ours to delete: they stay, and never count.
    """
    complete = [path for path in _by_step(directory) if incompleteness(path) is None]
    deletable = [path for path in complete[:-1] if path not in protect]
    for path in deletable[: max(len(complete) - keep, 0)]:
        remove_directory(path)


def last_complete_checkpoint(directory: str | Path) -> Path | None:
    """The complete checkpoint with the highest step, or None. Torn ones are skipped with a logged warning."""
    for path in reversed(_by_step(Path(directory))):
        reason = incompleteness(path, thorough=True)
        if reason is None:
            return path
        logger.warning("skipping torn checkpoint %s: %s", path, reason)
    return None


def checkpoint_step(path: str | Path) -> int:
    """The number of finished steps in a checkpoint's name, `checkpoint-<step>`.

    Raises:
        UserError: the folder is not named so.
    """
    match = _NAME.fullmatch(Path(path).name)
    if match is None:
        raise UserError("not a checkpoint's name", path, "checkpoint-<step>")
    return int(match.group(1))


def incompleteness(checkpoint: Path, *, thorough: bool = False) -> str | None:
    """Why a checkpoint folder cannot be trusted, or None when it is complete.

    Args:
        thorough: read every file and compare its SHA-256, else sizes only.
    """
    marker = checkpoint / MARKER
    if not marker.is_file():
        return f"no marker file {MARKER}"
    try:
        content = read_json(marker)
        files = {str(name): (int(one["bytes"]), str(one["sha256"])) for name, one in content["files"].items()}
    except (UserError, AttributeError, KeyError, TypeError, ValueError):
        return f"unreadable marker file {MARKER}"
    if not files:
        return f"marker file {MARKER} names no file"
    there = _sizes(checkpoint)
    for name, (size, digest) in files.items():
        if name not in there:
            return f"{name} is missing"
        if there[name] != size:
            return f"{name} has {there[name]} bytes instead of {size}"
        if thorough and _digest(checkpoint / name) != digest:
            return f"{name} has changed since it was written"
    return None


def _digests(folder: Path) -> dict[str, dict[str, Any]]:
    """Relative name -> bytes and SHA-256 of every file below `folder`, the marker itself excepted."""
    return {name: {"bytes": size, "sha256": _digest(folder / name)} for name, size in _sizes(folder).items()}


def _digest(file: Path) -> str:
    with open(file, "rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _sizes(folder: Path) -> dict[str, int]:
    """Relative name -> bytes of every file below `folder`, the marker itself excepted."""
    return {
        file.relative_to(folder).as_posix(): file.stat().st_size
        for file in sorted(folder.rglob("*"))
        if file.is_file() and file != folder / MARKER
    }


def _by_step(directory: Path) -> list[Path]:
    if not directory.is_dir():
        return []
    found = [path for path in directory.iterdir() if path.is_dir() and _NAME.fullmatch(path.name)]
    return sorted(found, key=checkpoint_step)
