"""SHA-256 fingerprints of files, folders and settings."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from tenfold.errors import UserError


def fingerprint(path_or_obj: Any) -> str:
    """`"sha256:<hex>"` of a file's content, a folder's names and contents, or a JSON-able object.

    A `Path` or `str` is a path. A folder's fingerprint depends on the sorted relative names and the
    contents of its files, not on times, permissions or where the folder lies. Anything else is hashed as
    canonical JSON (sorted keys, no spaces, UTF-8), so the order of keys does not matter.

    Raises:
        UserError: a path that does not exist or cannot be read.
        TypeError, ValueError: an object that is not JSON.
    """
    if isinstance(path_or_obj, str | Path):
        return f"sha256:{_path_digest(Path(path_or_obj))}"
    text = json.dumps(path_or_obj, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return f"sha256:{hashlib.sha256(text.encode('utf-8')).hexdigest()}"


def _path_digest(path: Path) -> str:
    if path.is_dir():
        digest = hashlib.sha256()
        for name in sorted(file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file()):
            # A name cannot contain NUL and a content digest has a fixed length: no two folders read alike.
            digest.update(name.encode("utf-8", "surrogateescape") + b"\0" + _file_digest(path / name))
        return digest.hexdigest()
    return _file_digest(path).hex()


def _file_digest(path: Path) -> bytes:
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").digest()
    except FileNotFoundError as error:
        raise UserError("no such file or folder", path) from error
    except OSError as error:
        raise UserError(f"cannot read ({error.strerror})", path, "a readable file") from error
