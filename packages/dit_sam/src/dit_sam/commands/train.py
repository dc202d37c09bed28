"""`dit-sam train`: options into settings, a plan or a training, and what it says in the end."""

# Annotations are not deferred: typer evaluates them.

import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dit_sam.data.settings import DATA_TREE
from dit_sam.training.settings import TrainSettings
from tenfold import UserError
from tenfold.cli import SeedOption, SetOption, load_config
from tenfold.cli.app import console
from tenfold.cli.output import echo
from tenfold.cli.settings import checked
from tenfold.cli.verbs import absolute, new_folder

if TYPE_CHECKING:
    from rich.console import Group

    from dit_sam.training.plan import DryRun

EPILOG = (
    "Examples: [bold]dit-sam train --config mini --output runs/mini[/bold] · [bold]dit-sam train --config layer_wise "
    "--dry-run[/bold] · [bold]torchrun --standalone --nproc_per_node 4 -m dit_sam train --config layer_wise --data "
    "data/refer --sam sam_vit_b_01ec64.pth --bert bert-base-uncased --output runs/refcoco[/bold]"
)
CONFIG = "A YAML file, or a shipped one: mini, layer_wise, e2e, frozen, default_sam, vith, own, ..."


def train(
    config: Annotated[str, typer.Option(help=CONFIG)] = "mini",
    set_: SetOption = None,
    data: Annotated[Path | None, typer.Option(metavar="FOLDER", help=DATA_TREE)] = None,
    sam: Annotated[Path | None, typer.Option(metavar="FILE", help="SAM's checkpoint to start from.")] = None,
    bert: Annotated[Path | None, typer.Option(metavar="FOLDER", help="bert-base-uncased to start from.")] = None,
    model: Annotated[Path | None, typer.Option(metavar="FOLDER", help="A DIT model to start from.")] = None,
    output: Annotated[Path | None, typer.Option(metavar="FOLDER", help="Default: a new folder in runs/.")] = None,
    seed: SeedOption = 0,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last complete checkpoint.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would be done.")] = False,
) -> None:
    """Train on pictures, sentences and masks by the paper's recipe. Kept are the weights that score best on val.

    A killed training goes on with --resume, to the same bits. `torchrun` starts it on several GPUs or processes.
    """
    values = load_config(TrainSettings, config, set_ or ()).model_dump()
    for group, name, path in (("data", "folder", data), ("start", "sam", sam), ("start", "bert", bert)):
        if path is not None:
            values[group][name] = absolute(path)
    if model is not None:
        values["start"]["model"] = absolute(model)
    chosen = checked(TrainSettings, values, config)
    if dry_run:
        from dit_sam.training import plan

        console().print(plan_tables(plan.dry_run(chosen)))
        return
    if output is None and (resume or "WORLD_SIZE" in os.environ):
        raise UserError("no folder", "--output", "the folder of the training")
    output = output or new_folder("dit-sam", "train")
    logging.getLogger("dit_sam").setLevel(logging.INFO)

    from dit_sam.training.run import run_train

    trained = run_train(chosen, seed, output, resume)
    if int(os.environ.get("RANK", 0)) == 0:
        for name, value in trained.metrics.items():
            echo(f"{name}: {value:.2f}" if isinstance(value, float) else f"{name}: {value}")
        echo(f"wrote {trained.model}")


def plan_tables(dry: "DryRun") -> "Group":
    """What `--dry-run` prints."""
    from rich.console import Group
    from rich.table import Table

    its, plan = dry.plan.settings, dry.plan
    model = Table(title="Model", title_justify="left", show_header=False)
    model.add_row("variant", f"{dry.config.variant} at {dry.config.input_size} pixels")
    released = f" ({dry.parameters + dry.unused:,} in a release, with weights that nothing reads)" if dry.unused else ""
    model.add_row("parameters", f"{dry.parameters:,}{released}")
    counted = f" ({dry.trainable + dry.unused:,} as the authors count)" if dry.unused else ""
    model.add_row("trainable", f"{dry.trainable:,}{counted}")
    model.add_row("frozen", f"{its.freeze}{', text' if its.freeze_text else ''}")
    steps = Table(title="Training", title_justify="left", show_header=False)
    counted = "counted in the data" if dry.counted else "expected by the config"
    steps.add_row("objects in train", f"{plan.samples:,} ({counted})")
    steps.add_row("batch", f"{its.batch} sentences over all ranks")
    steps.add_row("steps", f"{plan.per_epoch:,} an epoch, {its.epochs} epochs, {plan.steps:,} in all")
    steps.add_row("optimiser", f"Adam{its.betas}, epsilon {its.epsilon:g}, clip {its.clip}")
    steps.add_row("average of weights", f"{its.average}")
    steps.add_row("precision", its.precision)
    rates = Table(title="Learning rate", title_justify="left")
    for column in ("step", "rate"):
        rates.add_column(column)
    for step in sorted({0, plan.warmup, plan.steps // 2, plan.steps - 1}):
        rates.add_row(f"{step:,}", f"{plan.rate(step):.4g}")
    return Group(model, steps, rates)
