"""A release as it lies in a folder (sheet section 4): what its files say, under this package's names.

Releases call themselves "phi", name their vision tower by a path of the authors' machine, and hold its weights
themselves: nothing is looked for at that path. Their generation config ends at 50256, which no answer holds; here it is
`</s>`, 50296, first.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from huggingface_hub.errors import StrictDataclassError
from pydantic import BaseModel, ConfigDict, ValidationError
from transformers import GenerationConfig, PreTrainedTokenizerFast

from flashsloth.checkpoints import tokenizer as words
from flashsloth.checkpoints.keys import TOWER, renamed
from flashsloth.configuration import HD_VIEWS, SIGLIP_SO400M, FlashSlothConfig
from flashsloth.image_processing import FlashSlothImageProcessor
from flashsloth.modeling import FlashSlothForConditionalGeneration
from flashsloth.processing import FlashSlothProcessor
from flashsloth.prompts import QUERY
from tenfold import UserError
from tenfold.hosts import checkpoints
from tenfold.hosts.checkpoints import check_weights, read_settings
from tenfold.hosts.loading import loading_from
from tenfold.runs import read_json
from tenfold.runs.record import validation_error
from tenfold.weights import StoredTensor, WeightFiles

HEAD_WIDTH = 72  # of SigLIP-SO400M: 16 heads of 1,152
RELEASED_TOWER = "checkpoints/base/siglip-so400m-patch14-384"
ARCHITECTURE = "FlashSlothForCausalLM"
# Phi's own fields, spelt alike in both configs.
_SAME = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "resid_pdrop", "embd_pdrop", "attention_dropout", "hidden_act", "layer_norm_eps",
    "initializer_range", "max_position_embeddings", "qk_layernorm", "tie_word_embeddings", "bos_token_id",
    "eos_token_id",
)  # fmt: skip


class OfficialConfig(BaseModel):
    """`config.json` of a release: Phi's fields, and FlashSloth's own.

    Attributes:
        mm_vision_tower: a path of the authors' machine; not read.
        image_hd: set by stage 2 only: True for HD. None: a stage-1 model.
    """

    model_config = ConfigDict(extra="ignore")

    model_type: Literal["phi"]
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int | None = None
    partial_rotary_factor: float = 0.5
    rope_theta: float = 10000.0
    rope_scaling: None = None
    qk_layernorm: Literal[False] = False
    resid_pdrop: float = 0.0
    embd_pdrop: float = 0.0
    attention_dropout: float = 0.0
    hidden_act: str = "gelu_new"
    layer_norm_eps: float = 1e-5
    initializer_range: float = 0.02
    max_position_embeddings: int = 2048
    tie_word_embeddings: Literal[False] = False
    bos_token_id: int | None = 50256
    eos_token_id: int | None = 50256
    torch_dtype: Literal["float16", "bfloat16", "float32"] = "float16"
    mm_vision_tower: str
    mm_projector_type: Literal["mlp2x_gelu"] = "mlp2x_gelu"
    mm_use_im_start_end: Literal[False] = False
    image_aspect_ratio: Literal["square", "pad", "crop"] = "square"
    image_hd: bool | None = None


@dataclass(frozen=True)
class Release:
    """An opened release.

    Attributes:
        config: ours.
        tensors: weights under our names, read on demand.
    """

    folder: Path
    config: FlashSlothConfig
    tensors: Mapping[str, StoredTensor]


def is_official(settings: Mapping[str, Any]) -> bool:
    """Whether a config.json is a FlashSloth release's, which transformers would take for a plain Phi."""
    named = any("FlashSloth" in str(name) for name in settings.get("architectures") or ())
    return settings.get("model_type") == "phi" and ("mm_vision_tower" in settings or named)


def read_release(folder: Path, files: ExitStack) -> Release:
    """Open a release; its weights are read while `files` is open.

    Raises:
        UserError: no release, a broken file, a name that FlashSloth does not have, weights that do not fit its config.
    """
    settings, path = read_settings(folder), folder / "config.json"
    if not is_official(settings):
        what = f"model_type {settings.get('model_type')!r}, architectures {settings.get('architectures')}"
        raise UserError(f"not a FlashSloth release ({what})", path, f"phi and {ARCHITECTURE}")
    stored = files.enter_context(WeightFiles(folder)).tensors
    new = renamed(stored, "ours", folder)
    shapes = {name: stored[name].shape for name in new}
    config = config_to_ours(settings, shapes, path)
    tensors = {ours: stored[official] for official, ours in new.items()}
    check_weights(tensors, {name: tuple(tensor.shape) for name, tensor in meta_state(config).items()}, folder)
    return Release(folder, config, tensors)


def config_to_ours(
    official: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]] | None = None, where: Path | None = None
) -> FlashSlothConfig:
    """The config of a release as ours.

    Args:
        official: content of config.json.
        shapes: official name -> shape of the weights, which alone tell the vision tower's and EmbQ's sizes; None: those
            of the released models.
        where: the config's file, for the message.

    Raises:
        UserError: not FlashSloth's; names the field.
    """
    given = {name: value for name, value in official.items() if value is not None}
    try:
        read = OfficialConfig.model_validate(given)
    except ValidationError as error:
        raise validation_error(error, where or "config.json", "a FlashSloth release's config") from error
    text: dict[str, Any] = {name: getattr(read, name) for name in _SAME}
    text["num_key_value_heads"] = read.num_key_value_heads or read.num_attention_heads
    text["partial_rotary_factor"] = read.partial_rotary_factor
    text["rope_parameters"] = {
        "rope_type": "default",
        "rope_theta": read.rope_theta,
        "partial_rotary_factor": read.partial_rotary_factor,
    }
    vision, rest = dict(SIGLIP_SO400M), {}
    if shapes is not None:
        vision |= _vision_sizes(shapes, where)
        rest = _embq_sizes(shapes, where)
    try:
        return FlashSlothConfig(
            text_config=text | {"model_type": "phi"},
            vision_config=vision | {"model_type": "siglip_vision_model"},
            views=HD_VIEWS if read.image_hd and read.image_aspect_ratio == "square" else 1,
            image_aspect_ratio=read.image_aspect_ratio,
            instruction_tuned=read.image_hd is not None,
            dtype=read.torch_dtype,
            architectures=["FlashSlothForConditionalGeneration"],
            **rest,
        )
    except (StrictDataclassError, ValueError) as error:
        raise UserError(f"unusable ({error})", where, "a FlashSloth release's config") from error


def _vision_sizes(shapes: Mapping[str, tuple[int, ...]], where: Path | None) -> dict[str, Any]:
    prefix = f"{TOWER}encoder.layers."
    try:
        width, _, patch, _ = shapes[f"{TOWER}embeddings.patch_embedding.weight"]
        positions = shapes[f"{TOWER}embeddings.position_embedding.weight"][0]
        inner = shapes[f"{prefix}0.mlp.fc1.weight"][0]
    except (KeyError, ValueError, IndexError) as error:
        raise UserError("no vision tower in the weights", where, f"weights named {TOWER}*") from error
    layers = {key.removeprefix(prefix).partition(".")[0] for key in shapes if key.startswith(prefix)}
    side = math.isqrt(positions)
    released = (width, patch, side) == (1152, 14, 27)
    heads = 16 if released else next((n for n in (width // HEAD_WIDTH, 4, 2, 1) if n and width % n == 0), 1)
    return {
        "hidden_size": width,
        "intermediate_size": inner,
        "num_hidden_layers": len(layers),
        "num_attention_heads": heads,
        "image_size": 384 if released else side * patch,
        "patch_size": patch,
    }


def _embq_sizes(shapes: Mapping[str, tuple[int, ...]], where: Path | None) -> dict[str, Any]:
    try:
        return {
            "query_count": shapes["model.learnable_tokens.token"][0],
            "embq_width": shapes["model.lqformer.down_projector_image.weight"][0],
        }
    except (KeyError, IndexError) as error:
        raise UserError("no query tokens or no EmbQ in the weights", where, "model.learnable_tokens.token") from error


def config_to_official(config: FlashSlothConfig) -> dict[str, Any]:
    """Our config as a release's `config.json`.

    Raises:
        UserError: a value that is a constant of the official code.
    """
    text, vision, standard = config.text_config, config.vision_config, FlashSlothConfig()
    for name in ("pool", "embq_layer", "dot_token_id", "query_token_id", "end_token_id", "projector_hidden_act"):
        value, constant = getattr(config, name), getattr(standard, name)
        if value != constant:
            raise UserError(f"{name} is {value}", None, f"{constant}, which is a constant of the official code")
    dtype = str(config.dtype or "float16").removeprefix("torch.")
    official: dict[str, Any] = {name: getattr(text, name) for name in _SAME} | {
        "model_type": "phi",
        "architectures": [ARCHITECTURE],
        "partial_rotary_factor": text.rope_parameters["partial_rotary_factor"],
        "rope_theta": text.rope_parameters["rope_theta"],
        "rope_scaling": None,
        "torch_dtype": dtype,
        "use_cache": True,
        "mm_hidden_size": vision.hidden_size,
        "mm_projector_type": "mlp2x_gelu",
        "mm_vision_select_layer": -2,
        "mm_vision_select_feature": "patch",
        "mm_vision_tower": RELEASED_TOWER,
        "mm_use_im_start_end": False,
        "mm_use_im_patch_token": False,
        "use_mm_proj": True,
        "tune_mm_mlp_adapter": False,
        "freeze_mm_mlp_adapter": False,
        "mm_projector_lr": None,
        "image_aspect_ratio": config.image_aspect_ratio,
        "tokenizer_padding_side": "right",
        "tokenizer_model_max_length": words.MOST,
    }
    return official | ({"image_hd": config.views > 1} if config.instruction_tuned else {})


def meta_state(config: FlashSlothConfig) -> dict[str, torch.Tensor]:
    """The state dict of a model of this config, without values: on the meta device."""
    return checkpoints.meta_state(FlashSlothForConditionalGeneration, config)


def read_tokenizer(folder: Path, config: FlashSlothConfig) -> PreTrainedTokenizerFast:
    """The tokenizer of a folder, checked against a config.

    Raises:
        UserError: none there, a broken file, or another id of `<learnable>` than the config's.
    """
    if (folder / words.VOCABULARY).is_file():
        made = words.build(folder)
    elif (path := folder / "tokenizer.json").is_file():
        content = read_json(path)
        if not isinstance(content, dict) or not isinstance(content.get("model"), dict):
            raise UserError("no tokenizer in it", path, "one that the tokenizers library wrote")
        with loading_from(folder, "a tokenizer as transformers writes it"):
            made = PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    else:
        raise UserError("no tokenizer", folder, "vocab.json and merges.txt, or another folder (--tokenizer)")
    if (found := made.get_vocab().get(QUERY)) != config.query_token_id:
        raise UserError(f"{QUERY} has the id {found}", folder, f"{config.query_token_id}, as in the model's config")
    return made


def processor(tokenizer: PreTrainedTokenizerFast, config: FlashSlothConfig) -> FlashSlothProcessor:
    """Images and prompts as this config wants them; sets the config's `image_token_id` to the tokenizer's."""
    made = FlashSlothProcessor(
        FlashSlothImageProcessor(config.vision_config.image_size, config.views, config.image_aspect_ratio),
        tokenizer,
        num_image_tokens=config.num_image_tokens,
        num_queries=config.query_count,
        max_positions=max(words.MOST, config.text_config.max_position_embeddings),
    )
    config.image_token_id = made.image_token_id
    return made


def generation_config(config: FlashSlothConfig) -> GenerationConfig:
    """Greedy decoding up to `</s>`, or Phi-2's own end, which some prompts bring about (part two, A9)."""
    own = config.text_config.eos_token_id
    ends = [config.end_token_id, *([own] if own is not None and own != config.end_token_id else [])]
    pad = config.text_config.pad_token_id
    return GenerationConfig(
        bos_token_id=config.text_config.bos_token_id, eos_token_id=ends, pad_token_id=own if pad is None else pad
    )
