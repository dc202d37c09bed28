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
# Who holds it, in a file of its own: filelock below 4 empties the lock's at every attempt.
HOLDER = f"{TEMPORARY_PREFIX}writer"


@contextmanager
def one_writer(folder: Path) -> Iterator[None]:
    """Hold a folder; the system lets go of it when the process dies, however it does.

    Raises:
        UserError: another process holds it (says its number).
    """
    path, holder = folder / LOCK, folder / HOLDER
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise UserError(f"process {_number(holder)} is writing there", folder, "a folder of its own") from error
    try:
        holder.write_text(f"{os.getpid()}\n", encoding="utf-8")
        yield
    finally:
        holder.unlink(missing_ok=True)
        path.unlink(missing_ok=True)
        lock.release()


def _number(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip() or "another"
    except OSError:
        return "another"
