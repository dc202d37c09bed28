"""One process writes a folder at a time."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from tenfold.errors import UserError
from tenfold.runs.files import TEMPORARY_PREFIX

LOCK = f"{TEMPORARY_PREFIX}lock"


@contextmanager
def one_writer(folder: Path) -> Iterator[None]:
    """Hold a folder; the system lets go of it when the process dies, however it does.

    Raises:
        UserError: another process holds it (says its number).
    """
    path = folder / LOCK
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise UserError(f"process {_holder(path)} is writing there", folder, "a folder of its own") from error
    try:
        path.write_text(f"{os.getpid()}\n", encoding="utf-8")
        yield
    finally:
        path.unlink(missing_ok=True)
        lock.release()


def _holder(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip() or "another"
    except OSError:
        return "another"
