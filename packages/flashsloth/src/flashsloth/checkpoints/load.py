"""From a name to a model that answers: `flashsloth.load`, for releases, this package's folders, and hub ids.

model, processor = flashsloth.load("Tongbo/FlashSloth-3.2B", dtype="bfloat16", device="cuda")
"""

from __future__ import annotations

import logging
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError

from flashsloth.checkpoints import release
from flashsloth.configuration import FlashSlothConfig
from flashsloth.modeling import FlashSlothForConditionalGeneration
from flashsloth.processing import FlashSlothProcessor
from tenfold import UserError
from tenfold.hosts.loading import HUB_ID, first_sentence, loading_from, quiet_transformers, refuse_misfits
from tenfold.runs.ranks import choose_device
from tenfold.weights import require_finite

logger = logging.getLogger(__name__)

DTYPES = ("auto", "float32", "bfloat16", "float16")
_SIDE_FILES = ["*.json", "*.jinja", "*.txt"]
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
    if isinstance(dtype, str) and dtype not in DTYPES:
        raise UserError(f"dtype {dtype!r}", expected=", ".join(DTYPES))
    folder = find_model(model)
    kind = getattr(torch, dtype) if isinstance(dtype, str) and dtype != "auto" else dtype
    opened = _open_release if release.is_official(release.read_settings(folder)) else _open_ours
    loaded, processor = opened(folder, kind, attention, None if tokenizer is None else Path(tokenizer))
    require_finite(dict(loaded.named_parameters()), folder)
    return loaded.eval().to(place), processor


def find_model(name: str | Path) -> Path:
    """The folder of a model; one on the hub is fetched, or found where it was fetched before.

    Raises:
        UserError: no such folder, and no id of the hub; or the hub does not have it or cannot be reached.
    """
    path = Path(name)
    if path.is_dir():
        return path.resolve()
    if path.exists() or not HUB_ID.fullmatch(str(name)):
        raise UserError("no such model", name, f"a folder, or a hub id such as {EXAMPLE}")
    try:
        return Path(snapshot_download(str(name), allow_patterns=[*_SIDE_FILES, "*.safetensors"]))
    except (HfHubHTTPError, OSError, ValueError) as error:
        expected = "a local folder, or the id of a model on a hub that can be reached"
        raise UserError(first_sentence(error), name, expected) from error


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
    config: FlashSlothConfig, tensors: Any, dtype: Any, attention: str, where: Path
) -> FlashSlothForConditionalGeneration:
    """A model of a config, from weights under our names that are read one after the other."""
    kind = config.dtype if dtype == "auto" else dtype
    # Copies: the model must not change with a file that is mapped into memory.
    state = {name: tensor.read().to(kind, copy=True) for name, tensor in tensors.items()}
    with quiet_transformers():
        found: Any = FlashSlothForConditionalGeneration.from_pretrained(
            None, config=config, state_dict=state, dtype=kind, attn_implementation=attention, output_loading_info=True
        )
    model, loading = found
    refuse_misfits(loading, where, strict=True)
    model.generation_config = release.generation_config(config)
    return model


def _open_ours(
    folder: Path, dtype: Any, attention: str, tokenizer: Path | None
) -> tuple[FlashSlothForConditionalGeneration, FlashSlothProcessor]:
    settings = release.read_settings(folder)
    if settings.get("model_type") != FlashSlothConfig.model_type:
        what = f"not a FlashSloth (model_type {settings.get('model_type')!r})"
        raise UserError(what, folder / "config.json", f"{FlashSlothConfig.model_type}, or a release")
    with loading_from(folder, "a FlashSloth with its processor"):
        found: Any = FlashSlothForConditionalGeneration.from_pretrained(
            folder,
            dtype=dtype,
            attn_implementation=attention,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # reported below, with the first key that differs
            local_files_only=True,
            trust_remote_code=False,
        )
        processor = FlashSlothProcessor.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    model, loading = found
    refuse_misfits(loading, folder, strict=True)
    if processor.query_token_id != model.config.query_token_id:
        what = f"<learnable> has the id {processor.query_token_id}"
        raise UserError(what, folder, f"{model.config.query_token_id}, as in its config")
    return model, processor
