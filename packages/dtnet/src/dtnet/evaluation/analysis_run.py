"""`dtnet analyze`: the routing report of a model on a data set, on images, or on mini scenes; as JSON and pictures."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from PIL import Image
from pydantic import Field, model_validator
from torch import Tensor

from dtnet.data.grid_features import GridFeatures
from dtnet.data.mini import KINDS, scene_kinds
from dtnet.evaluation.analysis import collect_paths, image_paths, report
from dtnet.evaluation.demo import held_out_scenes, load_model
from dtnet.evaluation.picture import draw_paths, draw_weights
from dtnet.evaluation.run import open_work
from dtnet.evaluation.settings import EvalSettings
from dtnet.features import build_extractor
from dtnet.model import DTNet
from dtnet.vocabulary import tokenise_all
from tenfold import UserError
from tenfold.cli.settings import DEVICE, Settings
from tenfold.data.pictures import open_picture
from tenfold.metrics.captions import split_words
from tenfold.runs import atomic_write_json, fingerprint, run

REPORT, WEIGHTS, PATHS = "routing.json", "weights.png", "paths.png"
# Images that the picture of paths shows.
SHOWN = 6


class AnalyzeSettings(Settings):
    """Settings of `dtnet analyze`.

    Attributes:
        model: a folder; None: the mini model that ships.
        data, captions, features, key, split: as for `dtnet eval`.
        images: files instead; with neither, mini scenes that no mini model was trained on.
        limit: only the first so many images.
        threshold: the least weight of a passed cell; None: 1 / P of the P cells that share the weight.
        tokens: how captions become words for the swap test: "spacy" or "whitespace"; None: whitespace for mini data
            sets, else spacy.
        device: "auto" takes CUDA where there is a device, else the CPU.
    """

    model: str | None = None
    data: str | None = None
    captions: str | None = None
    features: str | None = None
    key: Literal["auto", "grids", "features"] = "auto"
    split: Literal["train", "val", "test"] = "test"
    images: tuple[str, ...] = ()
    limit: int = Field(default=500, ge=1)
    threshold: float | None = Field(default=None, gt=0, le=1)
    tokens: Literal["spacy", "whitespace"] | None = None
    device: str = Field(default="auto", pattern=DEVICE)

    @model_validator(mode="after")
    def _one_source(self) -> AnalyzeSettings:
        if self.images and (self.data or self.captions or self.features):
            raise ValueError("--image, or a data set, not both")
        return self


@dataclass
class Material:
    """What is analysed.

    Attributes:
        names: of the images. features: `[images, n, d_in]`.
        pictures: of the first few, None where there is none.
        captions: of each image, raw; kinds: of each scene. None where nobody knows.
        mini: whether captions are words by white space.
        files: name -> what was read.
    """

    names: list[Any]
    features: Tensor
    pictures: list[Image.Image | None]
    captions: list[tuple[str, ...]] | None = None
    kinds: list[str] | None = None
    mini: bool = False
    files: Mapping[str, Path] | None = None


@dataclass(frozen=True)
class Analysis:
    """A finished report. Attributes: report: as in routing.json. files: what was written."""

    report: dict[str, Any]
    files: list[Path]


def run_analyze(settings: AnalyzeSettings, output: Path, seed: int = 0) -> Analysis:
    """Report on a model's routing; write routing.json, weights.png, paths.png and ``run.json`` into `output`.

    Args:
        seed: of who is swapped with whom.

    Raises:
        UserError: model, data or images cannot be used or do not fit; no spaCy for the captions.
    """
    model, folder = load_model(settings.model, settings.device)
    with ExitStack() as stack:
        material = find_material(settings, model, folder, stack)
        data = {"model": folder, **(material.files or {})}
        prints = {name: fingerprint(path) for name, path in data.items()}
        with run("dtnet", "analyze", config=settings.model_dump(), seed=seed, output=output, data=prints) as current:
            ids = None if material.captions is None else encode(settings, model, material)
            found = report(
                model, material.features, threshold=settings.threshold, kinds=material.kinds, captions=ids, seed=seed
            )
            paths = collect_paths(model, material.features)
            current.metrics |= {name: value for name, value in found.items() if name != "cells"}
            current.metrics["spread"] = max(row["spread"] for row in found["cells"])
            whole = found | {"paths": image_paths(paths, model.config, material.names)}
            atomic_write_json(current.file(REPORT), whole)
            draw_weights(found["cells"], current.file(WEIGHTS), f"{len(material.names):,} images")
            draw(model, material, settings.threshold, current.file(PATHS))
    return Analysis(found, [output / name for name in (REPORT, WEIGHTS, PATHS)])


def find_material(settings: AnalyzeSettings, model: DTNet, folder: Path, stack: ExitStack) -> Material:
    """The images to look at, whatever was named."""
    if settings.images:
        if model.feature_settings is None:
            raise UserError("a model without a feature extractor", folder, "--data, with grid features")
        chosen = settings.images[: settings.limit]
        pictures = [open_picture(name) for name in chosen]
        features = build_extractor(model.feature_settings)(pictures)
        files = {f"image {number}": Path(name) for number, name in enumerate(chosen)}
        return Material([Path(name).name for name in chosen], features, list(pictures[:SHOWN]), files=files)
    if settings.data is None and settings.features is not None and settings.captions is None:
        grids = GridFeatures(settings.features, settings.key, rows=model.config.positions)
        ids = grids.ids()[: settings.limit]
        return Material(list(ids), grids.batch(ids), [None] * SHOWN, files={"features": Path(settings.features)})
    if settings.data is None and settings.features is None:
        drawn = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="dtnet-analyze-")), "coco")
        scenes = held_out_scenes(drawn, settings.limit)
        ids = scenes.captions.images("test")
        return mini_material(drawn, ids, scenes.features.batch(ids), scenes.captions.references("test"))
    values = {name: getattr(settings, name) for name in ("data", "captions", "features", "key", "split", "limit")}
    work = open_work(EvalSettings(model=(str(folder),), **values), str(model.device))
    assert work.references is not None
    place = Path(settings.data) if settings.data is not None else None
    features = work.features.batch(work.ids)
    if place is not None and (place / KINDS).is_file():
        material = mini_material(place, work.ids, features, work.references)
    else:
        captions = [tuple(work.references[one]) for one in work.ids]
        material = Material(list(work.ids), features, [None] * SHOWN, captions)
    material.files = work.files
    return material


def mini_material(
    folder: Path, ids: Sequence[int], features: Tensor, references: Mapping[int, Sequence[str]]
) -> Material:
    """Scenes of a mini data set: their kinds are known, and pictures can be drawn where none were written."""
    kinds = scene_kinds(folder)
    shown = {path.stem.rpartition("_")[2]: path for path in folder.glob("images/*/*.png")}
    found = [shown.get(f"{image_id:012d}") for image_id in ids[:SHOWN]]
    pictures = [None if path is None else open_picture(path, raw=True) for path in found]
    captions = [tuple(references[image_id]) for image_id in ids]
    return Material(list(ids), features, pictures, captions, [kinds[image_id] for image_id in ids], mini=True)


def encode(settings: AnalyzeSettings, model: DTNet, material: Material) -> list[list[list[int]]] | None:
    """Captions as ids, for the swap test; None where the model has no words, or positions for fewer."""
    if model.vocabulary is None or material.captions is None:
        return None
    tokens = settings.tokens or ("whitespace" if material.mini else "spacy")
    flat = [text for captions in material.captions for text in captions]
    words = iter(tokenise_all(flat) if tokens == "spacy" else map(split_words, flat))
    longest = model.config.max_len - 1
    return [[model.vocabulary.encode(next(words)[:longest]) for _ in captions] for captions in material.captions]


def draw(model: DTNet, material: Material, threshold: float | None, path: Path) -> None:
    """The paths of the first few images, with their captions where the model has words."""
    features = material.features[:SHOWN]
    shown = len(features)
    if model.vocabulary is None:
        found = collect_paths(model, features)
        texts = [str(name) for name in material.names[:shown]]
        paths = [type(found)(*(part[number] for part in found)) for number in range(shown)]
    else:
        captions = model.caption(features, return_paths=True, max_len=min(20, model.config.max_len))
        texts, paths = [one.text for one in captions], [one.paths for one in captions]  # type: ignore[misc]
    pictures = [*material.pictures, *[None] * shown][:shown]
    draw_paths(pictures, texts, paths, model.config, path, threshold)
