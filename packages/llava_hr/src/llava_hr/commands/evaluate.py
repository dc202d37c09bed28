"""`llava-hr eval` and `llava-hr demo`: their options, and the files that each benchmark consists of."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from llava_hr.evaluation.settings import DemoSettings, EvalSettings
from tenfold.cli import SeedOption, SetOption
from tenfold.cli.app import console
from tenfold.cli.output import echo
from tenfold.cli.settings import checked
from tenfold.cli.verbs import absolute, benchmark_trees, chosen, command_with, new_folder, say_written

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


def _trees() -> Iterator[str]:
    from llava_hr.evaluation.benchmarks import PAPER

    return benchmark_trees(PAPER)


def evaluate(
    model: Annotated[str | None, typer.Argument(help=MODEL)] = None,
    config: Annotated[str | None, typer.Option(help="A YAML file, or a shipped one: mini, 7b, x-13b.")] = None,
    set_: SetOption = None,
    benchmark: Annotated[str | None, typer.Option(help="By name, or all (the default) that the data hold.")] = None,
    data: Annotated[Path | None, typer.Option(metavar="FOLDER", help=DATA)] = None,
    split: Annotated[str | None, typer.Option(help="Default: the one that the paper reports.")] = None,
    limit: Annotated[int | None, typer.Option(help="Ask only so many questions, spread over all of them.")] = None,
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
    given: dict[str, Any] = {"model": model, "benchmark": benchmark, "split": split, "limit": limit, "batch": batch}
    given |= {"dtype": dtype, "device": device, "attention": attention, "data": absolute(data)}
    settings = chosen(EvalSettings, "llava_hr", config, set_, given)
    folder = output or new_folder("llava-hr", "eval")

    from llava_hr.commands.tables import eval_tables
    from llava_hr.evaluation.run import run_eval

    evaluations = run_eval(settings, seed, folder, say=echo)
    if evaluations:
        console().print(eval_tables(evaluations))
        say_written(evaluations)


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
    given = {"image": absolute(image), "question": question, "model": model, "dtype": dtype, "device": device}
    chosen = checked(DemoSettings, given | {"attention": attention})
    folder = output or new_folder("llava-hr", "demo")

    from llava_hr.evaluation.demo import run_demo

    console().print(run_demo(chosen, seed, folder))


def add_to(app: typer.Typer) -> None:
    """Give the command its verbs `eval` and `demo`."""
    app.command("eval", cls=command_with(_trees), epilog=EPILOG)(evaluate)
    example = 'Example: [bold]llava-hr demo --model llava-hr-7b-sft-1024 --image shelf.jpg --question "What?"[/bold]'
    app.command("demo", epilog=example)(demo)
