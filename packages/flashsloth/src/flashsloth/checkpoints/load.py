"""From a name to a model that answers: `flashsloth.load`, for releases, this package's folders, and hub ids.

model, processor = flashsloth.load("Tongbo/FlashSloth-3.2B", dtype="bfloat16", device="cuda")
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from flashsloth.checkpoints import release
from flashsloth.configuration import FlashSlothConfig
from flashsloth.modeling import FlashSlothForConditionalGeneration
from flashsloth.processing import FlashSlothProcessor
from tenfold import UserError
from tenfold.hosts import checkpoints
from tenfold.runs.ranks import choose_device
from tenfold.weights import StoredTensor, require_finite

logger = logging.getLogger(__name__)

EXAMPLE = "Tongbo/FlashSloth-3.2B"


def load(
    model: str | Path,
    dtype: str | torch.dtype = "auto",
    device: str | torch.device = "auto",
    *,
    attention: str = "sdpa",
    tokenizer: str | Path | None = None,
) -> tuple[FlashSlothForConditionalGeneration, FlashSlothProcessor]:
    """Load a model and its processor.

    A release is renamed while it is read; nothing is written, and SigLIP's own files are not needed.

    Args:
        model: a folder, a release or this package's, or a hub id of either.
        dtype: "auto" is that of the checkpoint.
        device: "auto" takes CUDA where there is a device, else the CPU.
        attention: of language model and vision tower, "sdpa" or "eager".
        tokenizer: folder with Phi-2's vocab.json and merges.txt, for a release without.

    Returns:
        The model in eval mode, and its processor.

    Raises:
        UserError: no such model, a broken or truncated file, weights that do not fit the config or are not finite, no
            tokenizer, no CUDA device when asked for, or a hub that cannot be reached.
    """
    place = choose_device(str(device))
    kind = checkpoints.dtype_of(dtype)
    folder = find_model(model)
    opened = _open_release if release.is_official(checkpoints.read_settings(folder)) else _open_ours
    loaded, processor = opened(folder, kind, attention, None if tokenizer is None else Path(tokenizer))
    require_finite(dict(loaded.named_parameters()), folder)
    return loaded.eval().to(place), processor


def find_model(name: str | Path) -> Path:
    """The folder of a model, of the hub's too. Raises UserError: see `tenfold.hosts.checkpoints.find_model`."""
    return checkpoints.find_model(name, EXAMPLE)


def _open_release(
    folder: Path, dtype: Any, attention: str, tokenizer: Path | None
) -> tuple[FlashSlothForConditionalGeneration, FlashSlothProcessor]:
    with ExitStack() as files:
        opened = release.read_release(folder, files)
        processor = release.processor(release.read_tokenizer(tokenizer or folder, opened.config), opened.config)
        model = from_state(opened.config, opened.tensors, dtype, attention, folder)
    logger.info("%s: a release; its vision tower comes from its own weights", folder)
    return model, processor


def from_state(
    config: FlashSlothConfig, tensors: Mapping[str, StoredTensor], dtype: Any, attention: str, where: Path
) -> FlashSlothForConditionalGeneration:
    """A model of a config, from weights under our names that are read one after the other."""
    model = checkpoints.from_state(FlashSlothForConditionalGeneration, config, tensors, dtype, attention, where)
    model.generation_config = release.generation_config(config)
    return model


def _open_ours(
    folder: Path, dtype: Any, attention: str, tokenizer: Path | None
) -> tuple[FlashSlothForConditionalGeneration, FlashSlothProcessor]:
    model, processor = checkpoints.open_folder(
        FlashSlothForConditionalGeneration, FlashSlothProcessor, folder, dtype, attention, "FlashSloth"
    )
    if processor.query_token_id != model.config.query_token_id:
        what = f"<learnable> has the id {processor.query_token_id}"
        raise UserError(what, folder, f"{model.config.query_token_id}, as in its config")
    return model, processor
