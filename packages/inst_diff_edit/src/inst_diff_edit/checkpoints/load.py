"""Models by name, folder or hub id, on a device, ready to edit."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import diffusers
import torch

from inst_diff_edit.checkpoints.settings import MINI, ModelSettings
from inst_diff_edit.pipeline import InstDiffEditPipeline, load_inpaint
from tenfold import UserError
from tenfold.cli.files import package_file
from tenfold.hosts.loading import loading_from
from tenfold.runs import fingerprint, read_json
from tenfold.runs.ranks import choose_device
from tenfold.weights import require_finite

INDEX = "model_index.json"
# Where the parts of a pipeline may come from. What a folder brings along itself is never run.
LIBRARIES = ("diffusers", "transformers", "inst_diff_edit")


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
    with _named(source):
        pipe = InstDiffEditPipeline.from_pretrained(source, None, torch_dtype=dtype, trust_remote_code=False)
        for part in ("unet", "vae", "text_encoder"):
            require_finite(dict(getattr(pipe, part).named_parameters()), source)
    if inpaint is not None:
        with _named(inpaint):
            pipe.inpaint = load_inpaint(inpaint, torch_dtype=dtype, trust_remote_code=False)
    pipe.set_progress_bar_config(disable=True)
    for part in (pipe, pipe.inpaint):
        if part is not None:
            _place(part, device, settings.offload)
    return pipe


@contextmanager
def _named(source: str | Path) -> Iterator[None]:
    """Whatever is wrong with a model is said of its folder."""
    try:
        with loading_from(source, "a model in diffusers' layout"), warnings.catch_warnings():
            # Of "torch_dtype", which the lowest supported diffusers knows and the newest calls "dtype".
            warnings.simplefilter("ignore", FutureWarning)
            yield
    except UserError as error:  # of a part that the method cannot serve
        where = error.where if str(error.where).startswith(str(source)) else source
        raise UserError(error.what, where, error.expected) from error


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
        _refuse_code(folder / INDEX)
        return folder.resolve()
    if name.count("/") == 1 and not name.startswith((".", "/", "~")):
        return name
    raise UserError("no such model", name, f"a folder, a hub id such as CompVis/stable-diffusion-v1-4, or {MINI}")


def _refuse_code(index: Path) -> None:
    """Every part of a pipeline comes from a library; one in a file of the folder would be code from elsewhere.

    Raises:
        UserError: names the part.
    """
    parts = read_json(index)
    if not isinstance(parts, dict):
        raise UserError("not an index of models", index, "a JSON object")
    for name, part in parts.items():
        if name == "_class_name":
            if not isinstance(part, str):
                raise UserError(f"{name} names code of its own", index, "a pipeline of diffusers")
        elif isinstance(part, list):
            library = part[0] if part else None
            if library is not None and not _is_known(library):
                raise UserError(f"{name} is of {library}", index, " or ".join(LIBRARIES))
            if (index.parent / str(name) / f"{library}.py").exists():
                raise UserError(f"{name} brings its own code", index, "a pipeline without code")
            if (index.parent / str(name) / INDEX).is_file():  # a pipeline within the pipeline
                _refuse_code(index.parent / str(name) / INDEX)


def _is_known(library: Any) -> bool:
    """One of ours, or a folder of diffusers' pipelines, such as "stable_diffusion" for the safety checker."""
    if not isinstance(library, str):
        return False
    return library.partition(".")[0] in LIBRARIES or hasattr(diffusers.pipelines, library)


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
