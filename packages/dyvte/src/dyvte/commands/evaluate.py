"""`dyvte eval`: its options, and the files that each benchmark consists of."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from dyvte.commands.options import (
    Attention,
    CompactEvery,
    Config,
    Device,
    Dtype,
    ExitAt,
    Fastv,
    Gates,
    Limit,
    Model,
    Output,
    Protocol,
    Threshold,
)
from dyvte.evaluation.settings import EvalSettings
from tenfold.cli import SeedOption, SetOption
from tenfold.cli.app import console
from tenfold.cli.output import echo
from tenfold.cli.verbs import absolute, absolute_if_there, chosen, command_with, new_folder

DATA = "The benchmark's folder, for all: of a folder for each. The mini host needs none. Files: below."
EPILOG = (
    "Examples: [bold]dyvte eval --config mini[/bold] · [bold]dyvte eval llava-hf/llava-1.5-7b-hf --gates runs/7b/gates "
    "--benchmark pope --data data/pope --output runs/pope[/bold] · on several GPUs: [bold]torchrun --nproc_per_node 8 "
    "-m dyvte eval ...[/bold]"
)


def _trees() -> Iterator[str]:
    from tenfold.data.benchmarks import BENCHMARKS

    yield " What --data holds, and the splits:\n"
    for name, one in BENCHMARKS.items():
        yield f" {name} ({one.title}; {', '.join(one.splits)})"
        yield "".join(f"   {line}\n" for line in one.tree.splitlines())


def evaluate(
    model: Model = None,
    config: Config = None,
    set_: SetOption = None,
    gates: Gates = None,
    threshold: Threshold = None,
    exit_at: ExitAt = None,
    fastv: Fastv = None,
    compact_every: CompactEvery = None,
    benchmark: Annotated[str | None, typer.Option(help="By name, or all (the default) that the data hold.")] = None,
    data: Annotated[Path | None, typer.Option(metavar="FOLDER", help=DATA)] = None,
    split: Annotated[str | None, typer.Option(help="Default: the benchmark's first.")] = None,
    protocol: Protocol = None,
    limit: Limit = None,
    batch: Annotated[int | None, typer.Option(help="Prompts at a time; default 8.")] = None,
    output: Output = None,
    seed: SeedOption = 0,
    dtype: Dtype = None,
    device: Device = None,
    attention: Attention = None,
) -> None:
    """Answer a benchmark's questions with an exit; score them, and count what it saved.

    Several processes share the questions when torchrun starts them. A run that was killed goes on where it stopped
    when the same command is given again with its --output.
    """
    given: dict[str, Any] = {"model": absolute_if_there(model), "gates": absolute_if_there(gates)}
    given |= {"threshold": threshold, "exit_at": exit_at, "fastv": fastv, "compact_every": compact_every}
    given |= {"benchmark": benchmark, "data": absolute(data), "split": split, "protocol": protocol, "limit": limit}
    given |= {"batch": batch, "dtype": dtype, "device": device, "attention": attention}
    settings = chosen(EvalSettings, "dyvte", config, set_, given)

    from dyvte.commands.tables import eval_table
    from dyvte.evaluation.run import run_eval

    evaluations = run_eval(settings, seed, output or new_folder("dyvte", "eval"), say=echo)
    if evaluations:
        console().print(eval_table(evaluations))
        for one in evaluations:
            echo(f"wrote {one.files[-1].parent}")


def add_to(app: typer.Typer) -> None:
    """Give the command its verb `eval`."""
    app.command("eval", cls=command_with(_trees), epilog=EPILOG)(evaluate)
