"""`python -m tenfold.ledger.report --output report`: evaluate the installed papers, write the report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tenfold.cli.app import main
from tenfold.ledger.pages import collect_and_render

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="rich")


@app.command(epilog="Example: [bold]python -m tenfold.ledger.report --output report[/bold]")
def report(
    output: Annotated[
        Path, typer.Option("--output", metavar="FOLDER", help="A new folder, or an earlier report.")
    ] = Path("report"),
) -> None:
    """Write the static report of the ten papers and print the path of its first page."""
    typer.echo(collect_and_render(output).resolve())


if __name__ == "__main__":
    main(app)
