"""From a name to a model that answers: `llava_hr.load`, for official folders, this package's, and hub ids.

model, processor = llava_hr.load("favor123/llava-hr-7b-sft-1024", dtype="bfloat16", device="cuda")
"""

from __future__ import annotations

import logging
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import nn

from llava_hr.checkpoints import release
from llava_hr.checkpoints.keys import is_official
from llava_hr.modeling import LlavaHrForConditionalGeneration
from llava_hr.processing import LlavaHrProcessor
from tenfold import UserError
from tenfold.hosts import checkpoints
from tenfold.runs.ranks import choose_device
from tenfold.weights import require_finite

logger = logging.getLogger(__name__)

ALIGNMENT = 64  # bytes; that of PyTorch's own memory on the CPU
EXAMPLE = "favor123/llava-hr-7b-sft-1024"


def load(
    model: str | Path,
    dtype: str | torch.dtype = "auto",
    device: str | torch.device = "auto",
    *,
    attention: str = "sdpa",
    tokenizer: str | Path | None = None,
    aligned: bool = False,
    device_map: Any = None,
    quantization_config: Any = None,
) -> tuple[LlavaHrForConditionalGeneration, LlavaHrProcessor]:
    """Load a model and its processor.

    An official folder is renamed while it is read; nothing is written, and nothing is fetched for its encoders.

    Args:
        model: a folder, official or this package's, or a hub id of either.
        dtype: "auto" is that of the checkpoint.
        device: "auto" takes CUDA where there is a device, else the CPU.
        attention: of the language model, "sdpa" or "eager".
        tokenizer: folder of the language model's tokenizer, for an official folder without one.
        device_map: as transformers takes it, instead of `device`; needs accelerate.
        quantization_config: as transformers takes it, such as a `BitsAndBytesConfig`; needs its library.
        aligned: on the CPU, copy weights that are mapped from a file at an odd address. It takes their memory once
            more, and every loading then computes the same bits, as `llava-hr verify` needs it.

    Returns:
        The model in eval mode, and its processor.

    Raises:
        UserError: no such model, a broken or truncated file, weights that do not fit the config or are not finite, no
            tokenizer, no CUDA device when asked for, or a hub that cannot be reached.
    """
    if device_map is not None and str(device) != "auto":
        raise UserError("device and device_map", str(device), "one of them")
    place = choose_device(str(device))
    placed = {"device_map": device_map, "quantization_config": quantization_config}
    placed = {name: value for name, value in placed.items() if value is not None}
    kind = checkpoints.dtype_of(dtype)
    folder = find_model(model)
    opened = _open_official if is_official(checkpoints.read_settings(folder)) else _open_ours
    loaded, processor = opened(folder, kind, attention, None if tokenizer is None else Path(tokenizer), placed)
    weights = {name: one for name, one in loaded.named_parameters() if one.is_floating_point() and not one.is_meta}
    require_finite(weights, folder)
    if aligned:
        align(loaded)
    # Quantised weights, and those that a map has laid out, are where they belong.
    return loaded.eval() if placed else loaded.eval().to(place), processor


def align(model: nn.Module) -> None:
    """Move weights on the CPU to addresses like those of PyTorch's own memory: a product's last bits depend on them."""
    for parameter in model.parameters():
        if parameter.device.type == "cpu" and parameter.is_floating_point() and parameter.data_ptr() % ALIGNMENT:
            parameter.data = parameter.data.clone()


def find_model(name: str | Path) -> Path:
    """The folder of a model, of the hub's too. Raises UserError: see `tenfold.hosts.checkpoints.find_model`."""
    return checkpoints.find_model(name, EXAMPLE)


def _open_official(
    folder: Path, dtype: Any, attention: str, tokenizer: Path | None, placed: dict[str, Any]
) -> tuple[LlavaHrForConditionalGeneration, LlavaHrProcessor]:
    with ExitStack() as files:
        opened = release.read_release(folder, files)
        words = release.read_tokenizer(tokenizer or folder, opened.config.text_config.vocab_size)
        processor = release.processor(words, opened.config)
        model = checkpoints.from_state(
            LlavaHrForConditionalGeneration, opened.config, opened.tensors, dtype, attention, folder, **placed
        )
    model.generation_config = release.generation_config(opened.config)
    return model, processor


def _open_ours(
    folder: Path, dtype: Any, attention: str, tokenizer: Path | None, placed: dict[str, Any]
) -> tuple[LlavaHrForConditionalGeneration, LlavaHrProcessor]:
    return checkpoints.open_folder(
        LlavaHrForConditionalGeneration, LlavaHrProcessor, folder, dtype, attention, "LLaVA-HR", **placed
    )
