"""From a name to a model that answers: `llava_hr.load`, for official folders, this package's, and hub ids.

model, processor = llava_hr.load("favor123/llava-hr-7b-sft-1024", dtype="bfloat16", device="cuda")
"""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, StrictDataclassError
from safetensors import SafetensorError
from transformers.utils import logging as transformers_logging

from llava_hr.checkpoints import release
from llava_hr.checkpoints.keys import is_official
from llava_hr.configuration import LlavaHrConfig
from llava_hr.modeling import LlavaHrForConditionalGeneration
from llava_hr.processing import LlavaHrProcessor
from tenfold import UserError
from tenfold.runs.ranks import choose_device

logger = logging.getLogger(__name__)

DTYPES = ("auto", "float32", "bfloat16", "float16")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_SIDE_FILES = ["*.json", "*.model", "*.jinja", "*.txt"]
# What transformers and safetensors raise for a folder that is no model, or a broken one.
LOADING_ERRORS = (OSError, ValueError, KeyError, TypeError, SafetensorError, StrictDataclassError)


def load(
    model: str | Path,
    dtype: str | torch.dtype = "auto",
    device: str | torch.device = "auto",
    *,
    attention: str = "sdpa",
    tokenizer: str | Path | None = None,
) -> tuple[LlavaHrForConditionalGeneration, LlavaHrProcessor]:
    """Load a model and its processor.

    An official folder is renamed while it is read; nothing is written, and nothing is fetched for its encoders.

    Args:
        model: a folder, official or this package's, or a hub id of either.
        dtype: "auto" is that of the checkpoint.
        device: "auto" takes CUDA where there is a device, else the CPU.
        attention: of the language model, "sdpa" or "eager".
        tokenizer: folder of the language model's tokenizer, for an official folder without one.

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
    return loaded.eval().to(place), processor


def find_model(name: str | Path) -> Path:
    """The folder of a model; one on the hub is fetched, or found where it was fetched before.

    Raises:
        UserError: no such folder, and no id of the hub; or the hub does not have it or cannot be reached.
    """
    path = Path(name)
    if path.is_dir():
        return path.resolve()
    if path.exists() or not _HUB_ID.fullmatch(str(name)):
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
    _refuse_misfits(loading, where)
    return model


def _open_ours(
    folder: Path, dtype: Any, attention: str, tokenizer: Path | None
) -> tuple[LlavaHrForConditionalGeneration, LlavaHrProcessor]:
    settings = release.read_settings(folder)
    if settings.get("model_type") != LlavaHrConfig.model_type:
        what = f"not a LLaVA-HR (model_type {settings.get('model_type')!r})"
        raise UserError(what, folder / "config.json", f"{LlavaHrConfig.model_type}, or an official LLaVA-HR")
    try:
        with quiet_transformers():
            found: Any = LlavaHrForConditionalGeneration.from_pretrained(
                folder,
                dtype=dtype,
                attn_implementation=attention,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # reported below, with the first key that differs
                local_files_only=True,
            )
            processor = LlavaHrProcessor.from_pretrained(folder, local_files_only=True)
    except LOADING_ERRORS as error:
        raise UserError(first_sentence(error), folder, "a LLaVA-HR with its processor") from error
    model, loading = found
    _refuse_misfits(loading, folder)
    return model, processor


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


def _refuse_misfits(loading: dict[str, Any], where: str | Path) -> None:
    mismatched = sorted(loading["mismatched_keys"])
    if mismatched:
        key, found, needed = mismatched[0]
        what = f"{len(mismatched)} weights of another shape, first {key} {list(found)}"
        raise UserError(what, where, f"{list(needed)}")
    for kind in ("missing_keys", "unexpected_keys"):
        if keys := sorted(loading[kind]):
            what = f"{len(keys)} weights {kind.removesuffix('_keys')}, first {keys[0]}"
            raise UserError(what, where, "exactly those of its config")


def first_sentence(error: BaseException) -> str:
    """What another library says, up to its first full stop."""
    lines = str(error).strip().splitlines()
    return lines[0].partition(". ")[0].rstrip(".: ") if lines else type(error).__name__
