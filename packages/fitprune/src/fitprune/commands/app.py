"""The command `fitprune`: options are read here, the work is done elsewhere and imported when a verb needs it."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Annotated

import typer

from fitprune.commands import compare, evaluate, recipe
from fitprune.commands.compare import Attention, Device, Dtype
from fitprune.commands.verify import TOLERANCES, VERIFIERS
from fitprune.evaluation.settings import DemoSettings
from fitprune.evidence import experiments
from fitprune.evidence.settings import BenchSettings
from fitprune.training.settings import FitSettings
from tenfold import UserError
from tenfold.cli import Package, SeedOption, SetOption, build_app, load_config
from tenfold.cli import main as run_app
from tenfold.cli.app import console
from tenfold.cli.output import echo
from tenfold.cli.settings import checked
from tenfold.cli.verbs import absolute, new_folder
from tenfold.runs.context import require_unfinished

package = Package(
    name="fitprune",
    module="fitprune",
    distribution="fitprune",
    instead={"train": "fitprune fit: the method has nothing to train"},
    tolerances=TOLERANCES,
)
app = build_app(
    package, lambda: import_module("fitprune.evidence.claims").checks(), VERIFIERS, experiments.experiments()
)
app.add_typer(recipe.app, name="recipe")
evaluate.add_to(app)
compare.add_to(app)


@app.command(
    epilog="Examples: [bold]fitprune fit --output runs/fit[/bold] (the mini host) · [bold]fitprune fit "
    "llava-hf/llava-1.5-7b-hf --samples questions.jsonl --image-folder images --ratio 0.6 --output runs/fit[/bold]"
)
def fit(
    output: Annotated[Path, typer.Option(metavar="FOLDER", help="For recipes and record; resumes what it holds.")],
    model: Annotated[str | None, typer.Argument(help="A folder, a hub id, or mini (the default).")] = None,
    config: Annotated[str | None, typer.Option(help="A YAML file, or a shipped one: mini, llava-1.5-7b, ...")] = None,
    set_: SetOption = None,
    samples: Annotated[Path | None, typer.Option(metavar="FILE", help="JSON lines: question_id, image, text.")] = None,
    image_folder: Annotated[Path | None, typer.Option(metavar="FOLDER", help="What `image` is relative to.")] = None,
    ratio: Annotated[list[float] | None, typer.Option(help="Share of visual FLOPs to save; may be repeated.")] = None,
    rounding: Annotated[str | None, typer.Option(help="largest_remainder, or floor as the official script.")] = None,
    limit: Annotated[int | None, typer.Option(help="Calibrate on so many samples, drawn by the seed.")] = None,
    seed: SeedOption = 0,
    dtype: Dtype = None,
    device: Device = None,
    attention: Attention = None,
) -> None:
    """Find how many visual tokens each layer can lose, for one or several budgets.

    A run that was killed goes on where it stopped when the same command is given again.
    """
    base = load_config(FitSettings, config, set_ or ()) if config else FitSettings()
    given = {"model": model, "ratios": ratio, "rounding": rounding, "limit": limit, "dtype": dtype, "device": device}
    given |= {"attention": attention, "samples": absolute(samples), "image_folder": absolute(image_folder)}
    if set_ and not config:
        raise UserError("--set without --config", None, "--config mini --set key=value")
    options = {name: value for name, value in given.items() if value is not None}
    chosen = checked(FitSettings, base.model_dump() | options)

    from fitprune.commands import tables
    from fitprune.training import run as calibrate

    require_unfinished(output)
    if done := calibrate.samples_done(output):
        echo(f"going on after {done} measured samples in {output}")
    fitted = calibrate.run_fit(chosen, seed, output)
    console().print(tables.layers_table(fitted.recipes, "Visual tokens by layer"))
    console().print(tables.costs_table(fitted.recipes, fitted.shape, fitted.text_tokens))
    echo("\n".join(f"wrote {file}" for file in fitted.files))


@app.command(epilog='Example: [bold]fitprune demo --model llava-1.5-7b-hf --image cat.jpg --question "What?"[/bold]')
def demo(
    image: Annotated[Path | None, typer.Option(metavar="FILE", help="Any image; default: a mini world scene.")] = None,
    question: Annotated[str | None, typer.Option(help="About the image; default: the scene's own.")] = None,
    model: Annotated[str | None, typer.Option(help="A folder, a hub id, or mini (the default).")] = None,
    recipe: Annotated[str | None, typer.Option(help=f"{recipe.RECIPE} Or a ratio to fit now.")] = None,
    output: Annotated[Path | None, typer.Option(metavar="FOLDER", help="Default: a new folder in runs/.")] = None,
    seed: SeedOption = 0,
    dtype: Dtype = None,
    device: Device = None,
    attention: Attention = None,
) -> None:
    """Answer a question with and without pruning, and draw which patches survive at which layer."""
    given = {"image": absolute(image), "question": question, "model": model, "recipe": recipe, "dtype": dtype}
    chosen = checked(DemoSettings, given | {"device": device, "attention": attention})

    from fitprune.commands import tables
    from fitprune.evaluation.demo import run_demo

    console().print(tables.demo_tables(run_demo(chosen, seed, output or new_folder("fitprune", "demo"))))


@app.command(epilog="Example: [bold]fitprune bench --device cuda --output bench-cuda.json[/bold]")
def bench(
    device: Device = None,
    layers: Annotated[int | None, typer.Option(help="Decoder layers; default: 4 on the CPU, 32 on CUDA.")] = None,
    ratio: Annotated[int | None, typer.Option(help="Percentage of the released recipe; default 60.")] = None,
    dtype: Annotated[str | None, typer.Option(help="bfloat16 (default), float16 or float32.")] = None,
    batch: Annotated[int | None, typer.Option(help="Prompts at a time; default 1.")] = None,
    repeats: Annotated[int | None, typer.Option(help="Rounds that count; default 5.")] = None,
    methods: Annotated[list[str] | None, typer.Option(help="Peers at equal FLOPs; may be repeated.")] = None,
    output: Annotated[Path | None, typer.Option(metavar="FILE", help="For the record with all figures.")] = None,
    seed: SeedOption = 0,
) -> None:
    """Measure prefill, decoding and search at the full width of LLaVA-1.5-7B, beside what the FLOPs promise."""
    given = {"device": device, "layers": layers, "percent": ratio, "dtype": dtype, "batch": batch, "repeats": repeats}
    given["methods"] = methods
    chosen = checked(BenchSettings, given)

    from fitprune.commands.tables import bench_tables
    from fitprune.evidence.speed import run_bench

    console().print(bench_tables(run_bench(chosen, seed, output)))


@app.command(epilog="Example: [bold]fitprune convert llava-v1.5-7b llava-1.5-7b-hf --vision-tower clip-336[/bold]")
def convert(
    source: Annotated[Path, typer.Argument(metavar="SRC", help="An official LLaVA-1.5 release, or an hf folder.")],
    target: Annotated[Path, typer.Argument(metavar="DST", help="A new folder.")],
    to: Annotated[str, typer.Option(help="hf (transformers' layout) or official.")] = "hf",
    vision_tower: Annotated[Path | None, typer.Option(metavar="FOLDER", help="CLIP, which releases lack.")] = None,
) -> None:
    """Turn an official LLaVA-1.5 release into transformers' layout, or back, bit for bit."""
    from fitprune.checkpoints import keys as checkpoints

    made = checkpoints.convert(source, target, to=to, vision_tower=vision_tower)
    total = made.language_model + made.projector + made.vision_tower
    echo(f"wrote {made.output}: {total:,} parameters, vocabulary {made.words[0]} -> {made.words[1]}")


def main() -> None:
    run_app(app)
