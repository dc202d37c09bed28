"""From a name to a model that answers: `llava_hr.load`, for official folders, this package's, and hub ids.

model, processor = llava_hr.load("favor123/llava-hr-7b-sft-1024", dtype="bfloat16", device="cuda")
"""

from __future__ import annotations

import logging
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError
from torch import nn

from llava_hr.checkpoints import release
from llava_hr.checkpoints.keys import is_official
from llava_hr.configuration import LlavaHrConfig
from llava_hr.modeling import LlavaHrForConditionalGeneration
from llava_hr.processing import LlavaHrProcessor
from tenfold import UserError
from tenfold.hosts.loading import HUB_ID, first_sentence, loading_from, quiet_transformers, refuse_misfits
from tenfold.runs.ranks import choose_device

logger = logging.getLogger(__name__)

ALIGNMENT = 64  # bytes; that of PyTorch's own memory on the CPU
DTYPES = ("auto", "float32", "bfloat16", "float16")
_SIDE_FILES = ["*.json", "*.model", "*.jinja", "*.txt"]


def load(
    model: str | Path,
    dtype: str | torch.dtype = "auto",
    device: str | torch.device = "auto",
    *,
    attention: str = "sdpa",
    tokenizer: str | Path | None = None,
    aligned: bool = False,
) -> tuple[LlavaHrForConditionalGeneration, LlavaHrProcessor]:
    """Load a model and its processor.

    An official folder is renamed while it is read; nothing is written, and nothing is fetched for its encoders.

    Args:
        model: a folder, official or this package's, or a hub id of either.
        dtype: "auto" is that of the checkpoint.
        device: "auto" takes CUDA where there is a device, else the CPU.
        attention: of the language model, "sdpa" or "eager".
        tokenizer: folder of the language model's tokenizer, for an official folder without one.
        aligned: on the CPU, copy weights that are mapped from a file at an odd address. It takes their memory once
            more, and every loading then computes the same bits, as `llava-hr verify` needs it.

    Returns:
        The model in eval mode, and its processor.

    Raises:
        UserError: no such model, a broken or truncated file, weights that do not fit the config, no tokenizer, no CUDA
            device when asked for, or a hub that cannot be reached.
    """
    place = choose_device(str(device))
    if isinstance(dtype, str) and dtype not in DTYPES:
        raise UserError(f"dtype {dtype!r}", expected=", ".join(DTYPES))
    folder = find_model(model)
    kind = getattr(torch, dtype) if isinstance(dtype, str) and dtype != "auto" else dtype
    opened = _open_official if is_official(release.read_settings(folder)) else _open_ours
    loaded, processor = opened(folder, kind, attention, None if tokenizer is None else Path(tokenizer))
    if aligned:
        align(loaded)
    return loaded.eval().to(place), processor


def align(model: nn.Module) -> None:
    """Move weights on the CPU to addresses like those of PyTorch's own memory: a product's last bits depend on them."""
    for parameter in model.parameters():
        if parameter.device.type == "cpu" and parameter.is_floating_point() and parameter.data_ptr() % ALIGNMENT:
            parameter.data = parameter.data.clone()


def find_model(name: str | Path) -> Path:
    """The folder of a model; one on the hub is fetched, or found where it was fetched before.

    Raises:
        UserError: no such folder, and no id of the hub; or the hub does not have it or cannot be reached.
    """
    path = Path(name)
    if path.is_dir():
        return path.resolve()
    if path.exists() or not HUB_ID.fullmatch(str(name)):
        raise UserError("no such model", name, "a folder, or a hub id such as favor123/llava-hr-7b-sft-1024")
    try:
        # Releases often hold their weights twice: pickles are fetched where there is nothing else.
        folder = Path(snapshot_download(str(name), allow_patterns=[*_SIDE_FILES, "*.safetensors"]))
        if not any(folder.glob("*.safetensors")):
            folder = Path(snapshot_download(str(name), allow_patterns=[*_SIDE_FILES, "*.bin"]))
    except (HfHubHTTPError, OSError, ValueError) as error:
        expected = "a local folder, or the id of a model on a hub that can be reached"
        raise UserError(first_sentence(error), name, expected) from error
    return folder


def _open_official(
    folder: Path, dtype: Any, attention: str, tokenizer: Path | None
) -> tuple[LlavaHrForConditionalGeneration, LlavaHrProcessor]:
    with ExitStack() as files:
        opened = release.read_release(folder, files)
        words = release.read_tokenizer(tokenizer or folder, opened.config.text_config.vocab_size)
        processor = release.processor(words, opened.config)
        model = from_state(opened.config, opened.tensors, dtype, attention, folder)
    model.generation_config = release.generation_config(opened.config)
    return model, processor


def from_state(
    config: LlavaHrConfig, tensors: Any, dtype: Any, attention: str, where: Path
) -> LlavaHrForConditionalGeneration:
    """A model of a config, from weights under our names that are read one after the other."""
    kind = config.dtype if dtype == "auto" else dtype
    # Copies: the model must not change with a file that is mapped into memory.
    state = {name: tensor.read().to(kind, copy=True) for name, tensor in tensors.items()}
    with quiet_transformers():
        found: Any = LlavaHrForConditionalGeneration.from_pretrained(
            None,
            config=config,
            state_dict=state,
            dtype=kind,
            attn_implementation=attention,
            output_loading_info=True,
        )
    model, loading = found
    refuse_misfits(loading, where, strict=True)
    return model


def _open_ours(
    folder: Path, dtype: Any, attention: str, tokenizer: Path | None
) -> tuple[LlavaHrForConditionalGeneration, LlavaHrProcessor]:
    settings = release.read_settings(folder)
    if settings.get("model_type") != LlavaHrConfig.model_type:
        what = f"not a LLaVA-HR (model_type {settings.get('model_type')!r})"
        raise UserError(what, folder / "config.json", f"{LlavaHrConfig.model_type}, or an official LLaVA-HR")
    with loading_from(folder, "a LLaVA-HR with its processor"):
        found: Any = LlavaHrForConditionalGeneration.from_pretrained(
            folder,
            dtype=dtype,
            attn_implementation=attention,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # reported below, with the first key that differs
            local_files_only=True,
            trust_remote_code=False,
        )
        processor = LlavaHrProcessor.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    model, loading = found
    refuse_misfits(loading, folder, strict=True)
    return model, processor
