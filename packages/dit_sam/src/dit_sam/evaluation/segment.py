"""`dit-sam segment IMAGE "the second cup from the left"`: a mask for each sentence, and an overlay."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dit_sam.evaluation.model import model_folder, open_predictor
from dit_sam.evaluation.picture import mask_image, overlay
from dit_sam.evaluation.settings import SegmentSettings
from tenfold.data.pictures import open_picture
from tenfold.runs import fingerprint, run


@dataclass(frozen=True)
class Segmented:
    """What was found.

    Attributes:
        rows: for each sentence its text, score, pixels and file. files: all that was written.
    """

    rows: list[dict[str, Any]]
    files: list[Path]


def run_segment(settings: SegmentSettings, output: Path, seed: int = 0) -> Segmented:
    """Segment into a folder: masks, overlay.png and the run's record.

    Raises:
        UserError: no such picture or model, an empty sentence, a folder that holds a finished run.
    """
    image = open_picture(settings.image)
    predictor = open_predictor(
        settings.model, settings.device, input_size=settings.input_size, protocol=settings.protocol
    )
    folder = model_folder(settings.model)
    prints = {"image": fingerprint(Path(settings.image))}
    prints |= {"model": fingerprint(folder)} if folder.exists() else {}
    with run("dit_sam", "segment", config=settings.model_dump(), seed=seed, output=output, data=prints) as current:
        predictor.set_image(image)
        prediction = predictor.predict(text=settings.texts, threshold=settings.threshold)
        rows: list[dict[str, Any]] = []
        for i, (text, mask) in enumerate(zip(settings.texts, prediction.masks, strict=True), start=1):
            name = f"mask-{i}-{_slug(text)}.png"
            mask_image(mask).save(current.file(name))
            rows.append(
                {"text": text, "score": float(prediction.scores[i - 1]), "pixels": int(mask.sum()), "file": name}
            )
        overlay(image, prediction.masks, settings.texts).save(current.file("overlay.png"))
        current.metrics["masks"] = rows
    files = [output / row["file"] for row in rows] + [output / "overlay.png"]
    return Segmented(rows, files)


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:40] or "text"
