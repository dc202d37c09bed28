"""Verbs beside training, captions and scores: analyze, demo, bench, and what `claims --train` does."""

# Annotations are not deferred: typer evaluates them.

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import typer

from dtnet.evaluation.settings import DATA_TREE
from dtnet.training.settings import DEVICES, checked
from tenfold.cli import Experiments, SeedOption
from tenfold.cli.app import console
from tenfold.cli.verify import Verifier
from tenfold.runs import RunRecord

Device = Annotated[str | None, typer.Option(help=DEVICES)]
Output = Annotated[Path | None, typer.Option(metavar="FOLDER", help="Default: a new folder in runs/.")]
Threshold = Annotated[float | None, typer.Option(help="Least weight of a passed cell; default: 1 / P of P cells.")]
ANALYZE_EPILOG = (
    "Examples: [bold]dtnet analyze --output runs/paths[/bold] (the mini model on mini scenes) · [bold]dtnet analyze "
    "runs/coco/model --data data/coco --features data/coco_grid_feats2.hdf5 --limit 1000[/bold]"
)
DEMO_EPILOG = "Examples: [bold]dtnet demo[/bold] · [bold]dtnet demo --image photo.jpg --model runs/own/model[/bold]"
BENCH_EPILOG = "Example: [bold]dtnet bench --output bench.json[/bold]"


def experiments() -> Experiments:
    """What `claims --train` does."""
    from dtnet.evidence.experiments import experiments

    return experiments()


def register(app: typer.Typer) -> None:
    """Add the verbs to the package's command."""
    app.command(epilog=ANALYZE_EPILOG)(analyze)
    app.command(epilog=DEMO_EPILOG)(demo)
    app.command(epilog=BENCH_EPILOG)(bench)


def analyze(
    model: Annotated[Path | None, typer.Argument(metavar="[MODEL]", help="A folder; default: the mini model.")] = None,
    data: Annotated[Path | None, typer.Option(metavar="FOLDER", help=DATA_TREE)] = None,
    captions: Annotated[Path | None, typer.Option(metavar="PATH", help="Instead of those in --data.")] = None,
    features: Annotated[Path | None, typer.Option(metavar="FILE.h5", help="Instead of those in --data.")] = None,
    key: Annotated[str | None, typer.Option(help="grids or features; default: grids where there are some.")] = None,
    split: Annotated[str | None, typer.Option(help="test (default), val or train.")] = None,
    image: Annotated[list[Path] | None, typer.Option(metavar="FILE", help="An image; may be repeated.")] = None,
    limit: Annotated[int | None, typer.Option(help="Only the first so many images; default 500.")] = None,
    threshold: Threshold = None,
    tokens: Annotated[str | None, typer.Option(help="spacy or whitespace, for the captions.")] = None,
    output: Output = None,
    seed: SeedOption = 0,
    device: Device = None,
) -> None:
    """Report which cells images use, and whether another image's path weights would do as well."""
    from dtnet.evaluation.analysis_run import AnalyzeSettings, run_analyze

    given: dict[str, Any] = {"images": tuple(_names(image))} if image else {}
    paths = {"model": model, "data": data, "captions": captions, "features": features}
    given |= {name: None if path is None else str(path.resolve()) for name, path in paths.items()}
    given |= {"key": key, "split": split, "limit": limit, "threshold": threshold, "tokens": tokens, "device": device}
    console().print(run_analyze(checked(AnalyzeSettings, given, "dtnet analyze"), output or _new("analyze"), seed))


def demo(
    image: Annotated[list[Path] | None, typer.Option(metavar="FILE", help="An image; may be repeated.")] = None,
    model: Annotated[Path | None, typer.Option(metavar="FOLDER", help="Default: the mini model that ships.")] = None,
    scenes: Annotated[int | None, typer.Option(help="Mini scenes, where no image is named; default 6.")] = None,
    beams: Annotated[int | None, typer.Option(help="Of the search; default 5.")] = None,
    threshold: Threshold = None,
    output: Output = None,
    device: Device = None,
) -> None:
    """Caption held-out mini scenes with the mini model that ships, or an image; with a picture of the paths."""
    from dtnet.evaluation.demo import DemoSettings, run_demo

    given: dict[str, Any] = {"images": tuple(_names(image)), "model": None if model is None else str(model.resolve())}
    given |= {"scenes": scenes, "beams": beams, "threshold": threshold, "device": device}
    console().print(run_demo(checked(DemoSettings, given, "dtnet demo"), output or _new("demo")))


def bench(
    output: Annotated[Path | None, typer.Option(metavar="FILE", help="For the record, as JSON.")] = None,
    batch: Annotated[list[int] | None, typer.Option(min=1, help="Images at a time; may be repeated.")] = None,
    full: Annotated[bool, typer.Option("--full", help="50 images at a time, too, on the CPU.")] = False,
    beams: Annotated[int | None, typer.Option(help="Of the search; default 5.")] = None,
    max_len: Annotated[int | None, typer.Option(help="Steps of the search; default 20.")] = None,
    repeats: Annotated[int | None, typer.Option(help="Rounds after the warm-up; default 3.")] = None,
    precision: Annotated[str | None, typer.Option(help="fp32 (default) or bf16.")] = None,
    threads: Annotated[int | None, typer.Option(help="Of torch, on the CPU.")] = None,
    seed: SeedOption = 0,
    device: Device = None,
) -> None:
    """Measure beam search with kept keys and values against the authors' way, at full size with random weights."""
    from dtnet.commands.tables import bench_tables
    from dtnet.evidence.speed import BenchSettings, run_bench

    given: dict[str, Any] = {"batches": tuple(batch) if batch else None, "full": full, "beams": beams}
    given |= {"max_len": max_len, "repeats": repeats, "precision": precision, "threads": threads, "device": device}
    console().print(bench_tables(run_bench(checked(BenchSettings, given, "dtnet bench"), seed, output)))
    if output is not None:
        typer.echo(f"wrote {output}")


def analyze_again(record: RunRecord, folder: Path) -> Mapping[str, Any]:
    """For `dtnet verify`: the metrics of the same analysis, made in a new folder."""
    module = import_module("dtnet.evaluation.analysis_run")
    module.run_analyze(checked(module.AnalyzeSettings, record.config, record.id), folder, record.seed)
    return RunRecord.load(folder).metrics


def demo_again(record: RunRecord, folder: Path) -> Mapping[str, Any]:
    """For `dtnet verify`: the metrics of the same demonstration, made in a new folder."""
    module = import_module("dtnet.evaluation.demo")
    return module.run_demo(checked(module.DemoSettings, record.config, record.id), folder).metrics


VERIFIERS: dict[str, Verifier] = {"analyze": analyze_again, "demo": demo_again}


def _names(files: list[Path] | None) -> list[str]:
    return [str(path.resolve()) for path in files or ()]


def _new(verb: str) -> Path:
    number = 1
    while (folder := Path("runs", f"dtnet-{verb}-{number}")).exists():
        number += 1
    return folder
