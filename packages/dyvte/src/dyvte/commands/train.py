"""`dyvte train`: the gates of a frozen host."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from dyvte.commands.options import Attention, Config, Device, Dtype, ImageFolder, Limit, Model, Protocol, Samples
from dyvte.training.settings import TrainSettings
from tenfold.cli import SeedOption, SetOption
from tenfold.cli.output import echo
from tenfold.cli.verbs import absolute, absolute_if_there, chosen, new_folder

EPILOG = (
    "Examples: [bold]dyvte train --config mini --output runs/mini[/bold] · [bold]dyvte train --config llava-1.5-7b "
    "--samples llava_v1_5_mix665k.json --image-folder images --dry-run[/bold] · on several GPUs: [bold]torchrun "
    "--nproc_per_node 8 -m dyvte train ...[/bold]"
)


def train(
    model: Model = None,
    config: Config = None,
    set_: SetOption = None,
    samples: Samples = None,
    image_folder: ImageFolder = None,
    limit: Limit = None,
    protocol: Protocol = None,
    output: Annotated[Path | None, typer.Option(metavar="FOLDER", help="For gates and record; resumes.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would be trained, and stop.")] = False,
    seed: SeedOption = 0,
    dtype: Dtype = None,
    device: Device = None,
    attention: Attention = None,
) -> None:
    """Train the gates of a host, which itself stays as it is.

    A training that was killed goes on where it stopped when the same command is given again with its --output.
    """
    given: dict[str, Any] = {
        "model": absolute_if_there(model),
        "samples": absolute(samples),
        "image_folder": absolute(image_folder),
    }
    given |= {"limit": limit, "protocol": protocol, "dtype": dtype, "device": device, "attention": attention}
    settings = chosen(TrainSettings, "dyvte", config, set_, given, "configs")

    from dyvte.training import run

    if dry_run:
        echo("\n".join(run.plan_of(settings, seed).lines()))
        return
    trained = run.run_train(settings, seed, output or new_folder("dyvte", "train"))
    if trained.resumed:
        echo(f"went on after step {trained.resumed}")
    metrics = trained.metrics
    echo(f"{metrics['steps']} steps, loss {metrics['loss']:.3f}, exit labels {metrics['exit_labels']:.0%}")
    echo(f"wrote {trained.folder}")


def add_to(app: typer.Typer) -> None:
    """Give the command its verb `train`."""
    app.command("train", epilog=EPILOG)(train)
