"""From what a user names to a host model with its adapters at work, or one line that says what is wrong."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import AutoModelForImageTextToText, AutoProcessor
from transformers.utils import logging as transformers_logging

from eas.checkpoints.folder import About, load_folder
from eas.skipper import Skipper
from tenfold import UserError
from tenfold.runs import fingerprint
from tenfold.runs.ranks import choose_device

MINI = "mini"
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


@dataclass(frozen=True)
class Host:
    """A loaded frozen model, in eval mode, its processor, and the fingerprint of its folder (or hub id and commit)."""

    model: nn.Module
    processor: Any
    fingerprint: str


def load_host(model: str, *, device: str = "auto", dtype: str = "auto", attention: str = "sdpa") -> Host:
    """Load a vision-language model.

    Args:
        model: "mini", a folder as `save_pretrained` writes it, or a hub id.

    Raises:
        UserError: no such model, weights that are missing or of another shape, a broken file, no CUDA device.
    """
    place = choose_device(device)
    if model == MINI:
        from tenfold.data import mini_host

        loaded, processor = mini_host.load()
        return Host(loaded.to(place).eval(), processor, fingerprint(mini_host.path()))
    folder = Path(model)
    if not folder.is_dir() and (folder.exists() or not HUB_ID.fullmatch(model)):
        raise UserError("no such model", model, "a folder, a hub id such as llava-hf/llava-1.5-7b-hf, or mini")
    if folder.is_dir() and not (folder / "config.json").is_file():
        raise UserError("no config.json in the model's folder", folder, "a folder as save_pretrained writes it")
    local = {"local_files_only": folder.is_dir(), "trust_remote_code": False}
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        loaded, info = AutoModelForImageTextToText.from_pretrained(
            model,
            dtype=dtype if dtype == "auto" else getattr(torch, dtype),
            attn_implementation=attention,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # reported below, with the first that differs
            **local,
        )
        processor = AutoProcessor.from_pretrained(model, **local)
    except (OSError, ValueError, SafetensorError, ImportError, KeyError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(first[:200], model, "a transformers vision-language model with its processor") from error
    finally:
        transformers_logging.set_verbosity(verbosity)
    for kind in ("mismatched_keys", "missing_keys"):
        if info[kind]:
            first = sorted(str(key) for key in info[kind])[0]
            raise UserError(f"{len(info[kind])} {kind.replace('_', ' ')}, first {first}", model, "all of its weights")
    known = {"hub": model, "commit": loaded.config._commit_hash} if not folder.is_dir() else folder
    return Host(loaded.to(place).eval(), processor, fingerprint(known))


def load(adapters: str | Path, model: nn.Module) -> Skipper:
    """Attach the adapters of a folder to a loaded host; `detach` on what is returned takes them off.

    Raises:
        UserError: a broken folder, or adapters of another host.
    """
    skipper, _ = load_folder(adapters)
    skipper.attach(model)
    return skipper


def open_adapters(adapters: str | Path, host: Host) -> tuple[Skipper, About]:
    """The adapters of a folder, attached to a host, in its dtype."""
    skipper, about = load_folder(adapters)
    skipper.attach(host.model)
    kept = next(host.model.parameters())
    for module in skipper.modules():
        module.to(dtype=kept.dtype)
    for parameter in skipper.projector.values():
        parameter.data = parameter.data.to(kept.dtype)
    return skipper, about
