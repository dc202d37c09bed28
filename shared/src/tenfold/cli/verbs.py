"""What the verbs of ten packages do alike: settings from config and options, new folders, help with trees."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from typer.core import TyperCommand

from tenfold.cli.config import load_config
from tenfold.cli.files import find_package_file
from tenfold.cli.output import echo
from tenfold.cli.settings import Model, checked
from tenfold.errors import UserError


def new_folder(command: str, verb: str) -> Path:
    """One in ``runs/`` that is not there yet: ``runs/<command>-<verb>-<number>``.

    Raises:
        UserError: each of several ranks would make its own.
    """
    if os.environ.get("WORLD_SIZE", "1") != "1":
        raise UserError("several ranks without a common folder", "--output", "--output FOLDER")
    number = 1
    while (folder := Path("runs", f"{command}-{verb}-{number}")).exists():
        number += 1
    return folder


def absolute(path: Path | str | None) -> str | None:
    """A path by its full name, so that `verify` finds it from anywhere; None stays None."""
    return None if path is None else str(Path(path).resolve())


def absolute_if_there(name: str | None) -> str | None:
    """Like `absolute` for what may also be a name, such as a hub id: what is no file or folder stays as it is."""
    return str(Path(name).resolve()) if name and Path(name).exists() else name


def shipped_config(package: str, name: str, folder: str = "configs/eval") -> str | Path:
    """The file of a shipped configuration; names of yaml files as they are.

    Args:
        package: import name.

    Raises:
        UserError: neither a file's name nor a shipped configuration; lists those.
    """
    if Path(name).suffix in (".yaml", ".yml"):
        return name
    found = find_package_file(package, folder)
    shipped = {} if found is None else {file.stem: file for file in sorted(found.glob("*.yaml"))}
    if name not in shipped:
        raise UserError("no such config", name, f"a .yaml file or one of: {', '.join(shipped)}")
    return shipped[name]


def chosen(
    settings: type[Model],
    package: str,
    config: str | None,
    changes: Sequence[str] | None,
    given: dict[str, Any],
    folder: str = "configs/eval",
) -> Model:
    """A verb's settings: its config's, changed by ``--set``, and above them the options that were given (not None).

    Args:
        folder: where the verb's shipped configurations are.

    Raises:
        UserError: ``--set`` without ``--config``, no such config, a value that does not fit.
    """
    if changes and not config:
        raise UserError("--set without --config", None, "--config mini --set key=value")
    base = load_config(settings, shipped_config(package, config, folder), changes or ()) if config else settings()
    options = {name: value for name, value in given.items() if value is not None}
    return checked(settings, base.model_dump() | options)


def command_with(ending: Callable[[], Iterable[str]]) -> type[TyperCommand]:
    """A command whose help ends with these lines, such as the files that each benchmark consists of.

    Args:
        ending: gives the lines; called when the help is shown.
    """

    class CommandWithEnding(TyperCommand):
        def format_help(self, ctx: Any, formatter: Any) -> None:
            super().format_help(ctx, formatter)
            for line in ending():
                echo(line)

    return CommandWithEnding


def benchmark_trees(benchmarks: Mapping[str, Any]) -> Iterator[str]:
    """The lines of a help that say what each benchmark's folder holds.

    Args:
        benchmarks: name -> what has `title`, `split`, `folder`, and `bench` with `splits` and `tree`.
    """
    yield " What --data holds, the splits, and the folder's name in playground/data/eval:\n"
    for name, one in benchmarks.items():
        splits = ", ".join(dict.fromkeys((one.split, *one.bench.splits)))
        yield f" {name} ({one.title}; {splits}; {one.folder})"
        yield "".join(f"   {line}\n" for line in one.bench.tree.splitlines())


def say_written(evaluations: Iterable[Any]) -> None:
    """A line for each evaluation with what it wrote (`files`, of which run.json comes last) and where."""
    for one in evaluations:
        folder = one.files[-1].parent
        echo(f"wrote {folder}: {', '.join(str(file.relative_to(folder)) for file in one.files)}")
