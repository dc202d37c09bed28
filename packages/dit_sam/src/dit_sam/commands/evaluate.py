"""`dit-sam eval`."""

# Annotations are not deferred: typer evaluates them.

import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dit_sam.commands.segment import MODEL, PROTOCOL, SIZE
from dit_sam.data.settings import DATA_TREE
from dit_sam.evaluation.settings import EvalSettings
from tenfold.cli.app import console
from tenfold.cli.output import echo
from tenfold.cli.settings import DEVICES, checked
from tenfold.cli.verbs import absolute, absolute_if_there, new_folder

if TYPE_CHECKING:
    from rich.table import Table

    from dit_sam.evaluation.run import Evaluation

EPILOG = (
    "Examples: [bold]dit-sam eval[/bold] (the mini model on mini scenes) · [bold]dit-sam eval my-dit --data data/refer "
    "--set refcoco --part testA[/bold] · [bold]torchrun --standalone --nproc_per_node 2 -m dit_sam eval my-dit --data "
    "data/refer --output runs/eval[/bold]"
)
SET = "refcoco (default), refcoco+, refcocog, grefcoco, or own."
NO_TARGET = "gRefCOCO: a mask of fewer pixels counts as none; default 0."


def evaluate(
    model: Annotated[str | None, typer.Argument(metavar="[MODEL]", help=MODEL)] = None,
    data: Annotated[Path | None, typer.Option(metavar="FOLDER", help=DATA_TREE)] = None,
    set_: Annotated[str | None, typer.Option("--set", help=SET)] = None,
    split: Annotated[str | None, typer.Option(help="REFER's: unc, google or umd; default: the published one.")] = None,
    part: Annotated[str | None, typer.Option(help="val (default), testA, testB, test; of own data any.")] = None,
    protocol: Annotated[str | None, typer.Option(help=PROTOCOL + " Default: official.")] = None,
    threshold: Annotated[float | None, typer.Option(help="Of the foreground's probability; default 0.35.")] = None,
    input_size: Annotated[int | None, typer.Option(help=SIZE)] = None,
    no_target_pixels: Annotated[int | None, typer.Option(help=NO_TARGET)] = None,
    batch: Annotated[int | None, typer.Option(help="Sentences at a time; default 8.")] = None,
    limit: Annotated[int | None, typer.Option(help="Only the first so many sentences.")] = None,
    device: Annotated[str | None, typer.Option(help=DEVICES)] = None,
    output: Annotated[Path | None, typer.Option(metavar="FOLDER", help="Default: a new folder in runs/.")] = None,
) -> None:
    """Segment the sentences of a part and score the masks: mIoU, oIoU and P@X, the paper's number beside them.

    One that was killed goes on where it stopped when the same command is given again.
    """
    given: dict[str, Any] = {"model": absolute_if_there(model), "data": absolute(data), "set": set_, "split": split}
    given |= {"part": part, "protocol": protocol, "threshold": threshold, "input_size": input_size}
    given |= {"no_target_pixels": no_target_pixels, "batch": batch, "limit": limit, "device": device}
    settings = checked(EvalSettings, given, "dit-sam eval")
    logging.getLogger("dit_sam").setLevel(logging.INFO)

    from dit_sam.evaluation.run import run_eval

    place = output or new_folder("dit-sam", "eval")
    found = run_eval(settings, place)
    if found is not None and int(os.environ.get("RANK", 0)) == 0:
        console().print(score_table(found))
        echo(f"wrote {found.output}")


def score_table(found: "Evaluation") -> "Table":
    """Measures by name, for all sentences and by their kind, with counts."""
    from rich.table import Table

    its = found.settings
    name = "mini world" if its.data is None else f"{its.set} {its.part}"
    table = Table(title=f"{name}, {its.protocol} protocol", title_justify="left")
    kinds = found.metrics.get("kinds", {})
    for column in ("measure", f"all ({found.sentences:,} sentences)"):
        table.add_column(column)
    for one, scores in kinds.items():
        table.add_column(f"{one} ({scores['sentences']:,})")
    table.add_column("released weights")
    for measure, score in found.metrics["scores"].items():
        paper = f"{found.paper:.2f}" if found.paper is not None and measure in ("mIoU", "gIoU") else ""
        paper += " (measure not stated)" if paper and measure == "gIoU" else ""
        table.add_row(measure, f"{score:.2f}", *(f"{scores[measure]:.2f}" for scores in kinds.values()), paper)
    return table
