"""How long a run took that was killed and went on: the sum of its legs.

A leg says in the run's folder when it began. One that was killed cannot say when it ended: its last sign of life is the
last file that it wrote there.
"""

from __future__ import annotations

import os
import time
from contextlib import suppress
from pathlib import Path

from tenfold.errors import UserError
from tenfold.runs.files import TEMPORARY_PREFIX, atomic_write_json, read_json

LEGS = "checkpoint-legs"  # by its name no part of a run's outcome


def begin_leg(folder: Path) -> float:
    """Note the beginning of a leg; returns the seconds that the earlier ones took, up to their last sign of life."""
    path = folder / LEGS
    earlier, started = _earlier(path)
    if started is not None:
        earlier += max(0.0, _last_written(folder) - started)
    atomic_write_json(path, {"earlier_seconds": round(earlier, 3), "started": time.time()})
    return earlier


def end_legs(folder: Path) -> None:
    """Forget the legs: the run is done, or left nothing to go on from."""
    with suppress(FileNotFoundError):
        (folder / LEGS).unlink()


def holds_only_legs(folder: Path) -> bool:
    """Whether nothing but the note is there."""
    return [entry.name for entry in os.scandir(folder)] == [LEGS]


def _earlier(path: Path) -> tuple[float, float | None]:
    try:
        content = read_json(path)
        return float(content["earlier_seconds"]), float(content["started"])
    except (UserError, KeyError, TypeError, ValueError):  # none, or a broken one: the time before it is not known
        return 0.0, None


def _last_written(folder: Path) -> float:
    written = 0.0
    for base, folders, files in os.walk(folder):
        # What a leg opens at its start says nothing of how long it went on.
        folders[:] = [name for name in folders if not name.startswith(TEMPORARY_PREFIX)]
        for name in files:
            if not name.startswith(TEMPORARY_PREFIX):
                with suppress(OSError):
                    written = max(written, Path(base, name).stat().st_mtime)
    return written
