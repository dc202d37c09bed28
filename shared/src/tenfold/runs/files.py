"""Files that appear whole or not at all, and JSON lines that survive a kill.

Everything is written under another name in the same folder, flushed to the disk, then renamed:
a reader sees the old content or the new one, whenever the process dies.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tenfold.errors import UserError
from tenfold.runs.parse import parse_json, parse_yaml

logger = logging.getLogger(__name__)

TEMPORARY_PREFIX = ".tmp-"


def fsync_path(path: Path) -> None:
    """Flush one file or one folder's list of names to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_readable(folder: Path) -> None:
    """Files below `folder` as readable as the process's mask lets new ones be: some libraries write private ones."""
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink():
            mode = path.stat().st_mode & 0o7777
            if (wanted := mode | (0o666 & ~_umask())) != mode:
                path.chmod(wanted)


def fsync_tree(folder: Path) -> None:
    """Flush every file and folder below `folder`, and `folder` itself."""
    for base, _, files in os.walk(folder):
        for name in files:
            fsync_path(Path(base, name))
        fsync_path(Path(base))


def atomic_write_bytes(path: str | Path, data: bytes) -> None:
    """Write `data` to `path`, replacing a file that is there, whole or not at all.

    Raises:
        UserError: the folder cannot be created or written.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(prefix=f"{TEMPORARY_PREFIX}{path.name}-", dir=path.parent)
    except OSError as error:
        raise UserError(f"cannot write ({error.strerror})", path, "a writable folder") from error
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            # mkstemp makes files private (0600); results are meant to be read like any other file.
            os.fchmod(file.fileno(), 0o666 & ~_umask())
            os.fsync(file.fileno())
        _rename(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    fsync_path(path.parent)


def atomic_write_text(path: str | Path, text: str) -> None:
    """Write `text` as UTF-8 to `path`, whole or not at all. Raises UserError like `atomic_write_bytes`."""
    atomic_write_bytes(path, text.encode("utf-8"))


def atomic_write_json(path: str | Path, obj: Any) -> None:
    """Write `obj` as indented UTF-8 JSON to `path`, whole or not at all.

    Raises:
        UserError: the folder cannot be created or written.
        TypeError, ValueError: `obj` is not JSON (NaN and infinity are not).
    """
    atomic_write_text(path, json.dumps(obj, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


@contextmanager
def atomic_directory(path: str | Path, *, replace: bool = False) -> Iterator[Path]:
    """Fill a folder that becomes `path` on success and vanishes on failure.

    Yields the temporary folder `.tmp-<name>` beside `path`; one that a killed process left is removed first.
    With `replace=True` an existing folder is moved aside, replaced and then deleted: a kill between the two
    renames leaves no `path`, never a mixture.

    Raises:
        UserError: `path` exists (and `replace` is false), is a file, or its parent cannot be written.
    """
    # A link or "." cannot be renamed; what they stand for can.
    path = Path(path).resolve()
    _refuse_occupied(path, replace)
    temporary = path.with_name(f"{TEMPORARY_PREFIX}{path.name}")
    try:
        if temporary.exists():
            shutil.rmtree(temporary)
        temporary.mkdir(parents=True)
    except OSError as error:
        raise UserError(f"cannot create the folder ({error.strerror})", path, "a writable parent") from error
    try:
        yield temporary
        make_readable(temporary)
        fsync_tree(temporary)
        _refuse_occupied(path, replace)
        publish_directory(temporary, path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _refuse_occupied(path: Path, replace: bool) -> None:
    if path.is_dir():
        if not replace:
            raise UserError("already exists", path, "a folder that does not exist yet")
    elif path.exists():
        raise UserError("is a file", path, "a folder, or nothing yet")


def publish_directory(temporary: Path, path: Path) -> None:
    """Rename a finished, flushed folder to `path`; a folder that is there is moved aside, then deleted."""
    if path.exists():
        remove_directory(path, before_delete=lambda: temporary.rename(path))
    else:
        temporary.rename(path)
    fsync_path(path.parent)


def remove_directory(path: Path, before_delete: Callable[[], object] | None = None) -> None:
    """Rename a folder, then delete it: a kill never leaves half of it under its own name."""
    aside = path.with_name(f"{TEMPORARY_PREFIX}old-{path.name}")
    if aside.exists():
        shutil.rmtree(aside)
    path.rename(aside)
    if before_delete is not None:
        before_delete()
    shutil.rmtree(aside)


def _rename(temporary: Path, path: Path) -> None:
    if path.is_dir():
        raise UserError("is a folder", path, "a file name")
    temporary.replace(path)


def _umask() -> int:
    # The mask can only be read by setting it.
    mask = os.umask(0)
    os.umask(mask)
    return mask


def append_jsonl(path: str | Path, obj: Any) -> None:
    """Append `obj` as one JSON line, flushed to the disk before returning.

    Half a line that a killed process left at the end is cut off first, so that it never glues to the new one.

    Raises:
        UserError: the file cannot be written.
        TypeError, ValueError: `obj` is not JSON (NaN and infinity are not).
    """
    path = Path(path)
    line = json.dumps(obj, ensure_ascii=False, allow_nan=False).encode("utf-8") + b"\n"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "a+b") as file:
            _end_with_newline(file, path)
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise UserError(f"cannot append ({error.strerror})", path, "a writable file") from error


def _end_with_newline(file: Any, path: Path) -> None:
    size = file.seek(0, os.SEEK_END)
    if size == 0:
        return
    file.seek(size - 1)
    if file.read(1) == b"\n":
        return
    file.seek(0)
    tail = file.read().rpartition(b"\n")[2]
    if _parses(tail):
        file.write(b"\n")
    else:
        logger.warning("%s: dropped a torn last line of %d bytes", path, len(tail))
        file.truncate(size - len(tail))


def _parses(line: bytes) -> bool:
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True


def read_jsonl(path: str | Path) -> list[dict[str, Any]]:
    """Read JSON lines. Half a last line (a killed writer's) is dropped with a log message.

    Raises:
        UserError: no such file; any other line that is not a JSON object (names the line).
    """
    path = Path(path)
    lines = read_bytes(path).split(b"\n")
    rows: list[dict[str, Any]] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        # Every whole line ends in a newline, so only what follows the last newline can be torn.
        if number == len(lines) and not _parses(line):
            logger.warning("%s: dropped a torn last line (line %d)", path, number)
            break
        row = parse_json(line, f"{path}, line {number}")
        if not isinstance(row, dict):
            raise UserError(f"{type(row).__name__} instead of an object", f"{path}, line {number}", "{...}")
        rows.append(row)
    return rows


def read_bytes(path: str | Path) -> bytes:
    """The content of a file a user named. Raises UserError when there is none or it cannot be read."""
    path = Path(path)
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise UserError("no such file", path) from error
    except OSError as error:
        raise UserError(f"cannot read ({error.strerror})", path, "a readable file") from error


def read_text(path: str | Path) -> str:
    """The content of a UTF-8 file a user named. Raises UserError when missing, unreadable or not UTF-8."""
    try:
        return read_bytes(path).decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError("is not text", path, "UTF-8") from error


def read_json(path: str | Path) -> Any:
    """The value in a JSON file a user named. Raises UserError naming the line that is broken."""
    return parse_json(read_text(path), path)


def read_yaml(path: str | Path) -> Any:
    """The value in a YAML file a user named. Raises UserError naming the line that is broken."""
    return parse_yaml(read_text(path), path)
