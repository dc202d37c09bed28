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
class Run:
    """A verb at a small size.

    Attributes:
        package: import name. words: of the command; {out} is the run's folder, {train} the folder of the finished
            training before it.
        kills: (place, number of the call) one after the other, each of them in what the last one left.
        resume: what is added to go on.
    """

    package: str
    words: str
    kills: tuple[tuple[str, int], ...]
    resume: str = ""

    @property
    def verb(self) -> str:
        return self.words.split()[0]


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


def sets(**values: object) -> str:
    """``--set`` options; a double underscore stands for a point."""
    return " ".join(f"--set {name.replace('__', '.')}={value}" for name, value in values.items())


def stage(name: str, **values: object) -> dict[str, object]:
    return {f"{name}__{key}": value for key, value in values.items()}


TWO = (("step", 4), ("checkpoint", 2))
SMALL = {"batch": 8, "per_device": 4}
ANSWERS = (("answer", 2),)
RUNS = (
    Run("fitprune", "fit --config mini --set limit=6 --output {out}", (("sample", 3), ("sample", 8))),
    Run("fitprune", "eval --config mini --benchmark pope --limit 6 --batch 2 --output {out}", ANSWERS),
    Run("dyvte", "train --config mini --output {out} " + sets(limit=24, steps=8, batch=6, checkpoint_steps=2), TWO),
    Run("dyvte", "eval --config mini --benchmark pope --limit 6 --batch 2 --output {out}", ANSWERS),
    Run(
        "gamma_mod",
        "train --config mini --output {out} "
        + sets(
            data__mini__train=48,
            data__expected="[48,1]",
            stage__batch=8,
            stage__per_device=4,
            checkpoint_steps=2,
            conversion__calibration_samples=8,
        ),
        TWO,
        "--resume",
    ),
    Run("gamma_mod", "eval --config mini --benchmark pope --limit 6 --batch 2 --output {out}", ANSWERS),
    Run(
        "flashsloth",
        "train --config mini --output {out} "
        + sets(data__mini__train=32, checkpoint_steps=2)
        + " "
        + sets(**stage("pretrain", steps=3, **SMALL), **stage("finetune", steps=4, **SMALL)),
        TWO,
        "--resume",
    ),
    Run("flashsloth", "eval --config mini --limit 6 --batch 2 --output {out}", ANSWERS),
    Run(
        "llava_hr",
        "train --config mini --output {out} "
        + sets(data__mini__train=32, checkpoint_steps=2)
        + " "
        + sets(**stage("pretrain", steps=3, **SMALL), **stage("finetune", **SMALL)),
        TWO,
        "--resume",
    ),
    Run("llava_hr", "eval --config mini --limit 6 --batch 2 --output {out}", ANSWERS),
    Run(
        "dtnet",
        "train --config mini --output {out} "
        + sets(**stage("data__mini", train=40, val=6, test=4), **stage("data__expected", images=40, captions=200))
        + " "
        + sets(checkpoint_steps=2, **stage("xe", epochs=1, steps=5, batch=8, warmup=2))
        + " "
        + sets(**stage("scst", epochs=1, steps=3, images=4)),
        TWO,
        "--resume",
    ),
    Run(
        "dtnet",
        "eval {train}/model --data {train}/data --features {train}/data/grid_features.h5 --metrics cider "
        "--tokens whitespace --batch 1 --output {out}",
        ANSWERS,
    ),
    Run(
        "dit_sam",
        "train --config mini --output {out} "
        + sets(**stage("data__mini", train=12, val=3, test=3), **stage("validation", limit=6, batch=4))
        + " "
        + sets(start__point_steps=2, epochs=2, steps=3, batch=4, warmup_epochs=0.5, log_steps=1, checkpoint_steps=2),
        TWO,
        "--resume",
    ),
    Run("dit_sam", "eval {train}/model --data {train}/checkpoint-data --batch 1 --limit 6 --output {out}", ANSWERS),
    Run(
        "eas",
        "train --config mini --output {out} "
        + sets(data__samples=8, checkpoint_steps=2, adapters__dropout=0.1)
        + " "
        + sets(**stage("search", steps=5, batch=2, per_device=2, idle=2, warmup=1))
        + " "
        + sets(**stage("tune", steps=5, batch=2, per_device=2, warmup=1)),
        TWO,
        "--resume",
    ),
    Run("eas", "eval --config mini --adapters {train}/adapters --limit 6 --batch 2 --output {out}", ANSWERS),
    Run(
        "e3_facenet",
        "train --config mini --output {out} "
        + sets(**stage("data__mini", train=12, test=4, captions=2), data__expected="[12,2]")
        + " "
        + sets(iterations=6, batch=4, micro=2, log_steps=1, checkpoint_steps=2),
        TWO,
        "--resume",
    ),
    Run("e3_facenet", "eval --model {train}/model --data {train}/data --count 8 --output {out}", ANSWERS),
    Run("inst_diff_edit", "train --steps 8 --batch 2 --checkpoint-every 2 --output {out}", TWO, "--resume"),
    Run("inst_diff_edit", "eval --limit 6 --batch 1 --output {out}", ANSWERS),
)


def words_of(one: Run, place: Path, out: Path, more: str = "") -> list[str]:
    train = place / f"{one.package}-train" / "whole"
    return f"{one.words} {more}".replace("{out}", str(out)).replace("{train}", str(train)).split()


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
