"""`dit-sam demo`."""

# Annotations are not deferred: typer evaluates them.

from pathlib import Path
from typing import Annotated

import typer

from dit_sam.commands.segment import MODEL
from dit_sam.evaluation.settings import DemoSettings
from tenfold.cli.app import console
from tenfold.cli.output import echo
from tenfold.cli.settings import DEVICES, checked
from tenfold.cli.verbs import absolute_if_there, new_folder

EPILOG = "Examples: [bold]dit-sam demo[/bold] · [bold]dit-sam demo --scenes 10 --output runs/demo[/bold]"


def demo(
    model: Annotated[str | None, typer.Option(help=MODEL)] = None,
    scenes: Annotated[int | None, typer.Option(help="Mini scenes; default 4.")] = None,
    output: Annotated[Path | None, typer.Option(metavar="FOLDER", help="Default: a new folder in runs/.")] = None,
    device: Annotated[str | None, typer.Option(help=DEVICES)] = None,
) -> None:
    """Segment what sentences mean in mini scenes that no training saw, with the mini model that ships."""
    from rich.table import Table

    from dit_sam.evaluation.demo import run_demo

    given = {"model": absolute_if_there(model), "scenes": scenes, "device": device}
    found = run_demo(checked(DemoSettings, given, "dit-sam demo"), output or new_folder("dit-sam", "demo"))
    table = Table("scene", "sentence", "IoU", "score")
    for row in found.rows:
        table.add_row(str(row["scene"]), row["text"], f"{row['IoU']:.2f}", f"{row['score']:.2f}")
    console().print(table)
    echo(f"mIoU {found.scores['mIoU']:.1f}, P@0.5 {found.scores['P@0.5']:.1f} of {len(found.rows)} sentences")
    echo(f"wrote {found.picture}")
