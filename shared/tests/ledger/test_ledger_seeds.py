"""Arms and seeds in processes of their own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tenfold.ledger.seeds import run_each, verdict

SCRIPT = """
import signal, sys, time
from pathlib import Path

from tenfold.ledger.seeds import run_each


def work(folder, name):
    Path(folder, name).write_text("begun")
    time.sleep(120)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    run_each([(work, sys.argv[1], name) for name in ("a", "b", "c")])
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_ends_what_runs(number, tmp_path):
    """Fails if the parent waits for its workers to finish, begins what has not begun, or leaves one behind."""
    (tmp_path / "script.py").write_text(SCRIPT)
    command = [sys.executable, "script.py", str(tmp_path)]
    process = subprocess.Popen(command, cwd=tmp_path, start_new_session=True, stderr=subprocess.DEVNULL)
    try:
        until = time.monotonic() + 60
        while not ((tmp_path / "a").exists() and (tmp_path / "b").exists()):
            assert process.poll() is None and time.monotonic() < until
            time.sleep(0.05)
        os.kill(process.pid, number)
        assert process.wait(30) != 0
        assert not (tmp_path / "c").exists()
        until = time.monotonic() + 20  # multiprocessing's tracker of resources ends after its parent
        while left := _group(process.pid):
            assert time.monotonic() < until, left
            time.sleep(0.05)
    finally:
        if _group(process.pid):
            os.killpg(process.pid, signal.SIGKILL)


def _group(leader: int) -> list[str]:
    """Command lines of the processes of a group that run; a session's orphans keep its number."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
            if int(fields[2]) == leader and fields[0] != "Z":
                found.append((stat.parent / "cmdline").read_text())
        except OSError:
            continue  # it has ended
    return found


def test_a_failure_is_raised_when_all_have_ended(tmp_path):
    """Fails if an arm that fails takes the others' results with it."""
    with pytest.raises(FileExistsError):
        run_each([(os.mkdir, str(tmp_path)), (os.mkdir, str(tmp_path / "a"))])
    assert (tmp_path / "a").is_dir()


def test_a_difference_over_seeds_and_items_is_judged_by_its_seeds_and_bounded_by_both():
    """Fails if the items' own spread hides an effect that every seed shows, or the interval forgets the items."""
    items = np.tile([9.0, -3.0], (3, 200))  # 3 points in every seed
    assert verdict(items, 2.0) == verdict(items.mean(1), 2.0) == "holds"
    few = np.tile([8.0, -8.0], (3, 2))  # nothing in every seed, of four items
    assert verdict(few.mean(1), 2.0) == "equivalent" and verdict(few, 2.0) == "not reproduced"
    assert verdict(np.tile(few, (1, 200)), 2.0) == "equivalent" and verdict(items, 2.0, False) == "no verdict"
