"""From a name to a model that answers: the mini host, a folder or a hub id; converted where its folder says so.

model, processor = gamma_mod.load("runs/mini/model", dtype="bfloat16", device="cuda")
gamma_mod.restore(model, "gamma-mod-llava-hr-7b")      # a host that its own package loaded
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError
from torch import nn
from transformers import AutoImageProcessor, AutoModelForImageTextToText, AutoProcessor
from transformers.utils import is_torchvision_available

from gamma_mod.checkpoints.release import is_release
from gamma_mod.conversion import Conversion
from gamma_mod.storage import CONFIG, ROUTER, WEIGHTS, read_beside
from tenfold import UserError
from tenfold.cli.settings import MINI
from tenfold.hosts import structure
from tenfold.hosts.checkpoints import read_settings
from tenfold.hosts.loading import HUB_ID, first_sentence, loading_from, refuse_misfits
from tenfold.runs.ranks import choose_device

DTYPES = ("auto", "float32", "bfloat16", "float16")


def load(
    model: str | Path,
    dtype: str | torch.dtype = "auto",
    device: str | torch.device = "auto",
    *,
    attention: str = "sdpa",
    imports: Sequence[str] = (),
) -> tuple[Any, Any]:
    """Load a vision-language model and its processor; converted where ``gamma_mod.json`` stands beside its weights.

    Args:
        model: "mini", a folder in transformers' layout, or a hub id.
        dtype: "auto" is that of the checkpoint, for the mini host float32.
        device: "auto" takes CUDA where there is a device, else the CPU.
        attention: "sdpa" or "eager".
        imports: modules that make further model types known to transformers, e.g. "llava_hr.auto".

    Returns:
        The model in evaluation mode, and its processor.

    Raises:
        UserError: no such model, no model in that folder, weights that do not fit its config, an official release that
            needs converting first, a hub that cannot be reached, or no CUDA device.
    """
    place = choose_device(str(device))
    if isinstance(dtype, str) and dtype not in DTYPES:
        raise UserError(f"dtype {dtype!r}", "load", ", ".join(DTYPES))
    for name in imports:
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise UserError(f"no module {name}", "imports", "a module of an installed package") from error
    name = str(model)
    folder = find_folder(name)
    if folder is not None:
        _refuse_official(folder)
    kind: Any = getattr(torch, dtype) if isinstance(dtype, str) and dtype != "auto" else dtype
    if name == MINI and kind == "auto":
        kind = torch.float32
    stored = _beside(folder, name)
    loaded, processor = _open(folder or name, kind, attention, folder is not None, converted=stored is not None)
    if stored is not None:
        restore(loaded, stored)
    return loaded.eval().to(place), processor


def restore(model: nn.Module, folder: str | Path) -> nn.Module:
    """Convert a host as a folder's ``gamma_mod.json`` says, and give it that folder's router.

    Args:
        model: a dense host, loaded by whatever loads it.
        folder: with `gamma_mod.json` and `gamma_mod.safetensors`.

    Returns:
        The same model.

    Raises:
        UserError: the files are missing or broken, or made for a host of another depth or width.
    """
    config, router, num_layers = read_beside(folder)
    host = structure.unwrap(model)
    found = len(structure.decoder_layers(host))
    if found != num_layers:
        raise UserError(f"a conversion of {num_layers} layers", Path(folder) / CONFIG, f"{found}, as the host has")
    width = host.config.get_text_config().hidden_size
    if router.shape[-1] != width:
        raise UserError(f"a router of width {router.shape[-1]}", Path(folder) / WEIGHTS, f"{width}, as the host")
    conversion = Conversion(host, config)
    with torch.no_grad():
        conversion.router.weight.copy_(router)
    return model


def find_folder(name: str) -> Path | None:
    """A model's folder; None for a hub id.

    Raises:
        UserError: neither of both.
    """
    if name == MINI:
        from tenfold.data import mini_host

        return mini_host.path()
    path = Path(name)
    if path.is_dir():
        return path.resolve()
    if path.exists() or not HUB_ID.fullmatch(name):
        raise UserError("no such model", name, f"a folder, a hub id such as llava-hf/llava-1.5-7b-hf, or {MINI}")
    return None


def _open(source: Path | str, dtype: Any, attention: str, local: bool, *, converted: bool) -> tuple[Any, Any]:
    options: dict[str, Any] = {"local_files_only": local, "trust_remote_code": False}
    expected = "a transformers vision-language model with its processor"
    try:
        with loading_from(source, expected if local else f"{expected}, on a hub in reach"):
            loaded: Any = AutoModelForImageTextToText.from_pretrained(
                source,
                dtype=dtype,
                attn_implementation=attention,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # reported below, with the first key that differs
                **options,
            )
            model, report = loaded
            processor = AutoProcessor.from_pretrained(source, **options)
            # Pillow also where torchvision is installed: the two resize differently in the last bits.
            if is_torchvision_available() and hasattr(processor, "image_processor"):
                processor.image_processor = _pillow(source, processor.image_processor, options)
    except ImportError as error:
        raise UserError(
            first_sentence(error), source, "the library that is named; torchvision: gamma-mod[eval]"
        ) from error
    if converted:  # `restore` gives it its place
        report["unexpected_keys"] = {key for key in report["unexpected_keys"] if not key.endswith(f".{ROUTER}")}
    refuse_misfits(report, source)
    return model, processor


def _pillow(source: Path | str, processor: Any, options: dict[str, Any]) -> Any:
    try:
        return AutoImageProcessor.from_pretrained(source, backend="pil", **options)
    except (ValueError, TypeError):
        return processor  # a package's own processor, which has one backend


def _beside(folder: Path | None, name: str) -> Path | None:
    """The folder of `gamma_mod.json`, where a model has one."""
    if folder is not None:
        return folder if (folder / CONFIG).is_file() else None
    try:
        hf_hub_download(name, WEIGHTS)
        return Path(hf_hub_download(name, CONFIG)).parent
    except EntryNotFoundError:
        return None
    except (HfHubHTTPError, OSError, ValueError) as error:
        raise UserError(first_sentence(error), name, "a model on a hub in reach") from error


def _refuse_official(folder: Path) -> None:
    settings = read_settings(folder)
    if is_release(settings):
        raise UserError("a release in its official layout", folder, "the folder that gamma-mod convert makes of it")
    if "mm_vision_tower" in settings:
        raise UserError(
            "a host in its official layout", folder, "its own package's folder (LLaVA-HR: llava-hr convert), restored"
        )
