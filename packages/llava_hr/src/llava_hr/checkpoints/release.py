"""An official LLaVA-HR folder, opened: its config in our terms, its weights under our names, its tokenizer.

    with ExitStack() as files:
        release = read_release(folder, files)
        release.tensors["lm_head.weight"].read()

Nothing is asked of the hub: a complete folder needs neither CLIP's nor the ConvNeXt's own weights.
"""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from tokenizers import normalizers
from transformers import GenerationConfig, LlamaTokenizer
from transformers import PreTrainedTokenizerFast as Tokenizer

from llava_hr.checkpoints.keys import (
    ADAPTERS,
    TOWER_FOLDER,
    UNUSED,
    TowerConfig,
    config_to_ours,
    is_official,
    renamed,
    to_official,
)
from llava_hr.configuration import LlavaHrConfig
from llava_hr.image_processing import LlavaHrImageProcessor
from llava_hr.modeling import LlavaHrForConditionalGeneration
from llava_hr.processing import LlavaHrProcessor
from tenfold import UserError
from tenfold.data.conversation import IMAGE
from tenfold.hosts import checkpoints
from tenfold.hosts.checkpoints import check_weights, read_settings
from tenfold.hosts.loading import loading_from
from tenfold.runs import atomic_write_json, read_json
from tenfold.runs.record import validation_error
from tenfold.weights import StoredTensor, WeightFiles

# In the order of preference, for reading.
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model")
# What lies beside the weights of an official release.
SIDE_FILES = (*TOKENIZER_FILES, "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")


@dataclass(frozen=True)
class Release:
    """An official folder.

    Attributes:
        folder: where it lies.
        settings: its config.json.
        config: the same as ours.
        tensors: our name -> weight, exactly those of the config.
        unused: official name -> tensor that no computation uses.
    """

    folder: Path
    settings: Mapping[str, Any]
    config: LlavaHrConfig
    tensors: Mapping[str, StoredTensor]
    unused: Mapping[str, StoredTensor]


def read_release(folder: Path, files: ExitStack) -> Release:
    """Open an official folder; its weights are read when they are asked for, as long as ``files`` is open.

    Raises:
        UserError: not an official LLaVA-HR; a broken, missing or foreign file; weights that are missing, too many or of
            another shape than its config says.
    """
    settings = read_settings(folder)
    path = folder / "config.json"
    if not is_official(settings):
        what = f"not an official LLaVA-HR (model_type {settings.get('model_type')!r})"
        raise UserError(what, path, "a config with vision_tower_slow")
    stored = files.enter_context(WeightFiles(folder)).tensors
    shapes = {name: tensor.shape for name, tensor in stored.items()}
    config = config_to_ours(settings, shapes, path, _tower_config(folder, settings))
    if settings.get("torch_dtype") is None and "lm_head.weight" in stored:
        config.dtype = stored["lm_head.weight"].dtype
    adapters = any(name.startswith(ADAPTERS) for name in stored)
    if adapters and not config.vision_config.adapters:
        # The official code would leave them out in silence.
        raise UserError("freeze_vision is true, and the weights hold MR-Adapters", path, "freeze_vision false")
    if config.vision_config.adapters and not adapters:
        raise UserError(f"no MR-Adapters ({ADAPTERS}*)", folder, "them, as freeze_vision is false in config.json")
    unused = {name: tensor for name, tensor in stored.items() if UNUSED.match(name)}
    names = renamed(stored, "ours", folder)
    expected = {name: tuple(tensor.shape) for name, tensor in to_official(meta_state(config)).items()}
    check_weights({name: stored[name] for name in names}, expected, folder)
    return Release(folder, settings, config, {new: stored[old] for old, new in names.items()}, unused)


def _tower_config(folder: Path, settings: Mapping[str, Any]) -> TowerConfig | None:
    path = folder / TOWER_FOLDER / "config.json"
    if settings.get("mm_vision_tower") != TOWER_FOLDER or not path.is_file():
        return None
    content = read_json(path)
    if isinstance(content, dict):  # a whole CLIP has its image half inside
        content = content.get("vision_config", content)
    try:
        return TowerConfig.model_validate(content)
    except ValidationError as error:
        raise validation_error(error, path, "a CLIP vision tower") from error


def meta_state(config: LlavaHrConfig) -> dict[str, torch.Tensor]:
    """The state dict of a model of this config, without values: on the meta device."""
    return checkpoints.meta_state(LlavaHrForConditionalGeneration, config)


def read_tokenizer(folder: Path, vocabulary: int) -> Tokenizer:
    """The tokenizer of a language model or a release.

    Args:
        folder: with a `tokenizer.json`, or a SentencePiece `tokenizer.model`.
        vocabulary: rows of the model's embedding.

    Raises:
        UserError: none there, a broken file, more words than the model has, or no sentencepiece to read it.
    """
    path = next((folder / name for name in TOKENIZER_FILES if (folder / name).is_file()), None)
    if path is None:
        raise UserError("no tokenizer", folder, f"{' or '.join(TOKENIZER_FILES)}, or another folder (--tokenizer)")
    if path.suffix == ".json":
        # Looked at first: the tokenizer library names neither file nor line of what is broken.
        content = read_json(path)
        if not isinstance(content, dict) or not isinstance(content.get("model"), dict):
            raise UserError("no tokenizer in it", path, "one that the tokenizers library wrote")
        with loading_from(folder, "a tokenizer as transformers writes it"):
            tokenizer = Tokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    else:
        tokenizer = _sentencepiece_tokenizer(path)
    words = {name: number for name, number in tokenizer.get_vocab().items() if name != IMAGE}
    if max(words.values(), default=0) >= vocabulary:
        raise UserError(f"{len(words)} words", path, f"at most the {vocabulary} of the model")
    return tokenizer


def _sentencepiece_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer of a `tokenizer.model`, which is all that official releases have.

    The models were trained with the legacy splitting: text behind a special token begins with a space of its own again.
    Prepending "▁" to every piece of text does so; transformers' own class for Llama does it to the first piece only.
    """
    # In this order: looking for google.protobuf imports google.
    if not all(importlib.util.find_spec(name) for name in ("sentencepiece", "google", "google.protobuf")):
        raise UserError("cannot be read here", path, "sentencepiece and protobuf: pip install 'llava-hr[convert]'")
    with loading_from(path.parent, "a whole SentencePiece model in tokenizer.model"):
        llama = LlamaTokenizer.from_pretrained(path.parent, local_files_only=True, trust_remote_code=False)
    inner = llama.backend_tokenizer
    inner.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    inner.pre_tokenizer = None
    words = {f"{name}_token": getattr(llama, f"{name}_token") for name in ("bos", "eos", "unk")}
    return Tokenizer(tokenizer_object=inner, model_max_length=llama.model_max_length, **words)


def processor(tokenizer: Tokenizer, config: LlavaHrConfig) -> LlavaHrProcessor:
    """Images and prompts as this config wants them; sets the config's `image_token_id` to the tokenizer's."""
    made = LlavaHrProcessor(
        LlavaHrImageProcessor(config.vision_config.image_size, config.image_aspect_ratio),
        tokenizer,
        conversation=config.conversation,
        num_image_tokens=config.num_image_tokens,
        max_positions=config.text_config.max_position_embeddings,
    )
    config.image_token_id = made.image_token_id
    return made


def generation_config(config: LlavaHrConfig) -> GenerationConfig:
    """Greedy decoding between the language model's own marks."""
    ids = {name: getattr(config.text_config, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    return GenerationConfig(**ids)


def copy_side_files(source: Path, target: Path) -> None:
    """Copy a release's tokenizer files as they are."""
    for name in SIDE_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)


def copy_own_tokenizer(source: Path, target: Path) -> None:
    """Copy the tokenizer files of one of our folders, without the `<image>` that its processor added.

    Raises:
        UserError: there is none.
    """
    if not any((source / name).is_file() for name in TOKENIZER_FILES):
        raise UserError("no tokenizer", source, f"{' or '.join(TOKENIZER_FILES)}, or another folder (--tokenizer)")
    if (source / "tokenizer.model").is_file():
        shutil.copyfile(source / "tokenizer.model", target / "tokenizer.model")
    if (source / "tokenizer.json").is_file():
        content = read_json(source / "tokenizer.json")
        words = content["model"]["vocab"]
        kept = [token for token in content.get("added_tokens", []) if token["content"] != IMAGE or IMAGE in words]
        atomic_write_json(target / "tokenizer.json", content | {"added_tokens": kept})
    if (source / "tokenizer_config.json").is_file():
        content = read_json(source / "tokenizer_config.json")
        dropped = ("added_tokens_decoder", "extra_special_tokens", "image_token", "processor_class")
        atomic_write_json(
            target / "tokenizer_config.json", {name: value for name, value in content.items() if name not in dropped}
        )
