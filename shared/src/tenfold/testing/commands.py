"""A package's command as a user types it, in this process: exit code, output, errors; what a refusal looks like."""

from __future__ import annotations

import contextlib
import io
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import typer

from tenfold.runs import RunRecord, atomic_write_json, read_json


@dataclass(frozen=True)
class Outcome:
    """What a command did.

    Attributes:
        code: its exit code. out, err: what it wrote. made: files that were not there before, below `where`.
    """

    code: int
    out: str
    err: str
    made: tuple[Path, ...] = ()


def run(main: Callable[[], None], *arguments: object, where: Path | None = None) -> Outcome:
    """Run a command in this process.

    Args:
        main: the entry point of the console script, ``<package>.commands.app:main``.
        arguments: words of the command line, without the command itself.
        where: the folder it is run in, whose new files are listed; None: here, and none are.
    """
    before = set(where.rglob("*")) if where is not None else set()
    out, err, code = io.StringIO(), io.StringIO(), 0
    here = contextlib.chdir(where) if where is not None else contextlib.nullcontext()
    with (
        here,
        mock.patch.object(sys, "argv", ["command", *map(str, arguments)]),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            main()
        except SystemExit as exit:
            code = exit.code if isinstance(exit.code, int) else int(exit.code is not None)
    made = sorted(set(where.rglob("*")) - before) if where is not None else []
    return Outcome(code, out.getvalue(), err.getvalue(), tuple(path for path in made if path.is_file()))


def refused(outcome: Outcome, *words: str) -> None:
    """The command said one line on standard error, with these words in it, ended with 2 and left no file behind."""
    lines = outcome.err.strip().splitlines()
    assert outcome.code == 2 and len(lines) == 1 and not outcome.out.strip(), outcome
    assert all(word in lines[0] for word in words), (words, lines[0])
    assert outcome.made == (), outcome.made


def all_refused(main: Callable[[], None], folder: Path, expected: Mapping[str, str]) -> None:
    """Every command line is `refused`, each in an empty folder of its own.

    Args:
        expected: words of the command line, without the command itself -> words of the one line that it says.
    """
    for number, (line, words) in enumerate(expected.items()):
        (where := folder / f"{number}").mkdir()
        try:
            refused(run(main, *line.split(), where=where), words)
        except AssertionError as error:
            raise AssertionError(f"{line}: {error}") from error


def verified_and_cited(main: Callable[[], None], run_folder: Path, *arguments: object, metric: str) -> RunRecord:
    """A verb's run is verified bit for bit and cited by its id; one whose record was changed is not.

    Args:
        main: as for `run`.
        run_folder: for the run.
        arguments: the verb and its options, but for --output.
        metric: a number of the record, which is falsified in the end.

    Returns:
        The record.
    """
    outcome = run(main, *arguments, "--output", run_folder)
    assert outcome.code == 0, outcome.err
    outcome = run(main, "verify", run_folder)
    assert outcome.code == 0 and "bit for bit" in outcome.out, outcome.out + outcome.err
    record = RunRecord.load(run_folder)
    assert record.id in run(main, "cite", run_folder).out
    assert metric in record.metrics, sorted(record.metrics)
    kept = read_json(run_folder / "run.json")
    atomic_write_json(run_folder / "run.json", {**kept, "metrics": {**record.metrics, metric: -1.0}})
    assert run(main, "verify", run_folder).code, f"{metric} was changed, and nobody noticed"
    return record


def readme_commands(readme: Path, command: str) -> list[list[str]]:
    """The command lines of a README's code blocks that call a command, as words; continued lines are one.

    Args:
        command: the console script's name, e.g. "llava-hr".
    """
    found = []
    for block in re.findall(r"^```(?:sh|bash|console)\n(.*?)^```", readme.read_text(encoding="utf-8"), re.M | re.S):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            while words and "=" in words[0]:  # environment
                words = words[1:]
            if words and Path(words[0]).name == command:
                found.append(words)
    return found


def commands_are_known(app: typer.Typer, lines: Iterable[list[str]]) -> set[str]:
    """Every command line has a verb of the application, with options that it takes; returns the verbs.

    Args:
        app: the package's.
        lines: words, the command's own name first: of `readme_commands`, or of a ledger.
    """
    commands, verbs = typer.main.get_command(app).commands, set()  # type: ignore[attr-defined]
    for _, verb, *arguments in lines:
        commands[verb].make_context(verb, list(arguments), resilient_parsing=False).close()
        verbs.add(verb)
    return verbs


def verbs(app: typer.Typer) -> set[str]:
    """The verbs of an application, the common ones included."""
    return set(typer.main.get_command(app).commands)  # type: ignore[attr-defined]


def answers_without(package: str, heavy: Iterable[str], verbs: Iterable[str]) -> str:
    """Import the package, ask for the help of these verbs and for the citation, in a new process; returns its output.

    Raises:
        AssertionError: one of the heavy libraries was loaded, or a command failed.
    """
    asked = [["--help"], *([verb, "--help"] for verb in verbs), ["cite"]]
    code = (
        f"import sys, {package}; from {package}.commands.app import main\n"
        f"for arguments in {asked!r}:\n"
        f"    sys.argv = [{package!r}, *arguments]\n"
        "    try: main()\n"
        "    except SystemExit as done: assert not done.code, arguments\n"
        f"loaded = sorted({set(heavy)!r} & set(sys.modules)); assert not loaded, loaded\n"
    )
    wide = {**os.environ, "COLUMNS": "200"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=wide)
    assert done.returncode == 0, done.stderr
    return done.stdout


@contextlib.contextmanager
def environment(**values: str | None) -> Iterator[None]:
    """Variables of the environment meanwhile; None removes one."""
    kept = {name: os.environ.get(name) for name in values}
    try:
        for name, value in values.items():
            os.environ.pop(name, None) if value is None else os.environ.__setitem__(name, value)
        yield
    finally:
        for name, value in kept.items():
            os.environ.pop(name, None) if value is None else os.environ.__setitem__(name, value)
