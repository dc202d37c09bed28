"""Models by name, folder or hub id, on a device, ready to edit."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from inst_diff_edit.checkpoints.settings import MINI, ModelSettings
from inst_diff_edit.pipeline import InstDiffEditPipeline, load_inpaint
from tenfold import UserError
from tenfold.cli.files import package_file
from tenfold.runs import fingerprint, read_json
from tenfold.runs.ranks import choose_device

INDEX = "model_index.json"


def load_pipeline(settings: ModelSettings) -> InstDiffEditPipeline:
    """The pipeline that settings name.

    Raises:
        UserError: no such model, a folder of another layout, broken weights, no CUDA when asked for, no accelerate
            for offloading.
    """
    device = choose_device(settings.device)
    dtype = getattr(torch, settings.dtype)
    source = model_source(settings.model)
    inpaint = None if settings.inpaint is None else model_source(settings.inpaint)
    loading = source
    if settings.model == MINI:  # diffusers looks its autoencoder up by name, and imports nothing for that
        import_module("inst_diff_edit.miniature.model")
    try:
        pipe = InstDiffEditPipeline.from_pretrained(source, torch_dtype=dtype)
        if inpaint is not None:
            loading = inpaint
            pipe.inpaint = load_inpaint(inpaint, torch_dtype=dtype)
    except UserError as error:  # of a model that the method cannot serve
        raise UserError(error.what, loading, error.expected) from error
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        # Of missing files, of broken or incomplete configs, of weights of another shape.
        raise UserError(f"cannot be loaded ({_first_line(error)})", loading, "a model in diffusers' layout") from error
    pipe.set_progress_bar_config(disable=True)
    for part in (pipe, pipe.inpaint):
        if part is not None:
            part.set_progress_bar_config(disable=True)
            _place(part, device, settings.offload)
    return pipe


def model_source(name: str) -> str | Path:
    """Where a model lies: the shipped one, a folder in diffusers' layout, or a hub id.

    Raises:
        UserError: neither.
    """
    if name == MINI:
        return package_file("inst_diff_edit", "assets/mini_model")
    folder = Path(name)
    if folder.is_file() or (folder.is_dir() and not (folder / INDEX).is_file()):
        raise UserError("not a model's folder", folder, f"diffusers' layout, with {INDEX}")
    if folder.is_dir():
        if not isinstance(read_json(folder / INDEX), dict):
            raise UserError("not an index of models", folder / INDEX, "a JSON object")
        return folder.resolve()
    if name.count("/") == 1 and not name.startswith((".", "/", "~")):
        return name
    raise UserError("no such model", name, f"a folder, a hub id such as CompVis/stable-diffusion-v1-4, or {MINI}")


def fingerprints(settings: ModelSettings) -> dict[str, str]:
    """Fingerprints of the models' folders, for run records; a hub id stands for itself."""
    named = {"model": settings.model, "inpaint": settings.inpaint}
    sources = {part: model_source(name) for part, name in named.items() if name is not None}
    return {part: fingerprint(source) for part, source in sources.items() if isinstance(source, Path)}


def _place(pipe: Any, device: torch.device, offload: bool) -> None:
    if not offload:
        pipe.to(device)
        return
    try:
        pipe.enable_model_cpu_offload(device=device)
    except ImportError as error:
        raise UserError("accelerate is not installed", "--offload", 'pip install "inst-diff-edit[eval]"') from error


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".: ") if lines else type(error).__name__
