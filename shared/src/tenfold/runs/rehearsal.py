"""A rehearsal: a package's real path walked once, at full size, with random weights in the official layout.

    with rehearsed("dit_sam", {"size": "vit_h"}, output, folder) as (steps, place, metrics):
        with steps.step("write a release"):
            write_release(place)
        metrics["masks"] = list(shape)

The record is a run's, with seconds, peak memory and disk of every step; `benchmarks/rehearse.py` runs them.
"""

from __future__ import annotations

import gc
import resource
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from tenfold.cli.output import echo
from tenfold.errors import UserError
from tenfold.runs.context import run
from tenfold.runs.files import atomic_write_json

Result = TypeVar("Result")


class Steps:
    """What was done, one row a step: "step", "seconds", and in 10^9 bytes "peak_gb", the process's peak memory, and
    "disk_gb", what lies in the folder when the step ends.

    On Linux the peak is that of the step, pages of mapped files included; elsewhere, that of the process so far.

    Args:
        place: the folder that is looked at; None: disk is not recorded.
    """

    def __init__(self, place: Path | None = None) -> None:
        self.place = place
        self.rows: list[dict[str, Any]] = []

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """A step; what fails has no row."""
        gc.collect()
        reset = Path("/proc/self/clear_refs")
        if reset.exists():
            reset.write_text("5")
        start = time.perf_counter()
        yield
        seconds, peak = time.perf_counter() - start, peak_bytes() / 1e9
        self.rows.append({"step": name, "seconds": round(seconds, 1), "peak_gb": round(peak, 2)})
        said = f"{name}: {seconds:.1f} s, peak {peak:.2f} GB"
        if self.place is not None:
            disk = bytes_below(self.place) / 1e9
            self.rows[-1]["disk_gb"] = round(disk, 2)
            said += f", {disk:.2f} GB of files"
        echo(said)

    def do(self, name: str, work: Callable[[], Result]) -> Result:
        """A step of one call; what it returns."""
        with self.step(name):
            return work()


def peak_bytes() -> int:
    """The peak of this process's memory, since it was last reset where that can be done."""
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes on macOS


def bytes_below(folder: Path) -> int:
    """The sizes of all files in a folder and the folders in it."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink())


@contextmanager
def rehearsed(
    package: str, config: Mapping[str, Any], output: Path, folder: Path | None = None
) -> Iterator[tuple[Steps, Path, dict[str, Any]]]:
    """Record a rehearsal.

    Args:
        config: what was rehearsed, for the record.
        output: the file of the record, as JSON.
        folder: where a folder for what lies in between is made, and removed; itself made where it is missing; None:
            the system's temporary one.

    Yields:
        steps to fill, an empty folder, and the record's metrics.
    """
    for needed in (output.parent, *([] if folder is None else [folder])):
        try:
            needed.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"cannot be made ({error.strerror})", needed, "a writable folder") from error
    with (
        run(package, "rehearsal", config=config, seed=0, output=None) as current,
        tempfile.TemporaryDirectory(dir=folder, prefix=f"{package.replace('_', '-')}-rehearsal-") as place,
    ):
        steps = Steps(Path(place))
        yield steps, Path(place), current.metrics
        current.metrics["steps"] = steps.rows
    assert current.record is not None
    atomic_write_json(output, current.record.model_dump(mode="json"))
