"""`dtnet extract` and `dtnet convert`: images into features, official checkpoints into this package's folders."""

# Annotations are not deferred: typer evaluates them.

from pathlib import Path
from typing import Annotated, Any

import typer

from tenfold import UserError
from tenfold.cli.output import echo

EXTRACT_EPILOG = (
    "Examples: [bold]dtnet extract --images photos --out features.h5 --arch resnext101_32x8d --weights "
    "resnext101.pth[/bold] · [bold]dtnet extract --images maps --out features.h5[/bold] (grid-feats-vqa's .pth files)"
)
CONVERT_EPILOG = (
    "Example: [bold]dtnet convert saved_models/dtnet_best.pth dtnet-coco --vocabulary vocab_transformer_grid.pkl[/bold]"
)


def extract(
    images: Annotated[Path, typer.Option(metavar="FOLDER", help="Images, or grid-feats-vqa's <image id>.pth maps.")],
    out: Annotated[Path, typer.Option(metavar="FILE.h5", help="For the features; appears when it is complete.")],
    extractor: Annotated[str, typer.Option(help="backbone (a torchvision ResNet or ResNeXt), or mini.")] = "backbone",
    arch: Annotated[str | None, typer.Option(help="Of the backbone: resnext101_32x8d, resnet50, ...")] = None,
    weights: Annotated[
        str | None, typer.Option(metavar="FILE", help="Of the backbone; or random, to try things out.")
    ] = None,
    device: Annotated[str | None, typer.Option(help="Where the backbone runs.")] = None,
    captions: Annotated[Path | None, typer.Option(help="Captions whose file names give the image ids.")] = None,
    batch: Annotated[int, typer.Option(min=1, help="Images at a time.")] = 16,
    dtype: Annotated[str, typer.Option(help="float32, or float16 for half the room.")] = "float32",
) -> None:
    """Turn a folder of images into grid features. One that was killed goes on where it stopped."""
    if extractor != "backbone" and (arch or weights or device):
        raise UserError("--arch, --weights and --device", f"--extractor {extractor}", "--extractor backbone")
    given = {"name": extractor, "arch": arch, "weights": weights, "device": device}

    from dtnet.data.extract import ExtractSettings, run_extract

    chosen: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    found = run_extract(ExtractSettings(images, out, chosen, captions, batch, dtype))
    echo(f"wrote {found['output']}: {found['images']:,} images, {found['d_in']} channels a cell")


def convert(
    source: Annotated[Path, typer.Argument(metavar="SRC", help="An official .pth, or a folder that dtnet wrote.")],
    target: Annotated[Path, typer.Argument(metavar="DST", help="A new folder, or with --to official a new .pth.")],
    to: Annotated[str, typer.Option(help="dtnet (this package's folder) or official.")] = "dtnet",
    vocabulary: Annotated[
        Path | None, typer.Option(metavar="FILE", help="vocab_transformer_grid.pkl, or .json.")
    ] = None,
) -> None:
    """Turn an official checkpoint into a folder that the other verbs take, or back, bit for bit."""
    if to not in ("dtnet", "official"):
        raise UserError("unknown format", f"--to {to}", "dtnet or official")

    from dtnet.checkpoints import keys as checkpoints

    echo(f"wrote {checkpoints.convert(source, target, to, vocabulary)}")  # type: ignore[arg-type]
