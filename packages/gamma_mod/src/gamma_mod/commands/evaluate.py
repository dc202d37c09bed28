"""`gamma-mod eval`, `gamma-mod demo` and `gamma-mod arank`: their options; the work is imported when asked for."""

# Annotations are not deferred: typer evaluates them.

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from gamma_mod.commands.options import (
    Attention,
    DecodeSkip,
    Device,
    Dtype,
    Imports,
    Layers,
    Model,
    Output,
    Protocol,
    Skip,
    Threshold,
)
from gamma_mod.evaluation.settings import ArankSettings, DemoSettings, EvalSettings
from tenfold.cli import SeedOption, SetOption
from tenfold.cli.app import console
from tenfold.cli.output import echo
from tenfold.cli.settings import checked
from tenfold.cli.verbs import absolute, absolute_if_there, chosen, command_with, new_folder

DATA = "The benchmark's folder, for all: of a folder for each. The mini host needs none. Files: below."
EVAL_EPILOG = (
    "Examples: [bold]gamma-mod eval --config mini[/bold] · [bold]gamma-mod eval runs/mini/model --benchmark gqa --data "
    "data/gqa[/bold] · on several GPUs: [bold]torchrun --nproc_per_node 8 -m gamma_mod eval ...[/bold]"
)
DEMO_EPILOG = 'Example: [bold]gamma-mod demo --model runs/mini/model --image cat.jpg --question "What is it?"[/bold]'
ARANK_EPILOG = (
    "Examples: [bold]gamma-mod arank[/bold] (the mini host) · [bold]gamma-mod arank llava-hf/llava-1.5-7b-hf --data "
    "questions.jsonl --image-folder images --output runs/arank[/bold]"
)


def trees() -> Iterator[str]:
    """What ends the help of `eval`."""
    from tenfold.data.benchmarks import BENCHMARKS

    yield " What --data holds, and the splits:\n"
    for name, one in BENCHMARKS.items():
        yield f" {name} ({one.title}; {', '.join(one.splits)})"
        yield "".join(f"   {line}\n" for line in one.tree.splitlines())


def evaluate(
    model: Model = None,
    config: Annotated[str | None, typer.Option(help="A YAML file, or a shipped one: mini, released.")] = None,
    set_: SetOption = None,
    benchmark: Annotated[str | None, typer.Option(help="By name, or all (the default) that the data hold.")] = None,
    data: Annotated[Path | None, typer.Option(metavar="FOLDER", help=DATA)] = None,
    split: Annotated[str | None, typer.Option(help="Default: the benchmark's first.")] = None,
    layers: Layers = None,
    threshold: Threshold = None,
    skip: Skip = None,
    decode_skip: DecodeSkip = None,
    protocol: Protocol = None,
    limit: Annotated[int | None, typer.Option(help="Ask only the first so many questions.")] = None,
    batch: Annotated[int | None, typer.Option(help="Prompts at a time; default 8.")] = None,
    output: Annotated[Path | None, typer.Option(metavar="FOLDER", help="Default: a new one in runs/; resumes.")] = None,
    seed: SeedOption = 0,
    imports: Imports = None,
    dtype: Dtype = None,
    device: Device = None,
    attention: Attention = None,
) -> None:
    """Answer a benchmark's questions; score them, and report what converted layers really skipped.

    A run that was killed goes on where it stopped when the same command is given again with its --output.
    """
    given: dict[str, Any] = {"model": absolute_if_there(model), "benchmark": benchmark, "data": absolute(data)}
    given |= {"split": split, "layers": layers, "threshold": threshold, "skip": skip, "decode_skip": decode_skip}
    given |= {"protocol": protocol, "limit": limit, "batch": batch, "imports": tuple(imports) if imports else None}
    given |= {"dtype": dtype, "device": device, "attention": attention}
    settings = chosen(EvalSettings, "gamma_mod", config, set_, given)
    folder = output or new_folder("gamma-mod", "eval")

    from gamma_mod.commands.tables import eval_tables
    from gamma_mod.evaluation.run import run_eval

    evaluations = run_eval(settings, seed, folder, say=echo)
    if evaluations:
        console().print(eval_tables(evaluations))
        for one in evaluations:
            echo(f"wrote {one.files[-1].parent}: {', '.join(file.name for file in one.files)}")


def demo(
    image: Annotated[Path | None, typer.Option(metavar="FILE", help="Any image; default: a mini world scene.")] = None,
    question: Annotated[str | None, typer.Option(help="About the image; default: the scene's own.")] = None,
    model: Annotated[str | None, typer.Option(help="A folder, a hub id, or mini (the default).")] = None,
    layers: Layers = None,
    threshold: Threshold = None,
    skip: Skip = None,
    protocol: Protocol = None,
    output: Output = None,
    seed: SeedOption = 0,
    imports: Imports = None,
    dtype: Dtype = None,
    device: Device = None,
    attention: Attention = None,
) -> None:
    """Answer a question with the dense and the converted model, and draw which patches each layer skips."""
    given: dict[str, Any] = {"image": absolute(image), "question": question, "model": absolute_if_there(model)}
    given |= {"layers": layers, "threshold": threshold, "skip": skip, "protocol": protocol, "dtype": dtype}
    given |= {"device": device, "attention": attention, "imports": tuple(imports) if imports else None}
    settings = checked(DemoSettings, given)

    from gamma_mod.commands.tables import demo_table
    from gamma_mod.evaluation.demo import run_demo

    console().print(demo_table(run_demo(settings, seed, output or new_folder("gamma-mod", "demo"))))


def arank(
    model: Model = None,
    data: Annotated[Path | None, typer.Option(metavar="FILE", help="JSON lines of questions, or LLaVA's json.")] = None,
    image_folder: Annotated[Path | None, typer.Option(metavar="FOLDER", help="What images are relative to.")] = None,
    samples: Annotated[int | None, typer.Option(help="Prompts that are ranked; default 25.")] = None,
    num_dense: Annotated[int | None, typer.Option(help="Layers that stay dense; default 4.")] = None,
    threshold: Annotated[float | None, typer.Option(help="Instead: layers of at least this rank stay dense.")] = None,
    protocol: Protocol = None,
    output: Output = None,
    seed: SeedOption = 0,
    imports: Imports = None,
    dtype: Dtype = None,
    device: Device = None,
) -> None:
    """Measure the rank of every layer's attention maps, and list the layers to convert."""
    given: dict[str, Any] = {"model": absolute_if_there(model), "data": absolute(data), "samples": samples}
    given |= {"image_folder": absolute(image_folder), "num_dense": num_dense, "threshold": threshold}
    given |= {"protocol": protocol, "dtype": dtype, "device": device, "imports": tuple(imports) if imports else None}
    settings = checked(ArankSettings, given)

    from gamma_mod.commands.tables import ranking_table
    from gamma_mod.evaluation.layers import run_arank

    ranking = run_arank(settings, seed, output or new_folder("gamma-mod", "arank"))
    console().print(ranking_table(ranking))
    echo(f"layers to convert: {','.join(map(str, ranking.layers))}")
    for file in ranking.files:
        echo(f"wrote {file}")


def add_to(app: typer.Typer) -> None:
    """Give the command its verbs."""
    app.command("eval", cls=command_with(trees), epilog=EVAL_EPILOG)(evaluate)
    app.command(epilog=DEMO_EPILOG)(demo)
    app.command(epilog=ARANK_EPILOG)(arank)
