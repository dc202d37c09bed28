"""`dtnet demo`: captions, and a picture of the paths."""

# Annotations are not deferred: typer evaluates them.

from pathlib import Path
from typing import Annotated, Any

import typer

from dtnet.commands.options import Device, Output, Threshold, names
from tenfold.cli.app import console
from tenfold.cli.settings import checked
from tenfold.cli.verbs import new_folder

DEMO_EPILOG = "Examples: [bold]dtnet demo[/bold] · [bold]dtnet demo --image photo.jpg --model runs/own/model[/bold]"


def demo(
    image: Annotated[list[Path] | None, typer.Option(metavar="FILE", help="An image; may be repeated.")] = None,
    model: Annotated[Path | None, typer.Option(metavar="FOLDER", help="Default: the mini model that ships.")] = None,
    scenes: Annotated[int | None, typer.Option(help="Mini scenes, where no image is named; default 6.")] = None,
    beams: Annotated[int | None, typer.Option(help="Of the search; default 5.")] = None,
    threshold: Threshold = None,
    output: Output = None,
    device: Device = None,
) -> None:
    """Caption held-out mini scenes with the mini model that ships, or an image; with a picture of the paths."""
    from dtnet.evaluation.demo import DemoSettings, run_demo

    given: dict[str, Any] = {"images": tuple(names(image)), "model": None if model is None else str(model.resolve())}
    given |= {"scenes": scenes, "beams": beams, "threshold": threshold, "device": device}
    console().print(run_demo(checked(DemoSettings, given, "dtnet demo"), output or new_folder("dtnet", "demo")))
