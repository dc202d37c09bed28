"""Kill every training, fit and evaluation, go on, and compare what is left with a run that nobody killed.

    python benchmarks/kills.py                      # all papers: 31 kills
    python benchmarks/kills.py dtnet fitprune       # these
    python benchmarks/kills.py --json kills.json    # also as json

The commands are those of a user, at the miniatures' sizes and with few steps. SIGKILL comes at a place of progress:
when a step is about to be logged, when a checkpoint's files are written and it has no name yet, when an answer is about
to be kept, when finished results are about to be moved to their place. Equal means: the same files, each with the same
SHA-256. Exit code 1 if something differs, or a kill comes too late or leaves nothing to go on from.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import runpy
import signal
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path

from small_runs import RUNS, Run, words_of

from tenfold.cli.output import quiet_libraries
from tenfold.testing.processes import die_at, fork

# Where a process kills itself, at the n-th call.
PLACES = {
    "step": ("tenfold.runs.context", "append_jsonl"),
    "checkpoint": ("tenfold.runs.checkpoints", "fsync_tree"),
    "answer": ("tenfold.runs.predictions", "append_jsonl"),
    "results": ("tenfold.runs.context", "_move_results"),
    "sample": ("fitprune.fitting", "append_jsonl"),
}
# What only says how a run came about.
RUN_ID = re.compile(rb"[a-z0-9-]+-\d{8}T\d{6}Z-[0-9a-f]{8}")
HISTORY = ("run.json", "checkpoint-", ".tmp-", "identity.json")


@dataclass(frozen=True)
class Row:
    """One kill and what came of it."""

    package: str
    verb: str
    killed_at: str
    went_on: bool
    equal: bool
    files: int
    seconds: float


def execute(package: str, words: list[str], log: Path, kill: tuple[str, int] | None = None) -> int:
    """The exit code of a command, run in a fork, so that torch is loaded once; what it says goes into a file."""

    def work() -> None:
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        for stream in (1, 2):
            os.dup2(descriptor, stream)
        if kill is not None:
            module, name = PLACES[kill[0]]
            die_at(import_module(module), name, kill[1])
        sys.argv = [package, *words]
        print("$", *sys.argv, flush=True)
        runpy.run_module(package, run_name="__main__", alter_sys=True)

    return os.waitstatus_to_exitcode(os.waitpid(fork(work), 0)[1])


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of a finished run's files, without its history; a run's id, which models name, counts as a word."""
    found = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = path.relative_to(folder).as_posix()
        if not any(part.startswith(HISTORY) for part in name.split("/")):
            found[name] = hashlib.sha256(RUN_ID.sub(b"RUN", path.read_bytes())).hexdigest()
    return found


def kill_and_compare(one: Run, place: Path) -> list[Row]:
    """Every kill of a run, and the comparison at its end."""
    folder = place / f"{one.package}-{one.verb}"
    folder.mkdir(parents=True)
    log, whole, killed = folder / "log", folder / "whole", folder / "killed"
    if execute(one.package, words_of(one, place, whole), log):
        print(f"{one.package} {one.verb} fails without a kill: {log}", flush=True)
        return [Row(one.package, one.verb, "never", False, False, 0, 0.0)]
    rows, more = [], ""
    for kill in one.kills:
        start = time.monotonic()
        code = execute(one.package, words_of(one, place, killed, more), log, kill)
        left = any(path.name.startswith(("checkpoint-", ".tmp-")) for path in killed.rglob("*"))
        rows.append((kill, code == -signal.SIGKILL and left, time.monotonic() - start))
        more = one.resume
    start = time.monotonic()
    done = execute(one.package, words_of(one, place, killed, more), log) == 0
    ours, theirs = digests(killed), digests(whole)
    for name in sorted(set(ours) | set(theirs)):
        if ours.get(name) != theirs.get(name):
            print(f"  differs: {killed / name}", flush=True)
    equal, last = done and ours == theirs, time.monotonic() - start
    return [
        Row(one.package, one.verb, f"{at} {number}", went, equal, len(theirs), round(seconds + last, 1))
        for (at, number), went, seconds in rows
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("packages", nargs="*", help="default: all")
    parser.add_argument("--json", type=Path, help="also write the rows to this file")
    parser.add_argument("--keep", type=Path, help="a new folder for all runs; default: a temporary one")
    options = parser.parse_args()
    place = options.keep or Path(tempfile.mkdtemp(prefix="tenfold-kills-"))
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    quiet_libraries()
    rows: list[Row] = []
    for one in RUNS:
        if not options.packages or one.package in options.packages:
            for room in ("training", "evaluation"):
                import_module(f"{one.package}.{room}.run")
            for row in kill_and_compare(one, place):
                rows.append(row)
                print(
                    f"{row.package} {row.verb}: killed at {row.killed_at}; {'went on' if row.went_on else 'NOT KILLED'}"
                    f"; {row.files} files {'equal' if row.equal else 'DIFFER'}; {row.seconds} s",
                    flush=True,
                )
    good = [row for row in rows if row.went_on and row.equal]
    print(f"{len(rows)} kills, {len(good)} with equal files; in {place}")
    if options.json:
        options.json.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n", encoding="utf-8")
    return int(len(good) < len(rows))


if __name__ == "__main__":
    sys.exit(main())
