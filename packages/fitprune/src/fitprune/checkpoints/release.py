"""What lies beside the weights of an official LLaVA-1.5 release, and what transformers needs instead.

The authors' code marks an image by the id -200 and inserts its features there; transformers has a token `<image>`,
once for each visual token. It is put behind the words, with a `<pad>`, as in the ports of llava-hf.
"""

from __future__ import annotations

import importlib.util
import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

from huggingface_hub.errors import StrictDataclassError
from pydantic import BaseModel, ConfigDict, ValidationError
from tokenizers import AddedToken, normalizers
from transformers import CLIPVisionConfig, LlamaConfig, LlamaTokenizer, LlavaConfig, LlavaProcessor
from transformers import PreTrainedTokenizerFast as Tokenizer
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

from tenfold import UserError
from tenfold.hosts.loading import loading_from
from tenfold.runs import atomic_write_json, read_json
from tenfold.runs.record import validation_error

logger = logging.getLogger(__name__)
Model = TypeVar("Model", bound=BaseModel)

IMAGE, PAD = "<image>", "<pad>"
# A field of our own in the config of a converted model: the size of the vocabulary that the release has.
OFFICIAL_WORDS = "official_vocab_size"

CLIP_L_336 = "openai/clip-vit-large-patch14-336"
TOWER_FOLDER = "vision_tower"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model")
LOCAL: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
# transformers' own field names, spelt alike in both configs.
_SAME = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "max_position_embeddings",
    "hidden_act",
    "rms_norm_eps",
    "initializer_range",
    "tie_word_embeddings",
    "bos_token_id",
    "eos_token_id",
)
# LLaVA's evaluation template "vicuna_v1".
SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
CHAT_TEMPLATE = (
    "{% if messages[0]['role'] != 'system' %}" + SYSTEM + " {% endif %}"
    "{% for message in messages %}"
    "{% if message['role'] == 'user' %}USER: {% elif message['role'] == 'assistant' %}ASSISTANT: {% endif %}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] if part['type'] == 'image' %}<image>\n{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }}{% endfor %}"
    "{% endif %}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% else %} {% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)


class OfficialConfig(BaseModel):
    """`config.json` of a release: Llama's fields, and LLaVA's own, which say how images get in."""

    model_config = ConfigDict(extra="ignore")

    model_type: Literal["llava", "llava_llama"]
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int | None = None
    max_position_embeddings: int
    hidden_act: str = "silu"
    rms_norm_eps: float
    initializer_range: float = 0.02
    rope_theta: float = 10000.0
    rope_scaling: None = None
    tie_word_embeddings: bool = False
    bos_token_id: int = 1
    eos_token_id: int = 2
    pad_token_id: int | None = None
    torch_dtype: Literal["float16", "bfloat16", "float32"] = "float16"
    image_aspect_ratio: Literal["pad", "square"] = "square"
    mm_vision_tower: str
    mm_hidden_size: int
    mm_projector_type: Literal["mlp2x_gelu"]
    mm_vision_select_layer: int
    mm_vision_select_feature: Literal["patch", "cls_patch"] = "patch"
    mm_patch_merge_type: Literal["flat"] = "flat"
    mm_use_im_start_end: Literal[False] = False


class TowerConfig(BaseModel):
    """Dimensions of a CLIP vision tower, under transformers' names and with its defaults."""

    model_config = ConfigDict(extra="ignore")

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    image_size: int
    patch_size: int
    num_channels: int = 3
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5
    projection_dim: int = 512


CLIP_L_336_DIMENSIONS = TowerConfig(
    hidden_size=1024,
    intermediate_size=4096,
    num_hidden_layers=24,
    num_attention_heads=16,
    image_size=336,
    patch_size=14,
    projection_dim=768,
)


def read_official_config(folder: Path) -> OfficialConfig:
    """The config of a release.

    Raises:
        UserError: none there, broken, or not LLaVA-1.5's (another projector, tiles, rope scaling, ...); names the
            field.
    """
    path = folder / "config.json"
    content = _read_object(path)
    if "mm_vision_tower" not in content:
        raise UserError(
            f"not an official release (model_type {content.get('model_type')!r})", path, "one with mm_vision_tower"
        )
    # Written as null by some versions of the official code.
    given = {name: value for name, value in content.items() if value is not None}
    return _validated(OfficialConfig, given, path, "an official LLaVA-1.5 config")


def read_tower_config(release: Path, config: OfficialConfig, vision_tower: Path | None) -> TowerConfig:
    """The vision tower's dimensions: those of `vision_tower`, or of the release's own, or CLIP ViT-L/14-336's.

    Raises:
        UserError: the release names another tower, and there is no folder that says what it is.
    """
    own = release / TOWER_FOLDER
    folder = vision_tower or (own if config.mm_vision_tower == TOWER_FOLDER and own.is_dir() else None)
    if folder is not None:
        content = _read_object(folder / "config.json")
        # A whole CLIP has its image half inside.
        return _validated(TowerConfig, content.get("vision_config", content), folder, "a CLIP vision tower")
    if Path(config.mm_vision_tower).name != Path(CLIP_L_336).name:
        raise UserError(
            f"vision tower {config.mm_vision_tower}", release, f"{CLIP_L_336}, or its folder (--vision-tower)"
        )
    return CLIP_L_336_DIMENSIONS


def transformers_config(config: OfficialConfig, tower: TowerConfig, image_token: int, pad_token: int) -> LlavaConfig:
    """The release's config in transformers' form.

    Args:
        image_token, pad_token: ids that its tokenizer gives `<image>` and `<pad>`.

    Returns:
        A config whose vocabulary has room for both; its field `official_vocab_size` keeps the release's own.
    """
    # The ports of llava-hf pad to a multiple of 64, for speed; a vocabulary that has room is left alone.
    needed = max(image_token, pad_token) + 1
    vocabulary = config.vocab_size if needed <= config.vocab_size else -(-needed // 64) * 64
    llama = {name: getattr(config, name) for name in _SAME}
    llama |= {
        "vocab_size": vocabulary,
        "num_key_value_heads": config.num_key_value_heads or config.num_attention_heads,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},
        "pad_token_id": pad_token,
    }
    with loading_from("config.json", "numbers that LLaVA-1.5 can have"):
        return LlavaConfig(
            text_config=LlamaConfig(**llama),
            vision_config=CLIPVisionConfig(**tower.model_dump()),
            image_token_index=image_token,
            image_seq_length=(tower.image_size // tower.patch_size) ** 2,
            vision_feature_layer=config.mm_vision_select_layer,
            vision_feature_select_strategy="default" if config.mm_vision_select_feature == "patch" else "full",
            tie_word_embeddings=config.tie_word_embeddings,
            dtype=config.torch_dtype,
            architectures=["LlavaForConditionalGeneration"],
            **dict[str, Any]({OFFICIAL_WORDS: config.vocab_size}),
        )


def read_transformers_config(folder: Path) -> LlavaConfig:
    """The config of a model in transformers' layout.

    Raises:
        UserError: none there, broken, or not a LLaVA with a Llama decoder, a CLIP tower and one feature layer.
    """
    path = folder / "config.json"
    content = _read_object(path)
    if content.get("model_type") != "llava" or "mm_vision_tower" in content:
        what = "an official release" if "mm_vision_tower" in content else f"model_type {content.get('model_type')!r}"
        raise UserError(f"not LLaVA-1.5 in transformers' layout ({what})", path, "model_type 'llava', llava-hf's")
    try:
        config: Any = LlavaConfig.from_dict(content)
    except (StrictDataclassError, ValueError, TypeError, KeyError) as error:
        raise UserError(f"not a LLaVA config ({error})", path, "one as save_pretrained writes it") from error
    for part, kind, wanted in (
        ("text_config", config.text_config.model_type, "llama"),
        ("vision_config", config.vision_config.model_type, "clip_vision_model"),
    ):
        if kind != wanted:
            raise UserError(f"{part} is {kind}", path, f"{wanted}: the official code has no other")
    if not isinstance(config.vision_feature_layer, int):
        raise UserError(f"features of layers {config.vision_feature_layer}", path, "one vision_feature_layer")
    return config


def official_vocabulary(config: LlavaConfig) -> int:
    """How many words the official release has: without `<image>`, `<pad>` and the filling behind them.

    A converted model says so; llava-hf's ports (32,064 for 32,000) are recognised by their filling to 64. Where the
    image token lies among the words, all of them are official.
    """
    recorded = getattr(config, OFFICIAL_WORDS, None)
    if isinstance(recorded, int):
        return recorded
    words = cast(Any, config.text_config).vocab_size
    return config.image_token_index if words == -(-(config.image_token_index + 2) // 64) * 64 else words


def official_config(config: LlavaConfig, vocabulary: int, *, pads: bool) -> dict[str, Any]:
    """A transformers config in the release's form.

    Args:
        vocabulary: see `official_vocabulary`.
        pads: images are padded to squares.
    """
    llama, tower = cast(Any, config.text_config), cast(Any, config.vision_config)
    clip = tower_dimensions(config) == CLIP_L_336_DIMENSIONS
    dtype = str(getattr(config, "dtype", None) or "float16").removeprefix("torch.")
    pad = llama.pad_token_id
    return {name: getattr(llama, name) for name in _SAME} | {
        "architectures": ["LlavaLlamaForCausalLM"],
        "model_type": "llava",
        "vocab_size": vocabulary,
        "num_key_value_heads": llama.num_key_value_heads,
        "rope_theta": llama.rope_parameters["rope_theta"],
        "rope_scaling": None,
        "pad_token_id": pad if pad is not None and pad < vocabulary else 0,
        "torch_dtype": dtype,
        "use_cache": True,
        "use_mm_proj": True,
        "image_aspect_ratio": "pad" if pads else "square",
        "mm_hidden_size": tower.hidden_size,
        "mm_projector_type": "mlp2x_gelu",
        "mm_use_im_patch_token": False,
        "mm_use_im_start_end": False,
        "mm_vision_select_feature": "patch" if config.vision_feature_select_strategy == "default" else "cls_patch",
        "mm_vision_select_layer": config.vision_feature_layer,
        "mm_vision_tower": CLIP_L_336 if clip else TOWER_FOLDER,
    }


def tower_dimensions(config: LlavaConfig) -> TowerConfig:
    """The vision tower of a transformers config."""
    return TowerConfig.model_validate({name: getattr(config.vision_config, name) for name in TowerConfig.model_fields})


def read_tokenizer(folder: Path, vocab_size: int) -> Tokenizer | None:
    """The release's tokenizer, with `<image>` and `<pad>` added behind its words; None when the folder has none.

    Raises:
        UserError: more words than the model has, a broken file, or a `tokenizer.model` and no sentencepiece to read it.
    """
    path = next((folder / name for name in TOKENIZER_FILES if (folder / name).is_file()), None)
    if path is None:
        logger.warning("%s: no tokenizer, so the output gets no processor", folder)
        return None
    if path.suffix == ".json":
        # LLaVA's prompts begin with <s>; batches for generation are padded on the left.
        with loading_from(folder, "a tokenizer as transformers writes it"):
            tokenizer = Tokenizer.from_pretrained(folder, **LOCAL, padding_side="left", add_bos_token=True)
    else:
        tokenizer = _sentencepiece_tokenizer(path)
    if len(tokenizer) > vocab_size:
        raise UserError(f"{len(tokenizer)} words", path, f"at most the {vocab_size} of the model")
    tokenizer.add_tokens([AddedToken(IMAGE, special=True, normalized=False)], special_tokens=True)
    # Releases pad with <unk>; a token of its own never hides a word.
    tokenizer.add_special_tokens({"pad_token": AddedToken(PAD, special=True, normalized=False)})
    return tokenizer


def _sentencepiece_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer of a `tokenizer.model`, which is all that the authors' own releases have.

    Their code tokenizes what stands before and behind an image apart, so that the text behind begins with a space of
    its own ("▁" before the line break). Prepending it to every piece of text between special tokens does the same, as
    in the tokenizer.json of llava-hf's ports; transformers' class for Llama prepends it to the first piece only.
    """
    # In this order: looking for google.protobuf imports google.
    if not all(importlib.util.find_spec(name) for name in ("sentencepiece", "google", "google.protobuf")):
        raise UserError("cannot be read here", path, "sentencepiece and protobuf: pip install 'fitprune[convert]'")
    with loading_from(path.parent, "a whole SentencePiece model in tokenizer.model"):
        llama = LlamaTokenizer.from_pretrained(path.parent, **LOCAL, add_bos_token=True)
    inner = llama.backend_tokenizer
    inner.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    inner.pre_tokenizer = None
    words = {f"{name}_token": getattr(llama, f"{name}_token") for name in ("bos", "eos", "unk")}
    return Tokenizer(tokenizer_object=inner, padding_side="left", model_max_length=llama.model_max_length, **words)


def added_ids(tokenizer: Tokenizer | None, vocab_size: int) -> tuple[int, int]:
    """Ids of `<image>` and `<pad>`; without a tokenizer, the first two behind the model's words."""
    if tokenizer is None:
        return vocab_size, vocab_size + 1
    words = tokenizer.get_vocab()
    return words[IMAGE], words[PAD]


def processor(tokenizer: Tokenizer, config: LlavaConfig, *, pads: bool) -> LlavaProcessor:
    """Images as the official evaluation prepares them, prompts by its template "vicuna_v1".

    Args:
        pads: pad images to squares with CLIP's mean colour (`image_aspect_ratio: pad`); else crop the centre.
    """
    side = cast(Any, config.vision_config).image_size
    return LlavaProcessor(
        image_processor=LlavaImageProcessorPil(
            do_pad=pads, size={"shortest_edge": side}, crop_size={"height": side, "width": side}
        ),
        tokenizer=tokenizer,
        patch_size=cast(Any, config.vision_config).patch_size,
        vision_feature_select_strategy=config.vision_feature_select_strategy,
        num_additional_image_tokens=1,  # CLIP's class token
        chat_template=CHAT_TEMPLATE,
        image_token=IMAGE,
    )


def pads_images(folder: Path) -> bool:
    """Whether a model in transformers' layout pads images to squares.

    llava-hf's ports crop instead, because their image processor is older than padding; the release pads.
    """
    for name in ("processor_config.json", "preprocessor_config.json"):
        if (folder / name).is_file():
            content = _read_object(folder / name)
            return bool(content.get("image_processor", content).get("do_pad", True))
    return True


def copy_tokenizer(source: Path, target: Path) -> None:
    """Copy tokenizer files of a model in transformers' layout, without an `<image>` and `<pad>` that were added."""
    for name in TOKENIZER_FILES:
        if not (source / name).is_file():
            continue
        if name.endswith(".json"):
            content = _read_object(source / name)
            words = dict(content["model"]["vocab"])
            kept = [
                token
                for token in content.get("added_tokens", [])
                if token["content"] in words or token["content"] not in (IMAGE, PAD)
            ]
            atomic_write_json(target / name, content | {"added_tokens": kept})
        else:
            shutil.copyfile(source / name, target / name)
    if (source / "tokenizer_config.json").is_file():
        content = _read_object(source / "tokenizer_config.json")
        dropped = {"added_tokens_decoder", "extra_special_tokens", "image_token", "processor_class", "pad_token"}
        settings = {name: value for name, value in content.items() if name not in dropped}
        settings["pad_token"] = content.get("unk_token", "<unk>")
        atomic_write_json(target / "tokenizer_config.json", settings)


def _read_object(path: Path) -> dict[str, Any]:
    content = read_json(path)
    if not isinstance(content, dict):
        raise UserError(f"{type(content).__name__} instead of settings", path, "a JSON object")
    return content


def _validated(model: type[Model], content: Mapping[str, Any], path: Path, what: str) -> Model:
    try:
        return model.model_validate(content)
    except ValidationError as error:
        raise validation_error(error, path, what) from error
