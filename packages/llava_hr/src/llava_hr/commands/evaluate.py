"""`llava-hr eval` and `llava-hr demo`: their options, and the files that each benchmark consists of."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from llava_hr.evaluation.settings import DemoSettings, EvalSettings
from tenfold import UserError
from tenfold.cli import SeedOption, SetOption, find_package_file, load_config
from tenfold.cli.app import console
from tenfold.cli.settings import checked

MODEL = "A folder (this package's or an official release), a hub id, or mini (the default)."
DATA = "The benchmark's folder, or LLaVA's playground/data/eval. The mini model needs none. Files: below."
EPILOG = (
    "Examples: [bold]llava-hr eval --config mini[/bold] · [bold]llava-hr eval llava-hr-7b-sft-1024 --benchmark textvqa "
    "--data playground/data/eval --dtype float16 --output runs/textvqa[/bold] · on several GPUs: [bold]torchrun "
    "--nproc_per_node 8 -m llava_hr eval ...[/bold]"
)
Dtype = Annotated[str | None, typer.Option(help="auto, float32, bfloat16 or float16 (the authors').")]
Device = Annotated[str | None, typer.Option(help="auto, cpu, cuda or cuda:N.")]
Attention = Annotated[str | None, typer.Option(help="sdpa or eager.")]


class CommandWithTrees(TyperCommand):
    """A command whose help ends with the files that each benchmark consists of."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        from llava_hr.evaluation.benchmarks import PAPER

        super().format_help(ctx, formatter)
        typer.echo(" What --data holds, the splits, and the folder's name in playground/data/eval:\n")
        for name, one in PAPER.items():
            splits = ", ".join(dict.fromkeys((one.split, *one.bench.splits)))
            typer.echo(f" {name} ({one.title}; {splits}; {one.folder})")
            typer.echo("".join(f"   {line}\n" for line in one.bench.tree.splitlines()))


def evaluate(
    model: Annotated[str | None, typer.Argument(help=MODEL)] = None,
    config: Annotated[str | None, typer.Option(help="A YAML file, or a shipped one: mini, 7b, x-13b.")] = None,
    set_: SetOption = None,
    benchmark: Annotated[str | None, typer.Option(help="By name, or all (the default) that the data hold.")] = None,
    data: Annotated[Path | None, typer.Option(metavar="FOLDER", help=DATA)] = None,
    split: Annotated[str | None, typer.Option(help="Default: the one that the paper reports.")] = None,
    limit: Annotated[int | None, typer.Option(help="Ask only the first so many questions.")] = None,
    batch: Annotated[int | None, typer.Option(help="Prompts at a time; default 8.")] = None,
    output: Annotated[Path | None, typer.Option(metavar="FOLDER", help="Default: a new one in runs/; resumes.")] = None,
    seed: SeedOption = 0,
    dtype: Dtype = None,
    device: Device = None,
    attention: Attention = None,
) -> None:
    """Answer a benchmark's questions and score them, beside the paper's numbers.

    Several processes share the questions when torchrun or accelerate starts them.

    A run that was killed goes on where it stopped when the same command is given again with its --output.
    """
    base = load_config(EvalSettings, shipped_config(config), set_ or ()) if config else EvalSettings()
    if set_ and not config:
        raise UserError("--set without --config", None, "--config mini --set key=value")
    given: dict[str, Any] = {"model": model, "benchmark": benchmark, "split": split, "limit": limit, "batch": batch}
    given |= {"dtype": dtype, "device": device, "attention": attention, "data": _absolute(data)}
    options = {name: value for name, value in given.items() if value is not None}
    chosen = checked(EvalSettings, base.model_dump() | options)
    folder = output or new_folder("eval")

    from llava_hr.commands.tables import eval_tables
    from llava_hr.evaluation.run import run_eval

    evaluations = run_eval(chosen, seed, folder, say=typer.echo)
    if evaluations:
        console().print(eval_tables(evaluations))
        for one in evaluations:
            folder = one.files[-1].parent  # that of run.json, which comes last
            names = ", ".join(str(file.relative_to(folder)) for file in one.files)
            typer.echo(f"wrote {folder}: {names}")


def demo(
    image: Annotated[Path | None, typer.Option(metavar="FILE", help="Any image; default: a small scene.")] = None,
    question: Annotated[str | None, typer.Option(help="About the image; default: the scene's own.")] = None,
    model: Annotated[str | None, typer.Option(help=MODEL)] = None,
    output: Annotated[Path | None, typer.Option(metavar="FOLDER", help="Default: a new folder in runs/.")] = None,
    seed: SeedOption = 0,
    dtype: Dtype = None,
    device: Device = None,
    attention: Attention = None,
) -> None:
    """Answer a question about an image; draw it at both resolutions, with the gates of the adapters."""
    given = {"image": _absolute(image), "question": question, "model": model, "dtype": dtype, "device": device}
    chosen = checked(DemoSettings, given | {"attention": attention})
    folder = output or new_folder("demo")

    from llava_hr.evaluation.demo import run_demo

    console().print(run_demo(chosen, seed, folder))


def add_to(app: typer.Typer) -> None:
    """Give the command its verbs `eval` and `demo`."""
    app.command("eval", cls=CommandWithTrees, epilog=EPILOG)(evaluate)
    example = 'Example: [bold]llava-hr demo --model llava-hr-7b-sft-1024 --image shelf.jpg --question "What?"[/bold]'
    app.command("demo", epilog=example)(demo)


def shipped_config(name: str) -> str | Path:
    """The file of a shipped configuration; other names as they are.

    Raises:
        UserError: neither a file's name nor a shipped configuration; lists those.
    """
    if Path(name).suffix in (".yaml", ".yml"):
        return name
    folder = find_package_file("llava_hr", "configs/eval")
    shipped = {} if folder is None else {file.stem: file for file in sorted(folder.glob("*.yaml"))}
    if name not in shipped:
        raise UserError("no such config", name, f"a .yaml file or one of: {', '.join(shipped)}")
    return shipped[name]


def _absolute(path: Path | None) -> str | None:
    return None if path is None else str(path.resolve())


def new_folder(verb: str) -> Path:
    """One in runs/ that is not there yet.

    Raises:
        UserError: each of several ranks would make its own.
    """
    from tenfold.runs.ranks import world_size

    if world_size() > 1:
        raise UserError("several ranks without a common folder", "--output", "--output FOLDER")
    number = 1
    while (folder := Path("runs", f"llava-hr-{verb}-{number}")).exists():
        number += 1
    return folder
