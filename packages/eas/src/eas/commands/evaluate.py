"""`eas eval`, `eas demo` and `eas sensitivity`: their options, and the files that each benchmark consists of."""

# Annotations are not deferred: typer evaluates them.

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from eas.evaluation.settings import DemoSettings, EvalSettings, SensitivitySettings
from tenfold.cli import SeedOption, SetOption
from tenfold.cli.app import console
from tenfold.cli.output import echo
from tenfold.cli.settings import checked
from tenfold.cli.verbs import absolute, absolute_if_there, chosen, command_with, new_folder

MODEL = "The frozen host: a folder, a hub id, or mini (the default)."
ADAPTERS = "A folder of eas train or eas convert, mini (what ships), or none."
Dtype = Annotated[str | None, typer.Option(help="auto, float32, bfloat16 or float16.")]
Device = Annotated[str | None, typer.Option(help="auto, cpu, cuda or cuda:N.")]
Attention = Annotated[str | None, typer.Option(help="sdpa or eager.")]
Output = Annotated[Path | None, typer.Option(metavar="FOLDER", help="Default: a new one in runs/; eval resumes.")]


def _trees() -> Iterator[str]:
    from eas.evaluation.benchmarks import BENCHMARKS

    yield " What --data holds:\n"
    for name, one in BENCHMARKS.items():
        yield f" {name} ({one.title}; split {one.split}): {one.tree}"


def evaluate(
    model: Annotated[str | None, typer.Argument(help=MODEL)] = None,
    adapters: Annotated[str | None, typer.Option(help=ADAPTERS)] = None,
    config: Annotated[str | None, typer.Option(help="A YAML file, or a shipped one: mini, scienceqa, aid20.")] = None,
    set_: SetOption = None,
    host: Annotated[str | None, typer.Option(help="llava, meter or lavin, where the folder does not tell.")] = None,
    benchmark: Annotated[
        str | None, typer.Option(help="mini, scienceqa, aid or slake; METER: vqav2, nlvr2 or flickr30k.")
    ] = None,
    data: Annotated[Path | None, typer.Option(metavar="FOLDER", help="The benchmark's files: below.")] = None,
    split: Annotated[str | None, typer.Option(help="Default: the paper's.")] = None,
    train: Annotated[
        str | None,
        typer.Option(
            metavar="FILE|SPLITS", help="json of the training (METER: its splits): refused if it asks the same."
        ),
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Ask only the first so many questions.")] = None,
    batch: Annotated[int | None, typer.Option(help="Prompts at a time; default 8.")] = None,
    folded: Annotated[bool, typer.Option("--folded", help="Decode with folded matrices, prompt by prompt.")] = False,
    semantics: Annotated[
        str | None, typer.Option(help="LaVIN: consistent, or the authors' unmerged or merged.")
    ] = None,
    predictions: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Score the authors' preds.json of ScienceQA; no model is loaded."),
    ] = None,
    output: Output = None,
    seed: SeedOption = 0,
    dtype: Dtype = None,
    device: Device = None,
    attention: Attention = None,
) -> None:
    """Answer a benchmark's questions and score them.

    A run that was killed goes on where it stopped when the same command is given again with its --output.
    """
    given: dict[str, Any] = {"model": absolute_if_there(model), "adapters": absolute_if_there(adapters)}
    given |= {"benchmark": benchmark, "data": absolute(data), "split": split, "train": absolute_if_there(train)}
    given["host"] = host
    given |= {"limit": limit, "batch": batch, "folded": folded or None, "dtype": dtype, "device": device}
    given |= {"attention": attention, "semantics": semantics, "predictions": absolute(predictions)}
    settings = chosen(EvalSettings, "eas", config, set_, given)
    folder = output or new_folder("eas", "eval")

    from eas.commands.tables import scores_table
    from eas.evaluation.run import run_eval

    evaluation = run_eval(settings, seed, folder, say=echo)
    if evaluation is not None:
        console().print(scores_table(evaluation.benchmark.title, evaluation.metrics))
        names = ", ".join(str(file.relative_to(folder)) for file in evaluation.files)
        echo(f"wrote {folder}: {names}")


def demo(
    model: Annotated[str | None, typer.Option(help=MODEL)] = None,
    adapters: Annotated[str | None, typer.Option(help=ADAPTERS)] = None,
    output: Output = None,
    seed: SeedOption = 0,
    dtype: Dtype = None,
    device: Device = None,
) -> None:
    """Answer the miniature's questions with all attentions and without those that its search found."""
    given = {"model": absolute_if_there(model), "adapters": absolute_if_there(adapters)}
    settings = checked(DemoSettings, given | {"dtype": dtype, "device": device})

    from eas.commands.tables import demo_table
    from eas.evaluation.demo import run_demo

    folder = output or new_folder("eas", "demo")
    console().print(demo_table(run_demo(settings, seed, folder)))
    echo(f"wrote {folder}")


def sensitivity(
    model: Annotated[str | None, typer.Argument(help=MODEL)] = None,
    data: Annotated[Path | None, typer.Option(metavar="FILE", help="LLaVA's json; default: mini questions.")] = None,
    images: Annotated[Path | None, typer.Option(metavar="FOLDER", help="Its pictures.")] = None,
    samples: Annotated[int | None, typer.Option(help="Score so many records; default 64.")] = None,
    removed: Annotated[int | None, typer.Option(help="K of the list; default 12.")] = None,
    output: Output = None,
    seed: SeedOption = 0,
    dtype: Dtype = None,
    device: Device = None,
) -> None:
    """Take out one attention at a time, train nothing, and write the list as a search.json: the cheap baseline."""
    given: dict[str, Any] = {"model": absolute_if_there(model), "data": absolute(data), "images": absolute(images)}
    settings = checked(
        SensitivitySettings, given | {"samples": samples, "removed": removed, "dtype": dtype, "device": device}
    )

    from eas.commands.tables import sensitivity_table
    from eas.evaluation.sensitivity import run_sensitivity

    folder = output or new_folder("eas", "sensitivity")
    console().print(sensitivity_table(run_sensitivity(settings, seed, folder)))
    echo(f"wrote {folder}/search.json")


def add_to(app: typer.Typer) -> None:
    """Give the command its verbs `eval`, `demo` and `sensitivity`."""
    example = (
        "Examples: [bold]eas eval --config mini[/bold] · [bold]eas eval llava-1.5-7b-hf --adapters runs/aid20/adapters "
        "--benchmark aid --data aid --output runs/e[/bold] · [bold]torchrun --nproc_per_node 4 -m eas eval ...[/bold]"
    )
    app.command("eval", cls=command_with(_trees), epilog=example)(evaluate)
    app.command("demo", epilog="Example: [bold]eas demo[/bold]")(demo)
    app.command("sensitivity", epilog="Example: [bold]eas sensitivity --removed 2 --output runs/list[/bold]")(
        sensitivity
    )
