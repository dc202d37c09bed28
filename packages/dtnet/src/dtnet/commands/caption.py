"""`dtnet caption`: a model, images or their features, and the captions."""

# Annotations are not deferred: typer evaluates them.

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dtnet.evaluation.settings import CaptionSettings
from tenfold import UserError
from tenfold.cli.app import console
from tenfold.cli.output import echo
from tenfold.cli.settings import DEVICES, checked

if TYPE_CHECKING:
    from rich.table import Table
    from torch import Tensor

    from dtnet.model import Caption, DTNet

EPILOG = (
    "Examples: [bold]dtnet caption --model runs/mini --features runs/mini/data/grid_features.h5 --image-id 7[/bold] · "
    "[bold]dtnet caption --model runs/mini --image scene.png --paths[/bold]"
)


def caption(
    model: Annotated[Path, typer.Option(metavar="FOLDER", help="What training wrote, or `convert`.")],
    features: Annotated[Path | None, typer.Option(metavar="FILE.h5", help="Grid features of images.")] = None,
    image_id: Annotated[list[int] | None, typer.Option(help="Of an image in FILE.h5; may be repeated.")] = None,
    image: Annotated[list[Path] | None, typer.Option(metavar="FILE", help="An image; may be repeated.")] = None,
    beams: Annotated[int | None, typer.Option(help="Of the search; default 5.")] = None,
    max_len: Annotated[int | None, typer.Option(help="Words at most; default 20.")] = None,
    paths: Annotated[bool, typer.Option("--paths", help="Print the weights of the cells in every layer.")] = False,
    device: Annotated[str | None, typer.Option(help=DEVICES)] = None,
) -> None:
    """Caption images, or images whose features are in a file; with the log-probability of each caption."""
    chosen = checked(CaptionSettings, {"beams": beams, "max_len": max_len, "device": device})
    if bool(image) == bool(features) or bool(features) != bool(image_id):
        raise UserError("what to caption", "dtnet caption", "--image FILE, or --features FILE.h5 with --image-id N")

    from dtnet.model import DTNet
    from tenfold.data.pictures import open_picture
    from tenfold.runs.ranks import choose_device

    captioner = DTNet.from_pretrained(find_model(model), device=str(choose_device(chosen.device)))
    names = [str(path) for path in image] if image else [str(number) for number in image_id or ()]
    inputs = [open_picture(path) for path in image] if image else _features(captioner, features, image_id or ())
    found = captioner.caption(inputs, beam_size=chosen.beams, max_len=chosen.max_len, return_paths=paths)
    for name, one in zip(names, found, strict=True):
        echo(f"{name}: {one.text} (log-probability {one.log_prob:.2f})")
        if paths:
            console().print(paths_table(captioner, one))


def find_model(folder: Path) -> Path:
    """A model's folder, or the `model` in a training's."""
    return folder / "model" if (folder / "model" / "config.json").is_file() else folder


def paths_table(model: "DTNet", caption: "Caption") -> "Table":
    """The weights of the cells, one row a layer."""
    from rich.table import Table

    cells = (*model.config.spatial_cells, *model.config.channel_cells)
    table = Table("layer", *(cell.upper() for cell in cells))
    assert caption.paths is not None
    rows = zip(caption.paths.spatial.tolist(), caption.paths.channel.tolist(), strict=True)
    for layer, (spatial, channel) in enumerate(rows):
        table.add_row(str(layer), *(f"{weight:.3f}" for weight in (*spatial, *channel)))
    return table


def _features(model: "DTNet", file: Path | None, image_ids: Sequence[int]) -> "Tensor":
    from dtnet.data.grid_features import GridFeatures

    assert file is not None
    return GridFeatures(file, rows=model.config.positions).batch(image_ids)
