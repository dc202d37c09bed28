"""Verbs of `inst-diff-edit` beside editing: train, and eval and bench from `cli_eval`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from inst_diff_edit import cli_eval
from tenfold.cli import Experiments, SeedOption


def experiments() -> Experiments:
    """What `claims --train` does."""
    from inst_diff_edit.mini_claims import experiments

    return experiments()


def register(app: typer.Typer) -> None:
    """Add the verbs to the package's command."""
    app.command(epilog="Example: [bold]inst-diff-edit train --output runs/mini[/bold]")(train)
    app.command(name="eval", epilog=cli_eval.EVAL_EPILOG)(cli_eval.evaluate)
    app.command(epilog=cli_eval.BENCH_EPILOG)(cli_eval.bench)


def train(
    output: Annotated[Path, typer.Option(metavar="FOLDER", help="For checkpoints, curves and the finished model.")],
    steps: Annotated[int | None, typer.Option(min=1, help="Optimiser steps; default: the shipped model's.")] = None,
    batch: Annotated[int | None, typer.Option(min=1, help="Pictures a step.")] = None,
    threads: Annotated[int, typer.Option(min=1, help="Of torch.")] = 1,
    checkpoint_every: Annotated[int, typer.Option(min=1, help="Steps between checkpoints.")] = 250,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last complete checkpoint.")] = False,
    wandb: Annotated[str | None, typer.Option(metavar="PROJECT", help="Also log to wandb, offline by default.")] = None,
    seed: SeedOption = 0,
) -> None:
    """Train the mini diffusion model from nothing (the paper's method itself trains nothing)."""
    from inst_diff_edit.train_mini import TrainSettings, train

    chosen = {"steps": steps, "batch": batch, "threads": threads}
    settings = TrainSettings(**{name: value for name, value in chosen.items() if value is not None})
    done = train(settings, seed, output, every=checkpoint_every, resume=resume, project=wandb)
    if done.metrics["resumed_from"]:
        typer.echo(f"resumed after step {done.metrics['resumed_from']} of {settings.steps}")
    typer.echo(f"wrote {output / 'model'}: loss {done.metrics['loss_of_the_last_100_steps']:.4f}")
