"""`fitprune eval`: its options, and the files that each benchmark consists of."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from fitprune.commands.recipe import RECIPE
from fitprune.evaluation.settings import EvalSettings
from tenfold.cli import SeedOption, SetOption
from tenfold.cli.app import console
from tenfold.cli.output import echo
from tenfold.cli.verbs import absolute, absolute_if_there, chosen, command_with, new_folder

DATA = "The benchmark's folder, for all: of a folder for each. The mini host needs none. Files: below."
EPILOG = (
    "Examples: [bold]fitprune eval --config mini[/bold] · [bold]fitprune eval llava-hf/llava-1.5-7b-hf --recipe "
    "llava-1.5-7b:60 --benchmark pope --data data/pope --output runs/pope[/bold] · on several GPUs: [bold]torchrun "
    "--nproc_per_node 8 -m fitprune eval ...[/bold]"
)


def _trees() -> Iterator[str]:
    from fitprune.evaluation.questions import PAPER

    yield " What --data holds, and the splits:\n"
    for name, one in PAPER.items():
        yield f" {name} ({one.title}; {', '.join(one.splits)})"
        yield "".join(f"   {line}\n" for line in one.tree.splitlines())


def evaluate(
    model: Annotated[str | None, typer.Argument(help="A folder, a hub id, or mini (the default).")] = None,
    config: Annotated[str | None, typer.Option(help="A YAML file, or a shipped one: mini, llava-1.5-7b-60.")] = None,
    set_: SetOption = None,
    benchmark: Annotated[str | None, typer.Option(help="By name, or all (the default) that the data hold.")] = None,
    data: Annotated[Path | None, typer.Option(metavar="FOLDER", help=DATA)] = None,
    split: Annotated[str | None, typer.Option(help="Default: the one that papers report.")] = None,
    recipe: Annotated[str | None, typer.Option(help=f"{RECIPE} Or none; for the mini host also a ratio.")] = None,
    rule: Annotated[str | None, typer.Option(help="Which tokens leave; default product, the paper's.")] = None,
    protocol: Annotated[str | None, typer.Option(help="llava (LLaVA-1.5's own prompts), processor or auto.")] = None,
    limit: Annotated[int | None, typer.Option(help="Ask only so many questions, spread over all of them.")] = None,
    batch: Annotated[int | None, typer.Option(help="Prompts at a time; default 8.")] = None,
    output: Annotated[Path | None, typer.Option(metavar="FOLDER", help="Default: a new one in runs/; resumes.")] = None,
    seed: SeedOption = 0,
    dtype: Annotated[str | None, typer.Option(help="auto, float32, bfloat16 or float16.")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda or cuda:N.")] = None,
    attention: Annotated[str | None, typer.Option(help="sdpa or eager.")] = None,
) -> None:
    """Answer a benchmark's questions under a recipe; score them, and count what pruning saved.

    Several processes share the questions when torchrun or accelerate starts them.

    A run that was killed goes on where it stopped when the same command is given again with its --output.
    """
    given: dict[str, Any] = {"model": model, "benchmark": benchmark, "split": split, "rule": rule}
    given |= {"recipe": absolute_if_there(recipe), "protocol": protocol, "limit": limit, "batch": batch}
    given |= {"dtype": dtype, "device": device, "attention": attention}
    given["data"] = absolute(data)
    settings = chosen(EvalSettings, "fitprune", config, set_, given)
    folder = output or new_folder("fitprune", "eval")

    from fitprune.commands.tables import eval_tables
    from fitprune.evaluation.run import run_eval

    evaluations = run_eval(settings, seed, folder, say=echo)
    if evaluations:
        console().print(eval_tables(evaluations))
        for one in evaluations:
            folder = one.files[-1].parent  # that of run.json, which comes last
            names = ", ".join(str(file.relative_to(folder)) for file in one.files)
            echo(f"wrote {folder}: {names}")


def add_to(app: typer.Typer) -> None:
    """Give the command its verb `eval`."""
    app.command("eval", cls=command_with(_trees), epilog=EPILOG)(evaluate)
