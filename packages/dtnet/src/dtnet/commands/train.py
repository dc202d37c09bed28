"""`dtnet train`: options into settings, a plan or a training, and what it says in the end."""

# Annotations are not deferred: typer evaluates them.

import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dtnet.training.settings import TrainSettings
from tenfold import UserError
from tenfold.cli import SeedOption, SetOption, load_config
from tenfold.cli.app import console
from tenfold.cli.output import echo
from tenfold.cli.settings import checked
from tenfold.cli.verbs import new_folder

if TYPE_CHECKING:
    from rich.console import Group

    from dtnet.training.plan import DryRun

DATA = """A folder with the data set in COCO's layout: dataset_coco.json (Karpathy's captions and splits; or COCO's
captions_{train,val}2014.json with coco_{train,restval,dev,test}_ids.npy), the h5 file of grid features with an array
<image id>_grids or <image id>_features of 49 rows an image, and the vocabulary. The config names the files."""
EPILOG = (
    "Examples: [bold]dtnet train --config mini --output runs/mini[/bold] · [bold]dtnet train --config coco "
    "--dry-run[/bold] · [bold]torchrun --nproc_per_node 2 -m dtnet train --config coco --data coco --output "
    "runs/coco[/bold]"
)


def train(
    config: Annotated[str, typer.Option(help="A YAML file, or a shipped one: mini, coco.")] = "mini",
    set_: SetOption = None,
    data: Annotated[Path | None, typer.Option(metavar="FOLDER", help=DATA)] = None,
    output: Annotated[Path | None, typer.Option(metavar="FOLDER", help="Default: a new folder in runs/.")] = None,
    seed: SeedOption = 0,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last complete checkpoint.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would be done.")] = False,
    stages: Annotated[str | None, typer.Option(help="xe, scst, or xe,scst.")] = None,
) -> None:
    """Train a captioner: cross entropy, then self-critical on CIDEr-D. Kept are the weights that caption val best.

    A killed training goes on with --resume, to the same bits. `torchrun` starts it on several GPUs or processes.
    """
    chosen = load_config(TrainSettings, config, set_ or ())
    values = chosen.model_dump()
    if data is not None:
        values["data"]["folder"] = str(data.resolve())
    if stages is not None:
        values["stages"] = tuple(name.strip() for name in stages.split(","))
    chosen = checked(TrainSettings, values, "--stages" if stages else config)
    if dry_run:
        from dtnet.training import plan

        console().print(plan_tables(plan.dry_run(chosen)))
        return
    if output is None and (resume or "WORLD_SIZE" in os.environ):
        raise UserError("no folder", "--output", "the folder of the training")
    output = output or new_folder("dtnet", "train")
    logging.getLogger("dtnet").setLevel(logging.INFO)

    from dtnet.training.run import run_train

    trained = run_train(chosen, seed, output, resume)
    if int(os.environ.get("RANK", 0)) == 0:
        for name, value in trained.metrics.items():
            echo(f"{name}: {value:.2f}" if isinstance(value, float) else f"{name}: {value}")
        echo(f"wrote {trained.model}")


def plan_tables(dry: "DryRun") -> "Group":
    """What `--dry-run` prints."""
    from rich.console import Group
    from rich.table import Table

    model = Table(title="Model", title_justify="left", show_header=False)
    model.add_row("parameters", f"{dry.parameters:,}")
    model.add_row("trainable", f"{dry.trainable:,}")
    counted = "counted in the data" if dry.counted else "expected by the config"
    model.add_row("vocabulary", f"{dry.words:,} words ({counted})")
    stages = Table(title="Stages", title_justify="left")
    for column in ("stage", "items in train", "batch", "steps an epoch", "epochs", "steps", "optimiser"):
        stages.add_column(column)
    for stage in dry.stages:
        unit = "captions" if stage.name == "xe" else "images"
        batch = f"{stage.size} captions" if stage.name == "xe" else f"{stage.size} images x {stage.beams} beams"
        betas = "Adam({}, {})".format(*stage.settings.betas)
        counts = (f"{stage.items:,} {unit}", batch, f"{stage.steps:,}", f"{stage.settings.epochs}")
        stages.add_row(stage.name, *counts, f"{stage.end - stage.first:,}", betas)
    rates = Table(title="Learning rate", title_justify="left")
    for column in ("stage", "epochs", "rate"):
        rates.add_column(column)
    for stage, epochs, rate in dry.rates():
        rates.add_row(stage.name, epochs, rate)
    return Group(model, stages, rates)
