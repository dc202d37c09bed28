"""Inputs damaged at random, by a seed: what a package reads is refused in one line or is right.

    FILES = [Reading("recipe", folder, lambda folder: Recipe.load(folder / "recipe.json")),
             command("demo", folder, main, "demo", "--image", "{in}/photo.png", "--output", "{out}")]
    assert fuzz(FILES, tmp_path, inputs=300) == []

Each input is read in a fork of its own, with limits for time and memory. A finding is a traceback, a process that dies,
hangs or wants more than 2 GB, a value that is not finite and was taken for good, a refusal that is not one line or left
results behind, and anything that somebody else's library prints.
"""

from __future__ import annotations

import math
import os
import random
import re
import resource
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import typer
from pydantic import BaseModel

from tenfold.cli.config import load_config
from tenfold.cli.files import package_file
from tenfold.errors import UserError
from tenfold.runs import run
from tenfold.testing.mutations import mutated
from tenfold.testing.processes import fork

#: Inputs of a package's test in `make test-all`; a release is tried with 2,000.
INPUTS = int(os.environ.get("TENFOLD_FUZZ_INPUTS", "300"))
#: In `make test`.
FEW = 12
CPU_SECONDS, WALL_SECONDS = 30, 300
MEMORY = 2 * 1024**3
_NUMBER = re.compile(r"(?<![\w.])(nan|NaN|Infinity|inf)(?![\w.])")


@dataclass(frozen=True)
class Reading:
    """Something that reads files.

    Attributes:
        name: for findings.
        folder: the files as they should be; every input gets a copy of its own.
        read: given that copy. Raises UserError, or returns what it read, whose numbers have to be finite.
        files: patterns of the files that are damaged.
        is_command: it ends with an exit code, and writes into ``folder / "out"``.
    """

    name: str
    folder: Path
    read: Callable[[Path], Any]
    files: Sequence[str] = ("**/*",)
    is_command: bool = False

    @property
    def every(self) -> int:
        """In which rounds it has its turn: a command, which loads a model, in one of eight."""
        return 8 if self.is_command else 1


@dataclass(frozen=True)
class Finding:
    """What is wrong with one input.

    Attributes:
        number: of the input: the same seed and number make it again. reading: its name.
        file: that was damaged. damage: how. what: went wrong, the last line of its traceback for one.
    """

    number: int
    reading: str
    file: str
    damage: str
    what: str
    more: str = field(default="", compare=False)

    def __str__(self) -> str:
        return f"input {self.number}, {self.reading}: {self.file} ({self.damage}): {self.what}"


def command(
    name: str, folder: Path, main: Callable[[], None], *words: str, files: Sequence[str] = ("**/*",)
) -> Reading:
    """A package's command as something that reads.

    Args:
        main: the entry point of its console script.
        words: of the command line; ``{in}`` is the copy of the folder, ``{out}`` a folder for results.
    """

    def read(copy: Path) -> None:
        out = copy.parent / "out"
        sys.argv = ["command", *(word.replace("{in}", str(copy)).replace("{out}", str(out)) for word in words)]
        main()

    return Reading(name, folder, read, files, is_command=True)


def usual(
    folder: Path, package: str, main: Callable[[], None], settings: type[BaseModel], config: str
) -> list[Reading]:
    """What every package reads: a configuration file, and a run's record for its citation.

    Args:
        folder: for files that are made.
        package: import name. main: the entry point of its command.
        settings: what the shipped `config`, such as "mini.yaml", is read into.
    """
    shipped, record = folder / "config", folder / "record"
    shipped.mkdir(parents=True)
    shutil.copy(package_file(package, f"configs/{config}"), shipped / "settings.yaml")
    with run(package, "eval", config={"model": "mini", "limit": 3}, seed=0, output=record) as current:
        current.metrics.update({"scores": {"accuracy": 0.5}, "ranks": 1})
    return [
        Reading("settings", shipped, lambda f: load_config(settings, f / "settings.yaml")),
        command("cite", record, main, "cite", "{in}", files=("run.json",)),
    ]


def fuzz(readings: Sequence[Reading], scratch: Path, *, inputs: int = INPUTS, seed: int = 0) -> list[Finding]:
    """Try damaged inputs on all readings in turn.

    Args:
        scratch: an empty folder for copies; those of findings stay there.
        inputs: how many. seed: of their damage.
    """
    found = undamaged(readings, scratch)
    for number in range(inputs):
        found += try_one(readings, scratch, number, seed)
    return found


def undamaged(readings: Sequence[Reading], scratch: Path) -> list[Finding]:
    """What goes wrong, or is refused, with the files as they should be: then damaging them would say nothing."""
    found = []
    for reading in readings:
        place = scratch / "undamaged" / reading.name
        shutil.copytree(reading.folder, place / "in")
        whats = list(_wrongs(reading, place / "in", place))
        said = (place / "said").read_text(errors="replace")
        if not whats and "error: " in said:
            whats = [said.strip().splitlines()[-1]]
        found += [Finding(-1, reading.name, "", "undamaged", what, said[-4000:]) for what in whats]
    return found


def try_one(readings: Sequence[Reading], scratch: Path, number: int, seed: int = 0) -> list[Finding]:
    """One input of a seed; its folder stays where there is a finding."""
    rng = random.Random(f"{seed} {number}")
    turns = [one for turn in range(8) for one in readings if turn % one.every == 0]
    reading = turns[number % len(turns)]
    place = scratch / f"{number:05d}"
    copy = place / "in"
    shutil.copytree(reading.folder, copy)
    there = sorted({path for pattern in reading.files for path in copy.glob(pattern) if path.is_file()})
    damaged = rng.choice(there)
    damage, content = mutated(damaged, damaged.read_bytes(), rng)
    damaged.write_bytes(content)
    name = damaged.relative_to(copy).as_posix()
    whats = list(_wrongs(reading, copy, place))
    if not whats:
        shutil.rmtree(place)
    said = (place / "said").read_text(errors="replace")[-4000:] if whats else ""
    return [Finding(number, reading.name, name, damage, what, said) for what in whats]


def _wrongs(reading: Reading, copy: Path, place: Path) -> Iterator[str]:
    said, before = place / "said", _memory()
    child = fork(lambda: _read(reading, copy, said))
    _, status, usage = os.wait4(child, 0)
    code = os.waitstatus_to_exitcode(status)
    lines = said.read_text(encoding="utf-8", errors="replace").splitlines()
    peak = usage.ru_maxrss * 1024 - before
    if code in (-signal.SIGALRM, -signal.SIGXCPU, -signal.SIGKILL):
        yield f"hangs: {usage.ru_utime + usage.ru_stime:.0f} s of computing"
    elif code < 0:
        yield f"dies of {signal.Signals(-code).name}"
    elif any(line.startswith("Traceback (most recent call last)") for line in lines):
        yield _last_frame(lines)
    elif code == _NOT_FINITE:
        yield f"not finite, and taken for good: {lines[-1] if lines else ''}"
    elif code not in (0, 1, 2):
        yield f"ends with {code}: {lines[-1:]}"
    elif code == 2:
        yield from _bad_refusal(lines, place / "out")
    elif code == 0 and reading.is_command:
        yield from _not_finite_results(lines, place / "out")
    if peak > MEMORY:
        yield f"wants {peak / 1024**3:.1f} GB"


_NOT_FINITE = 77


def _read(reading: Reading, copy: Path, said: Path) -> None:
    """In the fork: everything that is said goes into a file, what takes too much ends the process."""
    import faulthandler

    descriptor = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(descriptor, stream)
    sys.stdout = sys.__stdout__ = open(1, "w", closefd=False, buffering=1)  # type: ignore[misc] # noqa: SIM115
    sys.stderr = sys.__stderr__ = open(2, "w", closefd=False, buffering=1)  # type: ignore[misc] # noqa: SIM115
    faulthandler.enable(sys.stderr)
    signal.alarm(WALL_SECONDS)
    used = resource.getrusage(resource.RUSAGE_SELF)
    spent = math.ceil(used.ru_utime + used.ru_stime)
    resource.setrlimit(resource.RLIMIT_CPU, (spent + CPU_SECONDS, spent + CPU_SECONDS + 5))
    resource.setrlimit(resource.RLIMIT_DATA, (_data() + MEMORY + 2**29,) * 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.chdir(copy.parent)
    try:
        value = reading.read(copy)
        where = next(_not_finite(value), None)
        if where is not None:
            print(where, file=sys.stderr, flush=True)
            os._exit(_NOT_FINITE)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        os._exit(2)
    except SystemExit as exit:
        sys.stdout.flush()
        os._exit(exit.code if isinstance(exit.code, int) else int(exit.code is not None))
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)


def _bad_refusal(lines: list[str], out: Path) -> Iterator[str]:
    """A refusal is one line, perhaps after warnings of ours, and leaves no results."""
    errors = [line for line in lines if line.startswith("error: ")]
    if len(errors) != 1 or lines[-1] != errors[0]:
        yield f"a refusal that is not one line: {lines[-2:]}"
    elif len(errors[0]) > 2000:
        yield f"a refusal of {len(errors[0])} characters"
    elif (out / "run.json").exists():
        yield "a refusal that left a run's record"
    elif odd := next((letter for letter in errors[0] if not letter.isprintable()), None):
        yield f"a refusal with {odd!r} in it"


def _not_finite_results(lines: list[str], out: Path) -> Iterator[str]:
    for line in lines:
        if "\x1b" in line:
            yield f"an escape sequence is printed: {line[:100]!r}"
        elif _NUMBER.search(line) and "WARNING" not in line:
            yield f"not finite, and printed: {line[:100]}"
    for file in sorted(out.rglob("*.json*")) if out.is_dir() else ():
        if _NUMBER.search(re.sub(r'"[^"]*"', '""', file.read_text(encoding="utf-8", errors="replace"))):
            yield f"not finite, and written to {file.name}"


def _not_finite(value: Any, where: str = "what was read", depth: int = 0) -> Iterator[str]:
    """Where a value holds NaN or infinity: numbers, arrays, tensors, and what dataclasses and containers hold."""
    if isinstance(value, float):
        if not math.isfinite(value):
            yield where
    elif hasattr(value, "isfinite") and hasattr(value, "is_floating_point"):
        if value.is_floating_point() and value.device.type != "meta" and not bool(value.isfinite().all()):
            yield where
    elif hasattr(value, "dtype") and hasattr(value, "shape"):
        import numpy as np

        if np.asarray(value).dtype.kind == "f" and not np.isfinite(value).all():
            yield where
    elif depth < 6:
        parts: Any = ()
        if isinstance(value, dict):
            parts = value.items()
        elif isinstance(value, list | tuple):
            parts = enumerate(value[:200])
        elif hasattr(value, "__dataclass_fields__"):
            parts = ((name, getattr(value, name)) for name in value.__dataclass_fields__)
        for name, part in parts:
            yield from _not_finite(part, f"{where}, {name}", depth + 1)


def _last_frame(lines: list[str]) -> str:
    """The last line of a traceback, with the last place in our sources."""
    places = [line.strip() for line in lines if re.match(r'\s+File ".*/(src/|tests/)', line)]
    ours = re.sub(r'File ".*/src/([^"]+)", line (\d+), in (\w+)', r"\1:\2 \3", places[-1]) if places else "?"
    return f"{lines[-1][:200]} at {ours}"


def _memory() -> int:
    """Resident bytes of this process."""
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _data() -> int:
    """Bytes that count towards the limit of data."""
    with open("/proc/self/status", encoding="ascii") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmData"))


def main(arguments: Sequence[str] | None = None) -> int:
    """``python -m tenfold.testing.fuzz FILE.py --inputs 2000``: a file with a function ``readings(folder)``."""
    import argparse
    import importlib.util
    import tempfile

    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--inputs", type=int, default=2000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, default=None, help="where the inputs of findings stay")
    parser.add_argument("--verbose", action="store_true", help="the whole tracebacks")
    options = parser.parse_args(arguments)
    sys.path.insert(0, str(options.file.parent))
    spec = importlib.util.spec_from_file_location(options.file.stem, options.file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    keep = options.keep or Path(tempfile.mkdtemp(prefix="tenfold-fuzz-"))
    made = keep / "good"
    keep.mkdir(parents=True, exist_ok=True)
    readings = module.readings(made)
    start, count = time.monotonic(), 0
    for finding in undamaged(readings, keep):
        typer.echo(finding)
        typer.echo(finding.more)
    for number in range(options.first, options.inputs):
        for finding in try_one(readings, keep, number, options.seed):
            count += 1
            typer.echo(finding)
            if options.verbose:
                typer.echo(finding.more)
    seconds = time.monotonic() - start
    typer.echo(f"{options.inputs - options.first} inputs, {count} findings, {seconds:.0f} s; in {keep}")
    return int(count > 0)


if __name__ == "__main__":
    sys.exit(main())
