"""`inst-diff-edit train`: the mini model, which the paper does not have."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tenfold import UserError
from tenfold.cli import SeedOption
from tenfold.cli.output import echo
from tenfold.cli.verbs import new_folder

if TYPE_CHECKING:
    from inst_diff_edit.training.run import TrainSettings

TRAIN_EPILOG = (
    "Examples: [bold]inst-diff-edit train --output runs/mini[/bold] · [bold]inst-diff-edit train --dry-run[/bold]"
)


def train(
    config: Annotated[str, typer.Option(help="mini: the one model that is trained here.")] = "mini",
    output: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="For checkpoints, curves and the finished model; default: a new one."),
    ] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Optimiser steps; default: the shipped model's.")] = None,
    batch: Annotated[int | None, typer.Option(min=1, help="Pictures a step.")] = None,
    threads: Annotated[int, typer.Option(min=1, help="Of torch.")] = 1,
    checkpoint_every: Annotated[int, typer.Option(min=1, help="Steps between checkpoints.")] = 250,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last complete checkpoint.")] = False,
    wandb: Annotated[str | None, typer.Option(metavar="PROJECT", help="Also log to wandb, offline by default.")] = None,
    seed: SeedOption = 0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would be done.")] = False,
) -> None:
    """Train the mini diffusion model from nothing (the paper's method itself trains nothing)."""
    if config != "mini":
        raise UserError("nothing to train", f"--config {config}", "mini; the method itself trains nothing")
    if resume and output is None:
        raise UserError("no folder to go on in", "--resume", "--output FOLDER")

    from inst_diff_edit.training.run import TrainSettings, train

    chosen: dict[str, Any] = {"steps": steps, "batch": batch, "threads": threads}
    settings = TrainSettings(**{name: value for name, value in chosen.items() if value is not None})
    if dry_run:
        echo("\n".join(plan(settings, seed)))
        return
    output = output or new_folder("inst-diff-edit", "train")
    done = train(settings, seed, output, every=checkpoint_every, resume=resume, project=wandb)
    if done.metrics["resumed_from"]:
        echo(f"resumed after step {done.metrics['resumed_from']} of {settings.steps}")
    echo(f"wrote {output / 'model'}: loss {done.metrics['loss_of_the_last_100_steps']:.4f}")


def plan(settings: TrainSettings, seed: int) -> list[str]:
    """What a training would do, line by line."""
    from dataclasses import asdict

    from inst_diff_edit.costs import parameters
    from inst_diff_edit.miniature import model as mini
    from inst_diff_edit.training.run import PARTS

    pipe = mini.build(seed)
    counts = {part: parameters(getattr(pipe, part)) for part in ("unet", "text_encoder", "vae")}
    trained = sum(p.numel() for part in PARTS for p in getattr(pipe, part).parameters() if p.requires_grad)
    rows = {"stages": "1: the mini diffusion model (the method itself trains nothing)"}
    rows |= {f"parameters of {part}": f"{count:,}" for part, count in counts.items()}
    rows |= {"parameters": f"{sum(counts.values()):,}", "trainable": f"{trained:,}", "seed": f"{seed}"}
    rows |= {name.replace("_", " "): _written(value) for name, value in asdict(settings).items()}
    return [f"{name:<28}{value}" for name, value in rows.items()]


def _written(value: float | tuple[float, ...]) -> str:
    """ "6,000", or "80-540" of a pair."""
    return "-".join(f"{one:,}" for one in value) if isinstance(value, tuple) else f"{value:,}"
