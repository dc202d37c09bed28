"""`e3-facenet train` and `convert`: options into settings, a plan or a training, and what they say in the end."""

# Annotations are not deferred: typer evaluates them.

import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from e3_facenet.commands.options import Output
from tenfold import UserError
from tenfold.cli import SeedOption, SetOption, load_config
from tenfold.cli.app import console
from tenfold.cli.output import echo
from tenfold.cli.settings import checked
from tenfold.cli.verbs import absolute, absolute_if_there, new_folder

if TYPE_CHECKING:
    from rich.console import Group

    from e3_facenet.training.plan import Plan

DATA = """A folder with dataset.json (or dataset2.json): {"train": {"filenames": [...], "captions": [...]}, "test": ...}
and a folder of pictures (images_512); or with captions.jsonl {"file", "text", "split"}. No camera poses are needed."""
TRAIN_EPILOG = (
    "Examples: [bold]e3-facenet train --config mini --output runs/mini[/bold] · [bold]e3-facenet train --config "
    "mm-celeba --dry-run[/bold] · [bold]torchrun --nproc_per_node 4 -m e3_facenet train --config mm-celeba "
    "--data MM-CelebA-HQ --start ffhq_512.pkl --output runs/mm[/bold]"
)
CONVERT_EPILOG = (
    "Examples: [bold]e3-facenet convert _final_model.pkl e3-facenet-512[/bold] · [bold]e3-facenet convert "
    "e3-facenet-512 back --to official[/bold]. Nothing that a pickle holds is run."
)


def train(
    config: Annotated[str, typer.Option(help="A YAML file, or a shipped one: mini, mm-celeba.")] = "mini",
    set_: SetOption = None,
    data: Annotated[Path | None, typer.Option(metavar="FOLDER", help=DATA)] = None,
    start: Annotated[
        Path | None,
        typer.Option("--start", "--init", metavar="FILE", help="Weights to start from: StyleNeRF's or E3-FaceNet's."),
    ] = None,
    output: Output = None,
    seed: SeedOption = 0,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last complete checkpoint.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would be done.")] = False,
) -> None:
    """Train by the paper's recipe: four phases an iteration, an averaged generator. The mini world needs no data.

    A killed training goes on with --resume, to the same bits. `torchrun` starts it on several GPUs or processes.
    """
    from e3_facenet.training.settings import TrainSettings

    values = load_config(TrainSettings, config, set_ or ()).model_dump()
    if data is not None:
        values["data"]["folder"] = absolute(data)
    if start is not None:
        values["start"] = absolute(start)
    values["clip"] = absolute_if_there(values["clip"])
    settings = checked(TrainSettings, values, config)
    if dry_run:
        from e3_facenet.training.plan import plan

        console().print(plan_tables(plan(settings)))
        return
    if output is None and resume:
        raise UserError("no folder", "--output", "the folder of the training")
    logging.getLogger("e3_facenet").setLevel(logging.INFO)

    from e3_facenet.training.run import run_train

    trained = run_train(settings, seed, output or new_folder("e3-facenet", "train"), resume)
    if int(os.environ.get("RANK", 0)) == 0:
        for name, value in trained.metrics.items():
            echo(f"{name}: {value:.4g}" if isinstance(value, float) else f"{name}: {value}")
        echo(f"wrote {trained.model}")


def plan_tables(plan: "Plan") -> "Group":
    """What `--dry-run` prints."""
    from rich.console import Group
    from rich.table import Table

    networks = Table(title="Parameters, all trained; CLIP is frozen", title_justify="left", show_header=False)
    for name, count in plan.networks.items():
        networks.add_row(name, f"{count:,}")
    schedule = Table(title="Training", title_justify="left", show_header=False)
    for row in plan.schedule.items():
        schedule.add_row(*row)
    phases = Table(title="Phases of an iteration", title_justify="left")
    for column in ("phase", "when", "what"):
        phases.add_column(column)
    for phase in plan.phases:
        phases.add_row(*phase)
    return Group(networks, schedule, phases)


def convert(
    source: Annotated[Path, typer.Argument(metavar="SOURCE", help="The official pickle; with --to official a folder.")],
    output: Annotated[Path, typer.Argument(metavar="OUTPUT", help="A new folder.")],
    to: Annotated[
        Literal["tenfold", "official"], typer.Option(help="Official names as safetensors, or this package's.")
    ] = "tenfold",
    clip: Annotated[str | None, typer.Option(help="The CLIP that config.json names.")] = None,
    heads: Annotated[int, typer.Option(min=1, help="Of the enhancers' attention, which no weight tells.")] = 8,
) -> None:
    """An official release into a folder of this package, or back to official names."""
    if to == "official":
        from e3_facenet.checkpoints.convert import convert_back

        echo(f"wrote {convert_back(source, output)}")
        return
    from e3_facenet.checkpoints.convert import convert as into_ours

    config = into_ours(source, output, clip, heads)
    echo(f"wrote {output}: {config.resolution} pixels, {len(config.blocks)} upsampling blocks")
