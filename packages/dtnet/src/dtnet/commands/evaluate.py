"""`dtnet eval`: options into settings, an evaluation, and its table."""

# Annotations are not deferred: typer evaluates them.

import logging
import os
from pathlib import Path
from typing import Annotated, Any

import typer

from dtnet.commands.caption import find_model
from dtnet.evaluation.settings import DATA_TREE, EvalSettings
from tenfold import UserError
from tenfold.cli.app import console
from tenfold.cli.settings import DEVICES, checked
from tenfold.cli.verbs import new_folder

EPILOG = (
    "Examples: [bold]dtnet eval runs/mini[/bold] · [bold]dtnet eval runs/coco/model --data data/coco --features "
    "data/coco_grid_feats2.hdf5 --split test --output runs/eval[/bold] · [bold]torchrun --nproc_per_node 2 -m "
    "dtnet.commands.app eval ...[/bold]"
)
MODEL = "What training wrote, or `convert`. Several are an ensemble: their log-probabilities are averaged."


def evaluate(
    model: Annotated[list[Path], typer.Argument(metavar="MODEL...", help=MODEL)],
    data: Annotated[Path | None, typer.Option(metavar="FOLDER", help=DATA_TREE)] = None,
    captions: Annotated[Path | None, typer.Option(metavar="PATH", help="Instead of those in --data.")] = None,
    features: Annotated[Path | None, typer.Option(metavar="FILE.h5", help="Instead of those in --data.")] = None,
    key: Annotated[str | None, typer.Option(help="grids or features; default: grids where there are some.")] = None,
    split: Annotated[str | None, typer.Option(help="test (default), val or train.")] = None,
    online: Annotated[str | None, typer.Option(help="test2014 or val2014: results for COCO's server.")] = None,
    other_results: Annotated[Path | None, typer.Option(help="The other set's results file, for the same zip.")] = None,
    beam_size: Annotated[int | None, typer.Option(help="Default 5.")] = None,
    max_len: Annotated[int | None, typer.Option(help="Words at most; default 20.")] = None,
    batch: Annotated[int | None, typer.Option(help="Images at a time; default 50.")] = None,
    limit: Annotated[int | None, typer.Option(help="Only the first so many images.")] = None,
    metrics: Annotated[str | None, typer.Option(help="Of bleu,meteor,rouge,cider,spice; default: all.")] = None,
    tokens: Annotated[str | None, typer.Option(help="ptb (default, needs Java) or whitespace.")] = None,
    spice: Annotated[Path | None, typer.Option(metavar="FOLDER", help="The jars of Stanford CoreNLP 3.6.0.")] = None,
    device: Annotated[str | None, typer.Option(help=DEVICES)] = None,
    output: Annotated[Path | None, typer.Option(metavar="FOLDER", help="Default: a new folder in runs/.")] = None,
) -> None:
    """Caption the images of a split and score the captions; the paper's scores beside them.

    One that was killed goes on where it stopped when the same command is given again.
    """
    given: dict[str, Any] = {
        "model": tuple(str(find_model(folder).resolve()) for folder in model),
        "key": key,
        "split": split,
        "online": online,
    }
    paths = {"data": data, "captions": captions, "features": features, "other_results": other_results, "spice": spice}
    given |= {name: None if path is None else str(path.resolve()) for name, path in paths.items()}
    given |= {"beams": beam_size, "max_len": max_len, "batch": batch, "limit": limit, "tokens": tokens}
    given |= {"metrics": metrics and tuple(name.strip() for name in metrics.split(",")), "device": device}
    chosen = checked(EvalSettings, given, "dtnet eval")
    if output is None and "WORLD_SIZE" in os.environ:
        raise UserError("no folder", "--output", "one that all ranks see")
    logging.getLogger("dtnet").setLevel(logging.INFO)

    from dtnet.evaluation.run import run_eval

    found = run_eval(chosen, output or new_folder("dtnet", "eval"))
    if found is not None:
        console().print(found)
