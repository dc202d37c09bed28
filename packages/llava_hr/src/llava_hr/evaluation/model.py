"""From the model that a user names to the model and its fingerprint, for evaluation and demonstration."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from llava_hr.checkpoints.load import find_model, load
from llava_hr.miniature.model import mini_model_path
from llava_hr.modeling import LlavaHrForConditionalGeneration
from llava_hr.processing import LlavaHrProcessor
from tenfold.cli.settings import MINI, HostSettings
from tenfold.hosts.checkpoints import folder_fingerprint, on_hub, require_shipped
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

    model: LlavaHrForConditionalGeneration
    processor: LlavaHrProcessor
    name: str
    fingerprint: str


def open_host(settings: HostSettings, known_by: str | None = None) -> Host:
    """Load a model as the settings say.

    Args:
        known_by: its fingerprint, where another process has read the weights for it already.

    Raises:
        UserError: as `llava_hr.load`; no mini model in this installation.
    """
    choose_device(settings.device)  # before the weights are read, or fetched
    folder = _folder(settings)
    mini = settings.model == MINI
    dtype = "float32" if mini and settings.dtype == "auto" else settings.dtype
    # The same bits in every loading: `verify` compares with them.
    model, processor = load(folder, dtype, settings.device, attention=settings.attention, aligned=True)
    name = settings.model if mini or on_hub(settings) else folder.name
    return Host(model, processor, name, known_by or model_fingerprint(settings))


def model_fingerprint(settings: HostSettings) -> str:
    """Of the content of the model's folder, or of its hub id and commit. Raises UserError: no such model."""
    return folder_fingerprint(settings, _folder(settings))


def _folder(settings: HostSettings) -> Path:
    return mini_folder() if settings.model == MINI else find_model(settings.model)


def mini_folder() -> Path:
    """The model that ships. Raises UserError where it does not."""
    return require_shipped(mini_model_path())
