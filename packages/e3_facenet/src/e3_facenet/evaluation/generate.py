"""What `generate`, `edit` and `demo` do as runs: a face, its edit, and the files that they leave."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from e3_facenet.camera import poses
from e3_facenet.config import GeneratorConfig
from e3_facenet.evaluation.model import model_data, open_model
from e3_facenet.evaluation.picture import strip, write_png
from e3_facenet.evaluation.scores import flatness
from e3_facenet.evaluation.settings import FaceSettings
from e3_facenet.facenet import Portrait
from tenfold.runs import atomic_write_json, run

DEMO = FaceSettings(
    text="a face with pale skin , black hair , wide mouth and red hat",
    edit="a face with green skin , black hair , wide mouth and red hat",
    strength=1.0,
)
STRIP, CAMERAS = "views.png", "cameras.json"


@dataclass(frozen=True)
class Made:
    """The portraits of a run, the edit last, and the record's metrics."""

    portraits: list[Portrait]
    metrics: dict[str, Any]


def portrait_flatness(portrait: Portrait, config: GeneratorConfig) -> float:
    """Spread of depth over the face relative to the range of depths; 0 is a flat wall."""
    opaque = portrait.opacity.cpu().numpy() > 0.5
    return flatness(portrait.depth.cpu().numpy(), config.near, config.far, opaque)


def run_generate(settings: FaceSettings, seed: int, output: Path, verb: str = "generate") -> Made:
    """Generate a face, edit it where a second sentence is given, and write both.

    Writes views.png (all of it on one sheet), view-N.png and edited-N.png with metadata, depth.npy, normals.npy,
    cameras.json and run.json.

    Raises:
        UserError: the model cannot be opened, a caption of too many tokens, the folder holds a finished run.
    """
    with run(
        "e3_facenet", verb, config=settings.model_dump(mode="json"), seed=seed, output=output,
        data=model_data(settings.model),
    ) as current:  # fmt: skip
        model = open_model(settings)
        portraits = [model.generate(settings.text, poses(settings.yaws), seed, settings.psi)]
        if settings.edit is not None:
            portraits.append(model.edit(portraits[0], settings.edit, settings.strength, background=settings.background))
        for name, portrait in zip(("view", "edited"), portraits, strict=False):
            for number, picture in enumerate(portrait.pil()):
                write_png(picture, current.file(f"{name}-{number}.png"), portrait)
        write_png(strip(portraits), current.file(STRIP), portraits[-1])
        np.save(current.file("depth.npy"), portraits[0].depth.cpu().numpy())
        np.save(current.file("normals.npy"), portraits[0].normals.cpu().numpy())
        atomic_write_json(current.file(CAMERAS), portraits[0].cameras_json())
        current.metrics |= {
            "views": len(settings.yaws),
            "resolution": portraits[0].images.shape[-1],
            "mean": float(portraits[0].images.mean()),
            "flatness": portrait_flatness(portraits[0], model.config),
        }
        if settings.edit is not None:
            change = (portraits[1].images - portraits[0].images).abs().mean()
            current.metrics["edit_change"] = float(change)
    return Made(portraits, current.metrics)
