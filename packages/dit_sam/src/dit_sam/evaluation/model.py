"""Which model a verb uses: a folder, a Hub repository, or the mini one that ships."""

from __future__ import annotations

from pathlib import Path

from dit_sam.predictor import DitPredictor, Protocol
from tenfold.cli import package_file
from tenfold.cli.settings import MINI
from tenfold.runs.ranks import choose_device

MINI_MODEL = "assets/mini"


def model_folder(name: str) -> Path:
    """A model's folder by its name; what is no folder may be a repository of the Hub."""
    return package_file("dit_sam", MINI_MODEL) if name == MINI else Path(name)


def open_predictor(
    name: str, device: str, *, input_size: int | None = None, batch: int = 8, protocol: Protocol = "smooth"
) -> DitPredictor:
    """A predictor of a model by its name.

    Raises:
        UserError: no such model, or a broken one; a size that does not fit; no CUDA where it is asked for.
    """
    options = {"input_size": input_size, "batch_size": batch, "protocol": protocol}
    return DitPredictor.from_pretrained(model_folder(name), device=str(choose_device(device)), **options)
