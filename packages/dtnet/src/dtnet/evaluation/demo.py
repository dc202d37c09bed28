"""`dtnet demo`: captions of mini scenes, or of an image of your own, and the paths that they took.

The mini scenes go the whole way: they are written as COCO's files and read from there.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from pydantic import Field
from rich.console import Group
from rich.table import Table
from rich.text import Text

from dtnet.data.caption_data import CaptionData, open_data
from dtnet.data.mini import FEATURES, KINDS, write_mini_coco
from dtnet.data.settings import DataSettings
from dtnet.evaluation.picture import draw_paths
from dtnet.model import CONFIG, Caption, DTNet
from tenfold import UserError
from tenfold.cli.settings import DEVICE, Settings
from tenfold.data.pictures import open_picture
from tenfold.runs import atomic_write_json, fingerprint, run
from tenfold.runs.ranks import choose_device

PICTURE, CAPTIONS = "paths.png", "captions.json"
# The world of held-out scenes: the shipped model's training drew its scenes from world 0.
HELD_OUT = 1


class DemoSettings(Settings):
    """Settings of `dtnet demo`.

    Attributes:
        model: a folder; None: the mini model that ships.
        images: files to caption; empty: mini scenes.
        scenes: how many of them.
        beams, max_len: of the search.
        threshold: the least weight of a cell that the picture shows as passed; None: 1 / P of P cells.
        device: "auto" takes CUDA where there is a device, else the CPU.
    """

    model: str | None = None
    images: tuple[str, ...] = ()
    scenes: int = Field(default=6, ge=1, le=50)
    beams: int = Field(default=5, ge=1)
    max_len: int = Field(default=20, ge=1)
    threshold: float | None = Field(default=None, gt=0, le=1)
    device: str = Field(default="auto", pattern=DEVICE)


@dataclass(frozen=True)
class Demonstration:
    """What a demonstration showed.

    Attributes:
        names: of the images. captions: of each.
        references: what people would say; empty where nobody knows.
        picture: where it was written.
        metrics: as in the run's record.
    """

    names: list[str]
    captions: list[Caption]
    references: list[tuple[str, ...]]
    picture: Path
    metrics: dict[str, Any]

    def __rich__(self) -> Group:
        table = Table(title_justify="left")
        for column in ("image", "caption", "log-prob", "references"):
            table.add_column(column, overflow="fold")
        for name, caption, known in zip(self.names, self.captions, self.references, strict=True):
            row = (name, caption.text, f"{caption.log_prob:.2f}", " · ".join(known))
            table.add_row(*(Text(cell) for cell in row))
        return Group(table, Text(f"picture: {self.picture}", overflow="fold"))


def mini_model_path() -> Path:
    """The folder of the mini model that ships.

    Raises:
        UserError: this package has none.
    """
    folder = Path(__file__).parents[1] / "mini_model"
    if not (folder / CONFIG).is_file():
        raise UserError("no mini model in this package", folder, "--model FOLDER, of `dtnet train --config mini`")
    return folder


def held_out_scenes(folder: Path, count: int, images: bool = True) -> CaptionData:
    """Write so many scenes that no mini model was trained on as a COCO data set, split "test", and open it.

    Args:
        folder: must not exist.
        images: also the pictures.
    """
    write_mini_coco(folder, HELD_OUT, 1, 1, count, images=images)
    return open_mini(folder)


def open_mini(folder: Path) -> CaptionData:
    """Open a folder of `write_mini_coco`."""
    settings = DataSettings(features=FEATURES, tokens="whitespace", vocabulary="vocabulary.json", in_memory=True)
    return open_data(settings, folder, grid=7)


def is_mini(folder: Path) -> bool:
    """Whether a data set's folder says the kinds of its scenes."""
    return (folder / KINDS).is_file()


def load_model(folder: str | None, device: str) -> tuple[DTNet, Path]:
    """The model in a folder (or in the training in it), by default the one that ships; and its folder.

    Raises:
        UserError: no such model, a broken one, or no such device.
    """
    path = mini_model_path() if folder is None else Path(folder)
    path = path / "model" if (path / "model" / CONFIG).is_file() else path
    return DTNet.from_pretrained(path, device=str(choose_device(device))), path


def run_demo(settings: DemoSettings, output: Path) -> Demonstration:
    """Caption images and draw their paths; write the picture, the captions and ``run.json`` into ``output``.

    Raises:
        UserError: model or image cannot be used.
    """
    model, folder = load_model(settings.model, settings.device)
    pictures = [open_picture(name) for name in settings.images]
    data: dict[str, Any] = {"model": fingerprint(folder)}
    data |= {f"image {number}": fingerprint(Path(name)) for number, name in enumerate(settings.images)}
    with run("dtnet", "demo", config=settings.model_dump(), seed=0, output=output, data=data) as current:
        options: dict[str, Any] = {"beam_size": settings.beams, "max_len": settings.max_len, "return_paths": True}
        if pictures:
            names = [Path(name).name for name in settings.images]
            references: list[tuple[str, ...]] = [()] * len(names)
            captions = model.caption(pictures, **options)
        else:
            names, pictures, references, captions = _scenes(model, settings.scenes, options)
        right = [caption.text in known for caption, known in zip(captions, references, strict=True) if known]
        rows = [
            {"image": name, "caption": one.text, "log_prob": one.log_prob, "references": list(known)}
            for name, one, known in zip(names, captions, references, strict=True)
        ]
        current.metrics |= {"captions": [one.text for one in captions], "log_probs": [one.log_prob for one in captions]}
        current.metrics |= {"exactly_a_reference": sum(right)} if right else {}
        atomic_write_json(current.file(CAPTIONS), rows)
        draw_paths(
            pictures[:8], [one.text for one in captions][:8], [one.paths for one in captions][:8], model.config,
            current.file(PICTURE), settings.threshold,
        )  # fmt: skip
    return Demonstration(names, captions, references, output / PICTURE, current.metrics)


def _scenes(
    model: DTNet, count: int, options: dict[str, Any]
) -> tuple[list[str], list[Image.Image], list[tuple[str, ...]], list[Caption]]:
    with tempfile.TemporaryDirectory(prefix="dtnet-demo-") as temporary:
        folder = Path(temporary, "coco")
        data = held_out_scenes(folder, count)
        ids = data.captions.images("test")
        references = [data.captions.captions[image_id] for image_id in ids]
        pictures = [open_picture(folder / "images" / data.captions.files[image_id], raw=True) for image_id in ids]
        captions = model.caption(data.features.batch(ids), **options)
        data.features.close()
    return [f"scene {image_id}" for image_id in ids], pictures, references, captions
