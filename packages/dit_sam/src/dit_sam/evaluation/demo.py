"""`dit-sam demo`: the mini model that ships, on mini scenes that no training saw, with a picture to look at."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from dit_sam.data.mini import CONFIG, drawn_expressions, part_seed, polygon
from dit_sam.data.segmentation import decode
from dit_sam.evaluation.model import open_predictor
from dit_sam.evaluation.picture import overlay
from dit_sam.evaluation.run import MINI_SCENES
from dit_sam.evaluation.settings import DemoSettings
from dit_sam.scores import overlap, referring_scores
from tenfold.data import miniworld
from tenfold.runs import run

# The scenes are shown this many times larger.
SCALE = 5


@dataclass(frozen=True)
class Demo:
    """What the demonstration found.

    Attributes:
        rows: scene, sentence, IoU and score. scores: of all of them. picture: the file to look at.
    """

    rows: list[dict[str, Any]]
    scores: dict[str, float]
    picture: Path


def run_demo(settings: DemoSettings, output: Path, seed: int = 0) -> Demo:
    """Segment into a folder: demo.png and the run's record.

    Raises:
        UserError: no such model; a folder that holds a finished run.
    """
    predictor = open_predictor(settings.model, settings.device, protocol="official")
    world, size = part_seed(MINI_SCENES, "test"), predictor.model.config.input_size
    rows, found, sheets = [], [], []
    with run("dit_sam", "demo", config=settings.model_dump(), seed=seed, output=output) as current:
        for index in range(settings.scenes):
            scene = miniworld.scene(world, index, CONFIG)
            image = miniworld.render(scene, size)
            said = drawn_expressions(scene, world, index)
            predictor.set_image(image)
            prediction = predictor.predict(text=[one.text for one in said])
            for one, mask, score in zip(said, prediction.masks, prediction.scores, strict=True):
                truth = decode([polygon(scene.things[one.target], size)], size, size, "scene") > 0
                found.append(overlap(mask, truth))
                rows.append({"scene": index, "text": one.text, "IoU": found[-1].iou, "score": float(score)})
            large = image.resize((size * SCALE, size * SCALE), Image.Resampling.NEAREST)
            masks = prediction.masks.repeat(SCALE, axis=1).repeat(SCALE, axis=2)
            sheets.append(overlay(large, masks, prediction.texts))
        scores = referring_scores(found)
        beside(sheets).save(current.file("demo.png"))
        current.metrics |= {"scores": scores, "sentences": len(rows)}
    return Demo(rows, scores, output / "demo.png")


def beside(pictures: list[Image.Image]) -> Image.Image:
    """Pictures in a row, on white."""
    height = max(one.height for one in pictures)
    padded = [
        np.pad(np.array(one), ((0, height - one.height), (0, 8), (0, 0)), constant_values=255) for one in pictures
    ]
    return Image.fromarray(np.concatenate(padded, axis=1))
