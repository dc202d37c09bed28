"""`dit-sam segment`."""

# Annotations are not deferred: typer evaluates them.

from pathlib import Path
from typing import Annotated, Any

import typer

from dit_sam.evaluation.settings import SegmentSettings
from tenfold.cli.output import echo
from tenfold.cli.settings import DEVICES, checked
from tenfold.cli.verbs import absolute, absolute_if_there, new_folder

EPILOG = (
    'Examples: [bold]dit-sam segment photo.jpg "the second cup from the left" --model my-dit[/bold] · [bold]dit-sam '
    'segment photo.jpg "left cup" "right cup" --model my-dit[/bold] (a colour for each)'
)
MODEL = "A folder, a repository of the Hub, or mini (default), the small one of coloured shapes that ships."
PROTOCOL = "smooth resizes probabilities; official is the published numbers' way, whose edges are a little wider."
SIZE = "Edge of the padded square in pixels, a multiple of 16; default: the model's own."


def segment(
    image: Annotated[Path, typer.Argument(metavar="IMAGE", help="A picture; its EXIF orientation is applied.")],
    text: Annotated[list[str], typer.Argument(metavar="TEXT...", help="What to find; one sentence or several.")],
    model: Annotated[str | None, typer.Option(help=MODEL)] = None,
    output: Annotated[Path | None, typer.Option(metavar="FOLDER", help="Default: a new folder in runs/.")] = None,
    threshold: Annotated[float | None, typer.Option(help="Of the foreground's probability; default 0.35.")] = None,
    protocol: Annotated[str | None, typer.Option(help=PROTOCOL)] = None,
    input_size: Annotated[int | None, typer.Option(help=SIZE)] = None,
    device: Annotated[str | None, typer.Option(help=DEVICES)] = None,
) -> None:
    """Segment what sentences refer to: a mask of the picture's size each, and an overlay."""
    given: dict[str, Any] = {"image": absolute(image), "texts": tuple(text), "model": absolute_if_there(model)}
    given |= {"threshold": threshold, "protocol": protocol, "input_size": input_size, "device": device}
    settings = checked(SegmentSettings, given, "dit-sam segment")

    from dit_sam.evaluation.segment import run_segment

    found = run_segment(settings, output or new_folder("dit-sam", "segment"))
    for row in found.rows:
        echo(f"{row['text']}: {row['pixels']} pixels, score {row['score']:.2f}")
    for file in found.files:
        echo(f"wrote {file}")
