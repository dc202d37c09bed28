"""From the model that a user names to the model and its fingerprint, for evaluation and demonstration."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from flashsloth.checkpoints.load import find_model, load
from flashsloth.miniature.model import shipped_folder
from flashsloth.modeling import FlashSlothForConditionalGeneration
from flashsloth.processing import FlashSlothProcessor
from tenfold.cli.settings import MINI, HostSettings
from tenfold.hosts.checkpoints import folder_fingerprint, on_hub
from tenfold.runs.ranks import choose_device


@dataclass(frozen=True)
class Host:
    """A loaded model.

    Attributes:
        model: in eval mode, on its device.
        processor: its processor.
        name: as it is shown: the folder's name, or the hub id.
        fingerprint: of the model's folder, or of its hub id and commit.
    """

    model: FlashSlothForConditionalGeneration
    processor: FlashSlothProcessor
    name: str
    fingerprint: str


def open_host(settings: HostSettings, known_by: str | None = None) -> Host:
    """Load a model as the settings say.

    Args:
        known_by: its fingerprint, where another process has read the weights for it already.

    Raises:
        UserError: as `flashsloth.load`; no mini model in this installation.
    """
    choose_device(settings.device)  # before the weights are read, or fetched
    folder, mini = _folder(settings), settings.model == MINI
    dtype = "float32" if mini and settings.dtype == "auto" else settings.dtype
    model, processor = load(folder, dtype, settings.device, attention=settings.attention)
    name = settings.model if mini or on_hub(settings) else folder.name
    return Host(model, processor, name, known_by or model_fingerprint(settings))


def model_fingerprint(settings: HostSettings) -> str:
    """Of the content of the model's folder, or of its hub id and commit. Raises UserError: no such model."""
    return folder_fingerprint(settings, _folder(settings))


def _folder(settings: HostSettings) -> Path:
    return shipped_folder() if settings.model == MINI else find_model(settings.model)
