"""From the name of a host to the model and its processor, or one line that says what is wrong with it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import AutoImageProcessor, AutoModelForImageTextToText, AutoProcessor
from transformers.utils import is_torchvision_available
from transformers.utils import logging as transformers_logging

from dyvte.checkpoints.load import HUB_ID
from tenfold import UserError
from tenfold.cli.settings import MINI, HostSettings
from tenfold.runs import fingerprint, read_json
from tenfold.runs.ranks import choose_device


@dataclass(frozen=True)
class Host:
    """A loaded model.

    Attributes:
        model: in eval mode, on its device, without gradients.
        processor: its processor; images through Pillow, whose pixels are the same everywhere.
        fingerprint: of the model's folder, or of its hub id and commit.
        name: as it was asked for.
    """

    model: nn.Module
    processor: Any
    fingerprint: str
    name: str


def load_host(settings: HostSettings) -> Host:
    """Load a vision-language model and its processor.

    Raises:
        UserError: no such model, weights that do not fit, a truncated file, an official release that needs converting
            first, a hub that cannot be reached, or no CUDA device.
    """
    device = choose_device(settings.device)
    folder = host_folder(settings.model)
    source = settings.model if folder is None else str(folder)
    mini = settings.model == MINI and settings.dtype == "auto"
    dtype = torch.float32 if mini else settings.dtype if settings.dtype == "auto" else getattr(torch, settings.dtype)
    local = {"local_files_only": folder is not None, "trust_remote_code": False}
    try:
        with _quiet():
            model, loading = AutoModelForImageTextToText.from_pretrained(
                source,
                dtype=dtype,
                attn_implementation=settings.attention,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # reported below, with the first key that differs
                **local,
            )
            processor = AutoProcessor.from_pretrained(source, **local)
            if is_torchvision_available():
                processor.image_processor = AutoImageProcessor.from_pretrained(source, backend="pil", **local)
    except (ImportError, OSError, ValueError, SafetensorError) as error:
        lines = str(error).strip().splitlines()
        reason = lines[0].partition(". ")[0] if lines else type(error).__name__
        layout = "a vision-language model in transformers' layout with its processor"
        raise UserError(reason, source, layout if folder else "a local folder, or a hub that can be reached") from error
    for kind in ("mismatched_keys", "missing_keys"):
        if keys := sorted(map(str, loading[kind])):
            raise UserError(f"{len(keys)} {kind.replace('_', ' ')}, first {keys[0]}", source, "weights of its config")
    pinned = folder or {"hub": settings.model, "commit": model.config._commit_hash}
    return Host(model.eval().requires_grad_(False).to(device), processor, fingerprint(pinned), settings.model)


def host_folder(name: str) -> Path | None:
    """The model's folder, None for a hub id."""
    if name == MINI:
        from tenfold.data import mini_host

        return mini_host.path()
    path = Path(name)
    if not path.is_dir():
        if path.exists() or not HUB_ID.fullmatch(name):
            raise UserError("no such model", name, f"a folder, a hub id such as llava-hf/llava-1.5-7b-hf, or {MINI}")
        return None
    config = path / "config.json"
    content = read_json(config)
    if not isinstance(content, dict):
        raise UserError(f"{type(content).__name__} instead of settings", config, "a JSON object")
    if "mm_vision_tower" in content:
        raise UserError("a LLaVA release in its official layout", path, "what dyvte convert --to host makes of it")
    return path.resolve()


@contextmanager
def _quiet() -> Iterator[None]:
    verbosity, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    if not sys.stderr.isatty():
        transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()
