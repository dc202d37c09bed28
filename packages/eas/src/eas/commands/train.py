"""`eas train`, `eas search` and `eas tune`: options into settings, a plan or a training, and its outcome."""

# Annotations are not deferred: typer evaluates them.

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from eas.training.settings import MeterTrainSettings, TrainSettings
from tenfold import UserError
from tenfold.cli import SeedOption, SetOption, load_config
from tenfold.cli.app import console
from tenfold.cli.output import echo
from tenfold.cli.settings import checked
from tenfold.cli.verbs import new_folder, shipped_config

if TYPE_CHECKING:
    from rich.table import Table

DATA = """A folder with LLaVA's json of conversations and its pictures, as the config names them: train20.json and
images/ (AID), train_llava_en.json and imgs/ (Slake), llava_train_QCM-ALE.json and images/train/ (ScienceQA). The mini
config needs none."""
Config = Annotated[
    str, typer.Option(help="A YAML file, or a shipped one: mini, scienceqa-vicuna-7b, aid20, aid50, slake; meter.")
]
Model = Annotated[str | None, typer.Option(metavar="FOLDER|ID", help="The frozen host; default: the config's.")]
Data = Annotated[Path | None, typer.Option(metavar="FOLDER", help=DATA)]
Host = Annotated[
    str | None, typer.Option(help="meter, where the model's folder does not tell; then --set knows METER's.")
]
Output = Annotated[Path | None, typer.Option(metavar="FOLDER", help="Default: a new folder in runs/.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on from the last complete checkpoint.")]
Dry = Annotated[bool, typer.Option("--dry-run", help="Print what would be done, without data or weights.")]
EPILOG = (
    "Examples: [bold]eas train --config mini --output runs/mini[/bold] · [bold]eas train --config aid20 --dry-run"
    "[/bold] · [bold]torchrun --nproc_per_node 4 -m eas train --config aid20 --data aid --output runs/aid20[/bold]"
)


def train(
    config: Config = "mini",
    set_: SetOption = None,
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
    _run(config, set_, {"model": model, "data": data}, output, seed, resume, dry_run)


def search(
    config: Config = "mini",
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
    if _is_meter(host, model):
        _meter("search", "meter" if config == "mini" else config, set_, model, data, output, seed, resume or dry_run)
        return
    _run(config, set_, {"model": model, "data": data, "stages": ("search",)}, output, seed, resume, dry_run)


def tune(
    from_search: Annotated[
        Path | None, typer.Option("--from", metavar="FILE", help="A search.json; its hash goes into the record.")
    ] = None,
    skip: Annotated[
        str | None, typer.Option(help="Instead: layers (24,23,19), or a list of the authors (llava-aid-12).")
    ] = None,
    config: Config = "mini",
    set_: SetOption = None,
    host: Host = None,
    model: Model = None,
    data: Data = None,
    output: Output = None,
    seed: SeedOption = 0,
    resume: Resume = False,
    dry_run: Dry = False,
) -> None:
    """Tune without the attentions that a search, or you, named (METER: that eas convert --skip named)."""
    if _is_meter(host, model):
        other = resume or dry_run or from_search is not None or skip is not None
        _meter("tune", "meter" if config == "mini" else config, set_, model, data, output, seed, other)
        return
    given: dict[str, Any] = {"model": model, "data": data, "stages": ("tune",)}
    given |= {"from_search": None if from_search is None else str(from_search.resolve()), "skip": _layers(skip)}
    _run(config, set_, given, output, seed, resume, dry_run)


def _is_meter(host: str | None, model: str | None) -> bool:
    told = model is not None and Path(model, "meter.json").is_file()
    if host not in (None, "llava", "meter") or (host is not None and told != (host == "meter") and model is not None):
        raise UserError(f"--host {host}", model, "meter with a folder of METER, or llava with another")
    return told or host == "meter"


def _meter(
    stage: str,
    config: str,
    set_: list[str] | None,
    model: str | None,
    data: Path | None,
    output: Path | None,
    seed: int,
    other: bool,
) -> None:
    """METER's search or tuning, in one process."""
    if model is None or data is None or other:
        raise UserError(
            "METER takes --model, --data, --config, --set, --output and --seed alone", stage, "a folder of METER"
        )
    values = load_config(MeterTrainSettings, shipped_config("eas", config, "configs"), set_ or ()).model_dump()
    values |= {"model": str(Path(model).resolve()), "data": str(data.resolve()), "stage": stage}
    settings = checked(MeterTrainSettings, values, config)
    folder = output or new_folder("eas", "train")

    from eas.training.meter import train_meter

    found = train_meter(settings, seed, folder)
    echo(f"{stage}: {found['steps']} steps, loss {found['loss']:.4f}, skips {found['skip']} of 24")
    echo(f"wrote {folder / ('search.json' if stage == 'search' else 'model')}")


def _layers(text: str | None) -> tuple[int, ...] | str | None:
    if text is None or not text.replace(",", "").replace(" ", "").isdigit():
        return text
    return tuple(int(part) for part in text.split(",") if part.strip())


def _run(
    config: str,
    set_: list[str] | None,
    given: dict[str, Any],
    output: Path | None,
    seed: int,
    resume: bool,
    dry_run: bool,
) -> None:
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
    if trained.adapters is not None:
        echo(f"wrote {trained.adapters}")


def plan_table(settings: TrainSettings) -> "Table":
    """What `--dry-run` prints."""
    from rich.table import Table

    from eas.training.plan import dry_run, host_shape

    shape, projector = host_shape(settings)
    table = Table(title=f"Plan, {settings.model}", title_justify="left")
    for column in ("stage", "samples", "batch", "steps", "warm-up", "learning rate", "trainable", "parameters"):
        table.add_column(column, justify="right")
    for one in dry_run(settings, shape, projector, 1, settings.data.samples):
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
