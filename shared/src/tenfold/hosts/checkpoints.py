"""Models that this repository defines, on disk: found, read, checked, and opened with their processor.

folder = find_model("Tongbo/FlashSloth-3.2B", example="Tongbo/FlashSloth-3.2B")
settings = read_settings(folder)
model, processor = open_folder(FlashSlothForConditionalGeneration, FlashSlothProcessor, folder, ...)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError
from transformers import PreTrainedConfig, PreTrainedModel, ProcessorMixin

from tenfold.cli.settings import MINI, HostSettings
from tenfold.errors import UserError
from tenfold.hosts.loading import HUB_ID, first_sentence, loading_from, quiet_transformers, refuse_misfits
from tenfold.runs import fingerprint, read_json
from tenfold.weights import StoredTensor

DTYPES = ("auto", "float32", "bfloat16", "float16")
_SIDE_FILES = ["*.json", "*.model", "*.jinja", "*.txt"]
ModelT = TypeVar("ModelT", bound=PreTrainedModel)
ProcessorT = TypeVar("ProcessorT", bound=ProcessorMixin)
ConfigT = TypeVar("ConfigT", bound=PreTrainedConfig)


def find_model(name: str | Path, example: str) -> Path:
    """The folder of a model; one on the hub is fetched, or found where it was fetched before.

    Args:
        name: a folder, or a hub id.
        example: of a hub id, for the message.

    Raises:
        UserError: no such folder, and no id of the hub; or the hub does not have it or cannot be reached.
    """
    path = Path(name)
    if path.is_dir():
        return path.resolve()
    if path.exists() or not HUB_ID.fullmatch(str(name)):
        raise UserError("no such model", name, f"a folder, or a hub id such as {example}")
    try:
        # Releases often hold their weights twice: pickles are fetched where there is nothing else.
        folder = Path(snapshot_download(str(name), allow_patterns=[*_SIDE_FILES, "*.safetensors"]))
        if not any(folder.glob("*.safetensors")):
            folder = Path(snapshot_download(str(name), allow_patterns=[*_SIDE_FILES, "*.bin"]))
    except (HfHubHTTPError, OSError, ValueError) as error:
        expected = "a local folder, or the id of a model on a hub that can be reached"
        raise UserError(first_sentence(error), name, expected) from error
    return folder


def on_hub(settings: HostSettings) -> bool:
    """Whether a model is neither the one that ships nor a folder."""
    return settings.model != MINI and not Path(settings.model).is_dir()


def folder_fingerprint(settings: HostSettings, folder: Path) -> str:
    """Of the content of a model's folder, or of its hub id and commit."""
    return fingerprint({"hub": settings.model, "commit": folder.name} if on_hub(settings) else folder)


def require_shipped(folder: Path) -> Path:
    """A model's folder that should come with a package.

    Raises:
        UserError: not in this installation.
    """
    if not (folder / "config.json").is_file():
        raise UserError("no mini model in this installation", folder, "a folder of a model instead of mini")
    return folder


def dtype_of(dtype: str | torch.dtype) -> Any:
    """The type of numbers that a user names; "auto" stays.

    Raises:
        UserError: none of `DTYPES`.
    """
    if isinstance(dtype, str) and dtype not in DTYPES:
        raise UserError(f"dtype {dtype!r}", expected=", ".join(DTYPES))
    return getattr(torch, dtype) if isinstance(dtype, str) and dtype != "auto" else dtype


def read_settings(folder: Path) -> dict[str, Any]:
    """The content of a folder's config.json.

    Raises:
        UserError: no such folder, no config.json, or a broken one; a `model_type` that is no name, `architectures` that
            are no list of names.
    """
    path = folder / "config.json"
    if not folder.is_dir():
        raise UserError("no such folder", folder, "a model's folder")
    if not path.is_file():
        raise UserError("no config.json", folder, "a model's folder")
    content = read_json(path)
    if not isinstance(content, dict):
        raise UserError(f"{type(content).__name__} instead of settings", path, "a JSON object")
    kind, names = content.get("model_type"), content.get("architectures")
    if not isinstance(kind, str | None):
        raise UserError(f"model_type {kind!r:.80}", path, "a name")
    if names is not None and not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
        raise UserError(f"architectures {names!r:.80}", path, "a list of names")
    return content


def require_type(folder: Path, config: type[PreTrainedConfig]) -> None:
    """Refuse a folder that is not one of a package's own.

    Raises:
        UserError: another model type in its config.json.
    """
    if (found := read_settings(folder).get("model_type")) != config.model_type:
        what = f"not one of this package's folders (model_type {found!r})"
        raise UserError(what, folder / "config.json", config.model_type)


def read_config(kind: type[ConfigT], folder: Path) -> ConfigT:
    """The config of one of a package's own folders.

    Raises:
        UserError: values in it that no such model can have.
    """
    with loading_from(folder, "a config.json as save_pretrained writes it"):
        return kind.from_pretrained(folder, local_files_only=True, trust_remote_code=False)


def meta_state(kind: type[PreTrainedModel], config: PreTrainedConfig) -> dict[str, torch.Tensor]:
    """The state dict of a model of this config, without values: on the meta device.

    Raises:
        UserError: numbers that no such model can have.
    """
    with loading_from("config.json", f"numbers that a {config.model_type} can have"), torch.device("meta"):
        return kind(config).state_dict()


def check_weights(stored: Mapping[str, StoredTensor], expected: Mapping[str, tuple[int, ...]], where: Path) -> None:
    """Refuse weights that are not exactly the expected ones.

    Raises:
        UserError: the first that is missing, too many, or of another shape.
    """
    missing = [name for name in expected if name not in stored]
    unexpected = [name for name in stored if name not in expected]
    if missing:
        raise UserError(f"{len(missing)} weights missing, first {missing[0]}", where, "all of its config")
    if unexpected:
        raise UserError(f"{len(unexpected)} weights too many, first {unexpected[0]}", where, "those of its config")
    for name, tensor in stored.items():
        if tensor.shape != expected[name]:
            raise UserError(f"{name} is {list(tensor.shape)}", where, f"{list(expected[name])} by its config")


def compared(ours: Mapping[str, tuple[int, ...]], theirs: Mapping[str, tuple[int, ...]]) -> list[str]:
    """A line for each weight that is missing in ours, too many, or of another shape than the official one."""
    wrong = [f"{key} is missing" for key in theirs if key not in ours]
    wrong += [f"{key} is too many" for key in ours if key not in theirs]
    both = [key for key in theirs if key in ours]
    return wrong + [f"{key} is {ours[key]}, official {theirs[key]}" for key in both if ours[key] != theirs[key]]


def from_state(
    kind: type[ModelT],
    config: PreTrainedConfig,
    tensors: Mapping[str, StoredTensor],
    dtype: Any,
    attention: str,
    where: Path,
    **placed: Any,
) -> ModelT:
    """A model of a config, from weights under our names that are read one after the other.

    Args:
        dtype: "auto" is the config's.
        placed: `device_map`, `quantization_config`, as transformers takes them.

    Raises:
        UserError: weights that are missing, too many or of another shape; a library that placing asks for.
    """
    asked = config.dtype if dtype == "auto" else dtype
    # Copies: the model must not change with a file that is mapped into memory.
    state = {name: tensor.read().to(asked, copy=True) for name, tensor in tensors.items()}
    with _named_libraries(where), quiet_transformers():
        found: Any = kind.from_pretrained(
            None,
            config=config,
            state_dict=state,
            dtype=asked,
            attn_implementation=attention,
            output_loading_info=True,
            **placed,
        )
    model, loading = found
    refuse_misfits(loading, where, strict=True)
    return model


@contextmanager
def _named_libraries(where: Path) -> Iterator[None]:
    """What a library that is missing is called: accelerate for a map of devices, bitsandbytes for four bits."""
    try:
        yield
    except ImportError as error:
        raise UserError(first_sentence(error), where, "the library that is named") from error


def open_folder(
    kind: type[ModelT],
    processor: type[ProcessorT],
    folder: Path,
    dtype: Any,
    attention: str,
    title: str,
    **placed: Any,
) -> tuple[ModelT, ProcessorT]:
    """A model and its processor from one of a package's own folders.

    Args:
        title: what such a model is called, for messages.
        placed: `device_map`, `quantization_config`, as transformers takes them.

    Raises:
        UserError: another model; a broken file; weights that are missing, too many or of another shape; a library that
            placing asks for.
    """
    model_type = kind.config_class.model_type  # type: ignore[union-attr]
    if (found := read_settings(folder).get("model_type")) != model_type:
        what = f"not a {title} (model_type {found!r})"
        raise UserError(what, folder / "config.json", f"{model_type}, or a release")
    with _named_libraries(folder), loading_from(folder, f"a {title} with its processor"):
        opened: Any = kind.from_pretrained(
            folder,
            dtype=dtype,
            attn_implementation=attention,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # reported below, with the first key that differs
            local_files_only=True,
            trust_remote_code=False,
            **placed,
        )
        made = processor.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    model, loading = opened
    refuse_misfits(loading, folder, strict=True)
    return model, made
