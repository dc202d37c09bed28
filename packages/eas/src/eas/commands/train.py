"""`eas train`, `eas search` and `eas tune`: options into settings, a plan or a training, and its outcome."""

# Annotations are not deferred: typer evaluates them.

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from eas.checkpoints.hosts import host_of
from eas.training.settings import TrainSettings
from tenfold import UserError
from tenfold.cli import SeedOption, SetOption, load_config
from tenfold.cli.app import console
from tenfold.cli.output import echo
from tenfold.cli.settings import MINI, checked
from tenfold.cli.verbs import absolute_if_there, new_folder, shipped_config

if TYPE_CHECKING:
    from rich.table import Table

DATA = """A folder. LLaVA: its json of conversations and pictures, as the config names them: train20.json and images/
(AID), train_llava_en.json and imgs/ (Slake), llava_train_QCM-ALE.json and images/train/ (ScienceQA). LaVIN: ScienceQA's
problems.json, pid_splits.json and images/. METER: the files that eas eval --help lists. The mini config needs none."""
CONFIG = """A YAML file, or a shipped one: mini, scienceqa-vicuna-7b, aid20, aid50, slake; lavin-scienceqa-7b and -13b;
meter-vqav2, meter-nlvr2, meter-flickr30k. Default: mini, or what the folder of a METER or LaVIN calls for."""
Config = Annotated[str | None, typer.Option(help=CONFIG)]
Model = Annotated[
    str | None,
    typer.Option(
        metavar="FOLDER|ID", help="The frozen host (METER, LaVIN: as eas convert wrote it); default: the config's."
    ),
]
Data = Annotated[Path | None, typer.Option(metavar="FOLDER", help=DATA)]
Host = Annotated[str | None, typer.Option(help="llava, meter or lavin, where the model's folder does not tell.")]
Output = Annotated[Path | None, typer.Option(metavar="FOLDER", help="Default: a new folder in runs/.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on from the last complete checkpoint.")]
Dry = Annotated[bool, typer.Option("--dry-run", help="Print what would be done, without data or weights.")]
EPILOG = (
    "Examples: [bold]eas train --config mini --output runs/mini[/bold] · [bold]eas train --config aid20 --dry-run"
    "[/bold] · [bold]eas train --model runs/lavin-7b --data scienceqa --output runs/lavin[/bold] · [bold]torchrun "
    "--nproc_per_node 4 -m eas train --config aid20 --data aid --output runs/aid20[/bold]"
)


def train(
    config: Config = None,
    set_: SetOption = None,
    host: Host = None,
    model: Model = None,
    data: Data = None,
    output: Output = None,
    seed: SeedOption = 0,
    resume: Resume = False,
    dry_run: Dry = False,
) -> None:
    """Search for the attentions that the task does not need, then tune without them.

    A killed training goes on with --resume, to the same bits.
    """
    _run(config, set_, {"host": host, "model": model, "data": data}, output, seed, resume, dry_run)


def search(
    config: Config = None,
    set_: SetOption = None,
    host: Host = None,
    model: Model = None,
    data: Data = None,
    output: Output = None,
    seed: SeedOption = 0,
    resume: Resume = False,
    dry_run: Dry = False,
) -> None:
    """Search only: preferences and the skip list as a file, search.json."""
    given = {"host": host, "model": model, "data": data, "stages": ("search",)}
    _run(config, set_, given, output, seed, resume, dry_run)


def tune(
    from_search: Annotated[
        Path | None, typer.Option("--from", metavar="FILE", help="A search.json; its hash goes into the record.")
    ] = None,
    skip: Annotated[
        str | None,
        typer.Option(help="Instead: layers or METER's sites (24,23,19), a list of the authors (llava-aid-12), none."),
    ] = None,
    config: Config = None,
    set_: SetOption = None,
    host: Host = None,
    model: Model = None,
    data: Data = None,
    output: Output = None,
    seed: SeedOption = 0,
    resume: Resume = False,
    dry_run: Dry = False,
) -> None:
    """Tune without the attentions that a search, or you, named."""
    given: dict[str, Any] = {"host": host, "model": model, "data": data, "stages": ("tune",)}
    given |= {"from_search": None if from_search is None else str(from_search.resolve()), "skip": _layers(skip)}
    _run(config, set_, given, output, seed, resume, dry_run)


def _layers(text: str | None) -> tuple[int, ...] | str | None:
    if text == "none":
        return ()
    if text is None or not text.replace(",", "").replace(" ", "").isdigit():
        return text
    return tuple(int(part) for part in text.split(",") if part.strip())


def _usual_config(host: str, model: str) -> str:
    """The shipped config for a host that none was named for."""
    if host == "lavin":
        from eas.checkpoints.lavin import CONFIG, read_lavin_about
        from eas.lavin import LAVIN_13B

        there = Path(model, CONFIG).is_file() and read_lavin_about(model)[0].layers == LAVIN_13B.layers
        return f"lavin-scienceqa-{'13b' if there else '7b'}"
    if host == "meter":
        from eas.checkpoints.meter import CONFIG as METER_CONFIG
        from eas.checkpoints.meter import read_meter_about

        task = read_meter_about(model)[0].task if Path(model, METER_CONFIG).is_file() else "vqa"
        return {"vqa": "meter-vqav2", "nlvr2": "meter-nlvr2", "irtr": "meter-flickr30k"}[task]
    return MINI


def _run(
    config: str | None,
    set_: list[str] | None,
    given: dict[str, Any],
    output: Path | None,
    seed: int,
    resume: bool,
    dry_run: bool,
) -> None:
    given["model"] = absolute_if_there(given["model"])
    config = config or _usual_config(host_of(given["model"] or MINI, given["host"]), given["model"] or MINI)
    values = load_config(TrainSettings, shipped_config("eas", config, "configs"), set_ or ()).model_dump()
    data = given.pop("data")
    if data is not None:
        values["data"]["folder"] = str(data.resolve())
    if (skip := given.pop("skip", None)) is not None:
        values["adapters"]["skip"] = skip
    values |= {name: value for name, value in given.items() if value is not None}
    settings = checked(TrainSettings, values, config)
    if dry_run:
        console().print(plan_table(settings))
        return
    if output is None and resume:
        raise UserError("no folder", "--output", "the folder of the training")
    output = output or new_folder("eas", "train")

    from eas.training.run import run_train

    trained = run_train(settings, seed, output, resume)
    if int(os.environ.get("RANK", 0)) != 0:
        return
    for name in settings.stages:
        values = trained.metrics[name]
        echo(f"{name}: {values['steps']} steps, loss {values['loss']:.4f}, skips {values['skip']}")
    if trained.search is not None and "search" in settings.stages:
        echo(f"wrote {output / 'search.json'}: margin {trained.search.margin:.4f}")
    if trained.tuned is not None:
        echo(f"wrote {trained.tuned}")


def plan_table(settings: TrainSettings) -> "Table":
    """What `--dry-run` prints."""
    from rich.table import Table

    from eas.training.plan import dry_run

    table = Table(title=f"Plan, {settings.model}", title_justify="left")
    for column in ("stage", "samples", "batch", "steps", "warm-up", "learning rate", "trainable", "parameters"):
        table.add_column(column, justify="right")
    for one in dry_run(settings):
        plan, stage = one.plan, one.plan.settings
        batch = f"{stage.per_device} x {plan.accumulation} = {stage.batch}"
        rate = f"0 → {stage.learning_rate:g} → 0 ({stage.schedule})"
        counts = (f"{plan.samples:,}", batch, f"{plan.steps:,}", f"{plan.warmup:,}", rate)
        table.add_row(plan.name, *counts, f"{one.trainable:,}", f"{one.total:,}")
    return table


def add_to(app: typer.Typer) -> None:
    """Give the command its verbs `train`, `search` and `tune`."""
    app.command(epilog=EPILOG)(train)
    app.command(epilog="Example: [bold]eas search --config aid20 --data aid --output runs/search[/bold]")(search)
    app.command(
        epilog="Example: [bold]eas tune --from runs/search/search.json --config aid20 --data aid --output runs/t[/bold]"
    )(tune)
