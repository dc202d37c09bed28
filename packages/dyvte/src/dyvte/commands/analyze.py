"""`dyvte analyze`, the three-stage study of a host, and `dyvte calibrate`, a threshold for a budget."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from dyvte.commands.options import (
    Attention,
    Device,
    Dtype,
    Gates,
    ImageFolder,
    Limit,
    Model,
    Output,
    Protocol,
    Samples,
)
from dyvte.evaluation.settings import AnalyzeSettings, CalibrateSettings
from tenfold.cli import SeedOption
from tenfold.cli.app import console
from tenfold.cli.output import echo
from tenfold.cli.settings import checked
from tenfold.cli.verbs import absolute, absolute_if_there, new_folder


def analyze(
    model: Model = None,
    samples: Samples = None,
    image_folder: ImageFolder = None,
    limit: Limit = None,
    batch: Annotated[int | None, typer.Option(help="Prompts at a time; default 8.")] = None,
    protocol: Protocol = None,
    output: Output = None,
    seed: SeedOption = 0,
    dtype: Dtype = None,
    device: Device = None,
    attention: Attention = None,
) -> None:
    """Study a host layer by layer: attention between image and text, its entropy, and answers under a manual exit."""
    given: dict[str, Any] = {
        "model": absolute_if_there(model),
        "samples": absolute(samples),
        "image_folder": absolute(image_folder),
    }
    given |= {"limit": limit, "batch": batch, "protocol": protocol, "dtype": dtype, "device": device}
    settings = checked(AnalyzeSettings, given | {"attention": attention})

    from dyvte.commands.tables import study_table
    from dyvte.evaluation.study import run_analyze

    found = run_analyze(settings, seed, output or new_folder("dyvte", "analyze"))
    console().print(study_table(found))
    echo("\n".join(f"wrote {file}" for file in found.files))


def calibrate(
    mean_exit: Annotated[float, typer.Option(help="The mean exit layer that is wanted, counted from 0.")],
    model: Model = None,
    gates: Gates = None,
    samples: Samples = None,
    image_folder: ImageFolder = None,
    limit: Limit = None,
    protocol: Protocol = None,
    seed: SeedOption = 0,
    dtype: Dtype = None,
    device: Device = None,
    attention: Attention = None,
) -> None:
    """Find the threshold at which the mean exit layer of some samples is the one that is wanted."""
    given: dict[str, Any] = {
        "model": absolute_if_there(model),
        "samples": absolute(samples),
        "image_folder": absolute(image_folder),
    }
    given |= {"gates": absolute_if_there(gates), "mean_exit": mean_exit, "limit": limit, "protocol": protocol}
    settings = checked(CalibrateSettings, given | {"dtype": dtype, "device": device, "attention": attention})

    from dyvte.evaluation.study import run_calibrate

    threshold, reached, count = run_calibrate(settings, seed)
    echo(f"threshold {threshold:.6g}: mean exit layer {reached:.2f} on {count} samples")


def add_to(app: typer.Typer) -> None:
    """Give the command its verbs `analyze` and `calibrate`."""
    example = "Example: [bold]dyvte analyze llava-hf/llava-1.5-7b-hf --samples llava.json --image-folder images[/bold]"
    app.command("analyze", epilog=example)(analyze)
    app.command("calibrate", epilog="Example: [bold]dyvte calibrate --mean-exit 2 --limit 64[/bold]")(calibrate)
