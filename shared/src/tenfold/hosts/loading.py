"""From the model that a user names to the model and its processor, or one line that says what is wrong with it."""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
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
from tenfold.weights import require_finite

logger = logging.getLogger(__name__)

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
# Of a model's folder: read here first, so that nesting and huge numbers are one line.
SETTINGS = (
    "config.json", "generation_config.json", "tokenizer_config.json", "processor_config.json",
    "preprocessor_config.json", "special_tokens_map.json", "added_tokens.json", "tokenizer.json",
)  # fmt: skip


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
    reachable = "a local folder, or the id of a model on a hub that can be reached"
    layout = "a transformers vision-language model with its processor"
    try:
        with loading_from(source, layout if folder else reachable):
            opened: Any = AutoModelForImageTextToText.from_pretrained(
                source,
                dtype=dtype if dtype == "auto" else getattr(torch, dtype),
                attn_implementation=settings.attention,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # reported below, with the first key that differs
                **local,
            )
            model, report = opened
            processor = AutoProcessor.from_pretrained(source, **local)
            # Not asked of the processor as a whole: video processors have no such backend. Without torchvision
            # Pillow is what there is, and AutoImageProcessor cannot be called in transformers 5.17.
            if is_torchvision_available():
                processor.image_processor = AutoImageProcessor.from_pretrained(source, backend="pil", **local)
    except ImportError as error:  # of a processor, Qwen2-VL's for one: it wants torchvision
        raise UserError(first_sentence(error), source, "the library that is named") from error
    refuse_misfits(report, source)
    require_finite(dict(model.named_parameters()), source)
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
def loading_from(source: str | Path, expected: str) -> Iterator[None]:
    """While a library reads somebody's folder: no report of keys, and one line for whatever it raises.

    Its settings are parsed first. What is left is anything: a setting of another type becomes an AttributeError deep in
    a library, and tokenizers raise bare Exceptions and panics.

    Raises:
        UserError: says what the library says. ImportError: a library that is missing.
    """
    if Path(source).is_dir():
        for name in SETTINGS:
            if (Path(source) / name).is_file() and not isinstance(read_json(Path(source) / name), dict):
                raise UserError("no settings", Path(source) / name, "a JSON object")
    try:
        with quiet_transformers():
            yield
    except (UserError, ImportError):
        raise
    except Exception as error:
        # Everything, on purpose: other people's code reads other people's files here. Of damaged tokenizers alone
        # transformers raises AttributeError, RecursionError, TypeError and UnicodeDecodeError, and tokenizers a bare
        # Exception, which no narrower clause would catch. The cause stays chained for whoever looks for a bug of ours.
        raise UserError(_said(error), source, expected) from error
    except BaseException as error:
        if type(error).__name__ != "PanicException":  # of a library written in Rust
            raise
        raise UserError(_said(error), source, expected) from error


def _said(error: BaseException) -> str:
    plain = isinstance(error, OSError | ValueError | SafetensorError | StrictDataclassError)
    reason = first_sentence(error) if plain else f"{type(error).__name__}: {first_sentence(error)}"
    return f"cannot be loaded ({reason})"


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """No report of keys, which becomes an error of one line, and no bars; of diffusers too, where it is loaded."""
    libraries = [transformers_logging]
    if "diffusers" in sys.modules:
        libraries.append(import_module("diffusers.utils.logging"))
    before = [(library.get_verbosity(), library.is_progress_bar_enabled()) for library in libraries]
    for library in libraries:
        library.set_verbosity_error()
        library.disable_progress_bar()
    try:
        yield
    finally:
        for library, (verbosity, bars) in zip(libraries, before, strict=True):
            library.set_verbosity(verbosity)
            if bars:
                library.enable_progress_bar()


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
