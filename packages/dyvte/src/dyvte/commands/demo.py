"""`dyvte demo`: one question, dense and with an exit."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from dyvte.commands.options import Attention, Device, Dtype, ExitAt, Gates, Output, Threshold
from dyvte.evaluation.settings import DemoSettings
from tenfold.cli import SeedOption
from tenfold.cli.app import console
from tenfold.cli.settings import checked
from tenfold.cli.verbs import absolute, absolute_if_there, new_folder


def demo(
    image: Annotated[Path | None, typer.Option(metavar="FILE", help="Any image; default: a mini world scene.")] = None,
    question: Annotated[str | None, typer.Option(help="About the image; default: the scene's own.")] = None,
    model: Annotated[str | None, typer.Option(help="A folder, a hub id, or mini (the default).")] = None,
    gates: Gates = None,
    threshold: Threshold = None,
    exit_at: ExitAt = None,
    output: Output = None,
    seed: SeedOption = 0,
    dtype: Dtype = None,
    device: Device = None,
    attention: Attention = None,
) -> None:
    """Answer a question with and without an exit, and show what every gate said."""
    given: dict[str, Any] = {"image": absolute(image), "question": question, "model": absolute_if_there(model)}
    given |= {"gates": absolute_if_there(gates), "threshold": threshold, "exit_at": exit_at}
    given |= {"dtype": dtype, "device": device, "attention": attention}
    settings = checked(DemoSettings, given)

    from dyvte.commands.tables import demo_table
    from dyvte.evaluation.demo import run_demo

    console().print(demo_table(run_demo(settings, seed, output or new_folder("dyvte", "demo"))))


def add_to(app: typer.Typer) -> None:
    """Give the command its verb `demo`."""
    app.command("demo", epilog='Example: [bold]dyvte demo --image cat.jpg --question "What is it?"[/bold]')(demo)
