"""From the model that a user names to the model and its processor, or one line that says what is wrong with it."""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from torch import nn
from transformers import AutoImageProcessor, AutoModelForImageTextToText, AutoProcessor
from transformers.utils import is_torchvision_available
from transformers.utils import logging as transformers_logging

from tenfold.cli.settings import MINI, HostSettings
from tenfold.errors import UserError
from tenfold.runs import fingerprint, read_json
from tenfold.runs.ranks import choose_device

logger = logging.getLogger(__name__)

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
# What transformers and safetensors raise for a folder that is no model, or a broken one.
LOADING_ERRORS = (OSError, ValueError, KeyError, TypeError, SafetensorError, StrictDataclassError)


@dataclass(frozen=True)
class Host:
    """A loaded model.

    Attributes:
        model: in eval mode, on its device.
        processor: its processor, on Pillow where a model offers several image backends: torchvision resizes
            differently in the last bits.
        fingerprint: of the model's folder, or of its hub id and commit.
    """

    model: nn.Module
    processor: Any
    fingerprint: str


def load_host(settings: HostSettings) -> Host:
    """Load a vision-language model and its processor.

    Raises:
        UserError: no such model, no model in that folder, weights that do not fit its config, a truncated file, an
            official release that needs converting first, a hub that cannot be reached, or no CUDA device.
    """
    device = choose_device(settings.device)
    folder = _folder(settings.model)
    source: str | Path = settings.model if folder is None else folder
    if folder is not None:
        _refuse_official(folder)
    # Code in a model's folder is never run, and nobody is asked whether it may.
    local = {"local_files_only": folder is not None, "trust_remote_code": False}
    dtype = "float32" if settings.model == MINI and settings.dtype == "auto" else settings.dtype
    try:
        with quiet_transformers():
            opened: Any = AutoModelForImageTextToText.from_pretrained(
                source,
                dtype=dtype if dtype == "auto" else getattr(torch, dtype),
                attn_implementation=settings.attention,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # reported below, with the first key that differs
                **local,
            )
            processor = AutoProcessor.from_pretrained(source, **local)
            # Not asked of the processor as a whole: video processors have no such backend. Without torchvision
            # Pillow is what there is, and AutoImageProcessor cannot be called in transformers 5.17.
            if is_torchvision_available():
                processor.image_processor = AutoImageProcessor.from_pretrained(source, backend="pil", **local)
    except ImportError as error:  # of a processor, Qwen2-VL's for one: it wants torchvision
        raise UserError(first_sentence(error), source, "the library that is named") from error
    except LOADING_ERRORS as error:
        reachable = "a local folder, or the id of a model on a hub that can be reached"
        layout = "a transformers vision-language model with its processor"
        raise UserError(first_sentence(error), source, layout if folder else reachable) from error
    model, loading = opened
    refuse_misfits(loading, source)
    pinned = folder or {"hub": settings.model, "commit": model.config._commit_hash}
    return Host(model.eval().to(device), processor, fingerprint(pinned))


def _folder(name: str) -> Path | None:
    """The model's folder, None for a hub id."""
    if name == MINI:
        from tenfold.data import mini_host

        return mini_host.path()
    path = Path(name)
    if path.is_dir():
        return path.resolve()
    if path.exists() or not HUB_ID.fullmatch(name):
        raise UserError("no such model", name, f"a folder, a hub id such as llava-hf/llava-1.5-7b-hf, or {MINI}")
    return None


def _refuse_official(folder: Path) -> None:
    config = folder / "config.json"
    if not config.is_file():
        raise UserError("no config.json in the model's folder", folder, "a folder as save_pretrained writes it")
    content = read_json(config)
    if not isinstance(content, dict):
        raise UserError(f"{type(content).__name__} instead of settings", config, "a JSON object")
    if "mm_vision_tower" in content:
        raise UserError(
            "a LLaVA release in its official layout", folder, "transformers' layout, as the verb convert writes it"
        )


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """No report of keys, which becomes an error of one line; a progress bar on a terminal only."""
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


def refuse_misfits(loading: dict[str, Any], source: str | Path, *, strict: bool = False) -> None:
    """Weights as the config wants them, by transformers' loading report.

    Args:
        strict: weights that have no place in the model are refused too; else a warning names them.

    Raises:
        UserError: weights of another shape, or missing; names the first.
    """
    mismatched = sorted(loading["mismatched_keys"])
    if mismatched:
        key, found, needed = mismatched[0]
        raise UserError(
            f"{len(mismatched)} weights of another shape, first {key} {list(found)}",
            source,
            f"{list(needed)}",
        )
    missing = sorted(loading["missing_keys"])
    if missing:
        raise UserError(f"{len(missing)} weights missing, first {missing[0]}", source, "exactly those of its config")
    unexpected = sorted(loading["unexpected_keys"])
    if unexpected and strict:
        what = f"{len(unexpected)} weights unexpected, first {unexpected[0]}"
        raise UserError(what, source, "exactly those of its config")
    if unexpected:
        logger.warning("%s: %d weights have no place in the model, first %s", source, len(unexpected), unexpected[0])


def first_sentence(error: BaseException) -> str:
    """What another library says, up to its first full stop."""
    lines = str(error).strip().splitlines()
    return lines[0].partition(". ")[0].rstrip(".: ") if lines else type(error).__name__
