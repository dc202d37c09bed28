"""`gamma-mod demo`: one image and one question, answered dense and converted, and a picture of the skipped patches."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from gamma_mod.data.prompts import batch_prompts
from gamma_mod.evaluation.answers import Host, answer, calibrate_on, on_device, open_host
from gamma_mod.evaluation.picture import skipped_patches
from gamma_mod.evaluation.settings import DemoSettings
from gamma_mod.report import Skips, measure_skips
from tenfold import UserError
from tenfold.cli.settings import MINI
from tenfold.data import mini_sets
from tenfold.data.formats import CalibrationSample
from tenfold.data.pictures import open_picture
from tenfold.hosts import structure
from tenfold.runs import fingerprint, run
from tenfold.runs.ranks import choose_device

# Scenes that the threshold is calibrated on; the scene that is asked about lies in another world.
CALIBRATION, WORLD, PIXELS = 8, 4_000_000, 336
PICTURE = "skipped-patches.png"


@dataclass(frozen=True)
class Demonstration:
    """What a demonstration showed.

    Attributes:
        question: what was asked. gold: the right answer, where it is known.
        picture: its file; None where the patches' places are not known.
        skips: of the prompt and the answer. metrics: as in the run's record.
    """

    question: str
    gold: str | None
    picture: Path | None
    skips: Skips
    metrics: dict[str, Any]


def run_demo(settings: DemoSettings, seed: int, output: Path) -> Demonstration:
    """Answer one question dense and converted; write the picture and ``run.json`` into ``output``.

    Raises:
        UserError: model or image cannot be used, or an image without a question.
    """
    image, question, gold = _ask(settings, seed)
    device = str(choose_device(settings.device))
    dense = open_host(
        settings.model_copy(update={"layers": None, "threshold": None, "skip": None, "decode_skip": None}), device, seed
    )
    data = {"model": dense.fingerprint} | ({"image": fingerprint(Path(settings.image))} if settings.image else {})
    with run("gamma_mod", "demo", config=settings.model_dump(mode="json"), seed=seed, output=output, data=data) as now:
        trained = dense.conversion is not None
        (plain,) = answer(dense, [image], [question], protocol=settings.protocol)
        host = dense if trained else open_host(settings, device, seed)
        if settings.skip is not None:
            calibrate_on(host, _calibration(settings, image, question), settings.skip, settings.protocol)
        (converted,) = answer(host, [image], [question], protocol=settings.protocol)
        skips, visual = _prompt_skips(host, image, question, settings.protocol)
        overlap = skips.overlap(visual)
        picture = skipped_patches(image, skips, visual, now.file(PICTURE), overlap)
        now.metrics |= {
            "answer": converted.text,
            "answer_dense": None if trained else plain.text,
            "threshold": host.conversion.config.prefill_threshold,
            "skip": skips.prefill,
            "kept": list(converted.kept),
            "tokens": converted.tokens,
            "overlap": {f"{before}-{after}": value for (before, after), value in overlap.items()},
        }
    shown = None if picture is None else output / PICTURE
    return Demonstration(question, gold, shown, skips, now.metrics)


@torch.inference_mode()
def _prompt_skips(host: Host, image: Image.Image, question: str, protocol: str) -> tuple[Skips, torch.Tensor]:
    inputs = on_device(host.model, batch_prompts(host.processor, [image], [question], protocol))
    with measure_skips(keep_tensors=True) as skips:
        host.model(**inputs, use_cache=False)
    return skips, structure.visual_mask(structure.unwrap(host.model), inputs)


def _ask(settings: DemoSettings, seed: int) -> tuple[Image.Image, str, str | None]:
    if settings.image is not None:
        if settings.question is None:
            raise UserError("no question", settings.image, "--question beside --image")
        return open_picture(Path(settings.image)), settings.question, None
    sample = next(iter(_scenes(WORLD + seed, 1)))
    assert sample.picture is not None
    image = sample.picture.open()
    return image, settings.question or sample.text, None


def _calibration(settings: DemoSettings, image: Image.Image, question: str) -> list[tuple[Image.Image | None, str]]:
    if settings.model != MINI:
        return [(image, question)]
    return [(sample.picture.open(), sample.text) for sample in _scenes(0, CALIBRATION) if sample.picture is not None]


def _scenes(world: int, count: int) -> list[CalibrationSample]:
    return list(mini_sets.calibration(world, count, PIXELS))
