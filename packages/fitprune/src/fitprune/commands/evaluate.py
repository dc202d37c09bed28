"""`fitprune eval`: its options, and the files that each benchmark consists of."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from fitprune.commands.recipe import RECIPE
from fitprune.evaluation.settings import EvalSettings
from tenfold import UserError
from tenfold.cli import SeedOption, SetOption, find_package_file, load_config
from tenfold.cli.app import console
from tenfold.cli.settings import checked

DATA = "The benchmark's folder, for all: of a folder for each. The mini host needs none. Files: below."
EPILOG = (
    "Examples: [bold]fitprune eval --config mini[/bold] · [bold]fitprune eval llava-hf/llava-1.5-7b-hf --recipe "
    "llava-1.5-7b:60 --benchmark pope --data data/pope --output runs/pope[/bold] · on several GPUs: [bold]torchrun "
    "--nproc_per_node 8 -m fitprune eval ...[/bold]"
)


class CommandWithTrees(TyperCommand):
    """A command whose help ends with the files that each benchmark consists of."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        from tenfold.data.benchmarks import BENCHMARKS

        super().format_help(ctx, formatter)
        typer.echo(" What --data holds, and the splits:\n")
        for name, one in BENCHMARKS.items():
            typer.echo(f" {name} ({one.title}; {', '.join(one.splits)})")
            typer.echo("".join(f"   {line}\n" for line in one.tree.splitlines()))


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
    limit: Annotated[int | None, typer.Option(help="Ask only the first so many questions.")] = None,
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
    base = load_config(EvalSettings, shipped_config(config), set_ or ()) if config else EvalSettings()
    if set_ and not config:
        raise UserError("--set without --config", None, "--config mini --set key=value")
    given: dict[str, Any] = {"model": model, "benchmark": benchmark, "split": split, "rule": rule}
    given |= {"recipe": _recipe(recipe), "protocol": protocol, "limit": limit, "batch": batch}
    given |= {"dtype": dtype, "device": device, "attention": attention}
    given["data"] = None if data is None else str(data.resolve())
    options = {name: value for name, value in given.items() if value is not None}
    chosen = checked(EvalSettings, base.model_dump() | options)
    folder = output or _new_folder()

    from fitprune.commands.tables import eval_tables
    from fitprune.evaluation.run import run_eval

    evaluations = run_eval(chosen, seed, folder, say=typer.echo)
    if evaluations:
        console().print(eval_tables(evaluations))
        for one in evaluations:
            folder = one.files[-1].parent  # that of run.json, which comes last
            names = ", ".join(str(file.relative_to(folder)) for file in one.files)
            typer.echo(f"wrote {folder}: {names}")


def add_to(app: typer.Typer) -> None:
    """Give the command its verb `eval`."""
    app.command("eval", cls=CommandWithTrees, epilog=EPILOG)(evaluate)


def shipped_config(name: str) -> str | Path:
    """The file of a shipped configuration; other names as they are.

    Raises:
        UserError: neither a file's name nor a shipped configuration; lists those.
    """
    if Path(name).suffix in (".yaml", ".yml"):
        return name
    folder = find_package_file("fitprune", "configs/eval")
    shipped = {} if folder is None else {file.stem: file for file in sorted(folder.glob("*.yaml"))}
    if name not in shipped:
        raise UserError("no such config", name, f"a .yaml file or one of: {', '.join(shipped)}")
    return shipped[name]


def _recipe(text: str | None) -> str | None:
    return str(Path(text).resolve()) if text and Path(text).is_file() else text


def _new_folder() -> Path:
    from fitprune.ranks import world_size

    if world_size() > 1:
        raise UserError("several ranks without a common folder", "--output", "--output FOLDER")
    number = 1
    while (folder := Path("runs", f"fitprune-eval-{number}")).exists():
        number += 1
    return folder
