"""`dit-sam convert`: the authors' checkpoints into folders, and back; REFER's files into the authors' form."""

# Annotations are not deferred: typer evaluates them.

from pathlib import Path
from typing import Annotated

import typer

from tenfold import UserError
from tenfold.cli.output import echo

EPILOG = (
    "Examples: [bold]dit-sam convert seg_best.pth my-dit --bert bert-base-uncased --variant layer_wise[/bold] · "
    "[bold]dit-sam convert my-dit again.pth --back[/bold] · [bold]dit-sam convert data/refer data/converted --refer "
    "refcoco[/bold]"
)
VARIANT = "layer_wise or e2e: their weights look alike. Others are told from the weights."
REFER = "SOURCE is a folder with this set of REFER (refcoco, refcoco+, refcocog): write anns/ and masks/ of it."


def convert(
    source: Annotated[Path, typer.Argument(metavar="SOURCE", help="A checkpoint, or with --back a folder.")],
    target: Annotated[Path, typer.Argument(metavar="TARGET", help="A new folder, or with --back a new file.")],
    bert: Annotated[Path | None, typer.Option(help="vocab.txt, or the folder of bert-base-uncased.")] = None,
    variant: Annotated[str | None, typer.Option(help=VARIANT)] = None,
    dims: Annotated[Path | None, typer.Option(metavar="FILE", help="A config.json, for heads of other sizes.")] = None,
    back: Annotated[bool, typer.Option("--back", help="From a folder to the authors' names.")] = False,
    refer: Annotated[str | None, typer.Option(metavar="SET", help=REFER)] = None,
    split: Annotated[str | None, typer.Option(help="With --refer: unc, google or umd.")] = None,
) -> None:
    """Convert checkpoints between the authors' names and this package's, or REFER's files into the authors' form."""
    if refer is not None:
        from dit_sam.data.conversion import convert_refer

        counts = convert_refer(source, target, refer, split)
        echo(", ".join(f"{part}: {count:,} records" for part, count in counts.items()))
        echo(f"wrote {target}")
        return

    from dit_sam.checkpoints import convert as work

    if back:
        done = work.convert_back(source, target)
    elif bert is None:
        raise UserError("no word pieces", "--bert", "vocab.txt, or the folder of bert-base-uncased")
    else:
        done = work.convert(source, target, bert=bert, variant=variant, dims=dims)
    echo(f"wrote {done.path}: {done.config.variant} at {done.config.input_size} pixels")
