"""The model that a verb names: a folder, an official file, a hub repository, or the mini one that ships."""

from __future__ import annotations

from pathlib import Path

import torch

from e3_facenet.checkpoints.load import load_official
from e3_facenet.evaluation.settings import ModelSettings
from e3_facenet.facenet import CONFIG, E3FaceNet
from e3_facenet.text import OFFICIAL_CLIP, load_text_encoder
from tenfold import UserError
from tenfold.cli.settings import MINI
from tenfold.runs import fingerprint
from tenfold.runs.ranks import choose_device

MINI_MODEL = Path(__file__).parent.parent / "assets" / "mini_model"


def mini_model_path() -> Path:
    """The folder of the mini model that ships. Raises UserError where this package has none."""
    if not (MINI_MODEL / CONFIG).is_file():
        raise UserError(
            "no mini model in this package", MINI_MODEL, "--model FOLDER of `e3-facenet train --config mini`"
        )
    return MINI_MODEL


def model_path(name: str) -> Path:
    """Where a model lies; a hub repository's name stays one."""
    return mini_model_path() if name == MINI else Path(name)


def model_data(name: str) -> dict[str, str | Path]:
    """For a run's record: the model's fingerprint; nothing for a hub repository's name."""
    path = model_path(name)
    return {"model": fingerprint(path)} if path.exists() else {}


def open_model(settings: ModelSettings) -> E3FaceNet:
    """Open it on the chosen device.

    Raises:
        UserError: no such model, a broken one, or no such device.
    """
    device, path = choose_device(settings.device), model_path(settings.model)
    dtype = getattr(torch, settings.dtype)
    if path.is_file():
        generator, _ = load_official(path)
        model = E3FaceNet(generator, load_text_encoder(settings.clip or OFFICIAL_CLIP), settings.clip or OFFICIAL_CLIP)
        generator.alpha.fill_(1.0)  # released weights are of full resolution, whatever an early snapshot says
        generator.use_dtype(dtype)
        return model.to(device)
    return E3FaceNet.from_pretrained(path if settings.model == MINI else settings.model, device, settings.clip, dtype)
