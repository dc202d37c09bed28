"""`dtnet analyze`: which cells images use."""

# Annotations are not deferred: typer evaluates them.

from pathlib import Path
from typing import Annotated, Any

import typer

from dtnet.commands.options import Device, Output, Threshold, names
from dtnet.evaluation.settings import DATA_TREE
from tenfold.cli import SeedOption
from tenfold.cli.app import console
from tenfold.cli.output import echo
from tenfold.cli.settings import checked
from tenfold.cli.verbs import new_folder

ANALYZE_EPILOG = (
    "Examples: [bold]dtnet analyze --output runs/paths[/bold] (the mini model on mini scenes) · [bold]dtnet analyze "
    "runs/coco/model --data data/coco --features data/coco_grid_feats2.hdf5 --limit 1000[/bold]"
)


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

    given: dict[str, Any] = {"images": tuple(names(image))} if image else {}
    paths = {"model": model, "data": data, "captions": captions, "features": features}
    given |= {name: None if path is None else str(path.resolve()) for name, path in paths.items()}
    given |= {"key": key, "split": split, "limit": limit, "threshold": threshold, "tokens": tokens, "device": device}
    settings = checked(AnalyzeSettings, given, "dtnet analyze")
    found = run_analyze(settings, output or new_folder("dtnet", "analyze"), seed)

    from dtnet.commands.tables import routing_tables

    console().print(routing_tables(found.report))
    for file in found.files:
        echo(f"wrote {file}")
