"""Options that several verbs take."""

# Annotations are not deferred: typer evaluates them.

from pathlib import Path
from typing import Annotated

import typer

from tenfold.cli.settings import DEVICES

Device = Annotated[str | None, typer.Option(help=DEVICES)]
Output = Annotated[Path | None, typer.Option(metavar="FOLDER", help="Default: a new folder in runs/.")]
Threshold = Annotated[float | None, typer.Option(help="Least weight of a passed cell; default: 1 / P of P cells.")]


def names(files: list[Path] | None) -> list[str]:
    return [str(path.resolve()) for path in files or ()]
