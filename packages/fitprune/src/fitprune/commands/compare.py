"""`fitprune compare` and `fitprune analyze`: their options."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from fitprune.commands.recipe import RECIPE
from fitprune.evaluation.settings import COMPARED, AnalyzeSettings, CompareSettings
from tenfold.cli import SeedOption
from tenfold.cli.app import console
from tenfold.cli.output import echo
from tenfold.cli.settings import checked
from tenfold.cli.verbs import absolute

SAMPLES = "JSON lines: question_id, image, text and, where known, answer and category."
Samples = Annotated[Path | None, typer.Option(metavar="FILE", help=SAMPLES)]
Images = Annotated[Path | None, typer.Option(metavar="FOLDER", help="What `image` is relative to.")]
Model = Annotated[str | None, typer.Argument(help="A folder, a hub id, or mini (the default).")]
Output = Annotated[Path, typer.Option(metavar="FOLDER", help="For results and record.")]
Limit = Annotated[int | None, typer.Option(help="Only so many.")]
Device = Annotated[str | None, typer.Option(help="auto, cpu, cuda or cuda:N.")]
Dtype = Annotated[str | None, typer.Option(help="auto, float32, bfloat16 or float16.")]
Attention = Annotated[str | None, typer.Option(help="sdpa or eager.")]
METHODS = f"May be repeated; default: all of {', '.join(COMPARED)}."
EPILOGS = {
    "compare": "Examples: [bold]fitprune compare --output runs/compare[/bold] (the mini host) · [bold]fitprune "
    "compare llava-hf/llava-1.5-7b-hf --benchmark pope --data data/pope --ratio 0.6 --output runs/peers[/bold]",
    "analyze": "Examples: [bold]fitprune analyze --output runs/attention[/bold] (the mini host) · [bold]fitprune "
    "analyze llava-hf/llava-1.5-7b-hf --samples questions.jsonl --output runs/attention[/bold]",
}


def compare(
    output: Annotated[Path, typer.Option(metavar="FOLDER", help="For answers and record; resumes what it holds.")],
    model: Model = None,
    samples: Samples = None,
    image_folder: Images = None,
    benchmark: Annotated[str | None, typer.Option(help="By name, in place of --samples; scored as its own.")] = None,
    data: Annotated[Path | None, typer.Option(metavar="FOLDER", help="The benchmark's folder.")] = None,
    split: Annotated[str | None, typer.Option(help="Default: the one that papers report.")] = None,
    ratio: Annotated[list[float] | None, typer.Option(help="Share of visual FLOPs to save; may be repeated.")] = None,
    recipe: Annotated[list[str] | None, typer.Option(help=f"{RECIPE} One, or one for each ratio.")] = None,
    methods: Annotated[list[str] | None, typer.Option(help=METHODS)] = None,
    seeds: Annotated[int | None, typer.Option(help="Draws of the methods that draw at random; default 3.")] = None,
    limit: Limit = None,
    batch: Annotated[int | None, typer.Option(help="Prompts at a time; default 16.")] = None,
    seed: SeedOption = 0,
    dtype: Dtype = None,
    device: Device = None,
    attention: Attention = None,
) -> None:
    """Compare pruners at equal visual FLOPs: accuracy, and agreement with the unpruned model, on the same questions.

    A run that was killed goes on where it stopped when the same command is given again.
    """
    given: dict[str, Any] = {"model": model, "samples": absolute(samples), "image_folder": absolute(image_folder)}
    given |= {"benchmark": benchmark, "data": absolute(data), "split": split, "ratios": ratio, "methods": methods}
    given |= {"recipes": recipe and [absolute(Path(one)) if Path(one).is_file() else one for one in recipe]}
    given |= {"seeds": seeds, "limit": limit, "batch": batch, "dtype": dtype, "device": device, "attention": attention}
    chosen = checked(CompareSettings, given)

    from fitprune.commands.tables import comparison_tables
    from fitprune.evaluation.compare_run import run_compare

    console().print(comparison_tables(run_compare(chosen, seed, output)))
    echo(f"wrote {output}")


def analyze(
    output: Output,
    model: Model = None,
    samples: Annotated[Path | None, typer.Option(metavar="FILE", help="JSON lines: question_id, image, text.")] = None,
    image_folder: Images = None,
    recipe: Annotated[str | None, typer.Option(help=f"{RECIPE} Shown beside the statistics.")] = None,
    limit: Limit = None,
    seed: SeedOption = 0,
    dtype: Dtype = None,
    device: Device = None,
    attention: Attention = None,
) -> None:
    """Measure where the attention to the image goes: mass by layer, its concentration, and the pull of the place."""
    given: dict[str, Any] = {"model": model, "samples": absolute(samples), "image_folder": absolute(image_folder)}
    given |= {"recipe": absolute(Path(recipe)) if recipe and Path(recipe).is_file() else recipe, "limit": limit}
    chosen = checked(AnalyzeSettings, given | {"dtype": dtype, "device": device, "attention": attention})

    from fitprune.commands.tables import analysis_table
    from fitprune.evaluation.analysis import run_analyze

    found = run_analyze(chosen, seed, output)
    console().print(analysis_table(found))
    echo("\n".join(f"wrote {file}" for file in found.files))


def add_to(app: typer.Typer) -> None:
    """Give the command its verbs `compare` and `analyze`."""
    for verb in (compare, analyze):
        app.command(epilog=EPILOGS[verb.__name__])(verb)
