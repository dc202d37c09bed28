"""Tiny official releases: config, sharded weights under official names, tokenizer."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

GOLDENS = Path(__file__).parent / "goldens"
OFFICIAL_KEYS = json.loads((GOLDENS / "official_keys.json").read_text())
VIT = "model.vision_tower.fast_vision_tower.vision_tower.vision_model."
CONVNEXT = "model.vision_tower.slow_vision_tower.vision_tower."
ADAPTERS = "model.vision_tower.align_stages_latent."
WORDS = 420  # pieces of the tokenizer in the golden data

# As the official code writes it, with the fields that have no effect.
CONFIG = {
    "_name_or_path": "vicuna-7b-v1.5",
    "architectures": ["LlavaLlamaForCausalLM"],
    "model_type": "llava",
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "vocab_size": WORDS,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 4096,
    "max_sequence_length": 4096,
    "hidden_act": "silu",
    "initializer_range": 0.02,
    "rms_norm_eps": 1e-05,
    "rope_scaling": None,
    "rope_theta": 10000.0,
    "pretraining_tp": 1,
    "tie_word_embeddings": False,
    "torch_dtype": "float16",
    "transformers_version": "4.31.0",
    "use_cache": True,
    "mm_vision_tower": "vision_tower",
    "vision_tower_slow": "convnext_large_mlp.clip_laion2b_ft_320",
    "is_multipath_encoder": True,
    "freeze_vision": False,
    "input_image_size": 384,
    "image_aspect_ratio": "pad",
    "image_grid_pinpoints": None,
    "mm_projector_type": "mlp2x_gelu",
    "mm_hidden_size": 16,
    "mm_vision_select_layer": -2,
    "mm_vision_select_feature": "patch",
    "mm_use_im_start_end": False,
    "mm_use_im_patch_token": False,
    "tune_mm_mlp_adapter": False,
    "freeze_mm_mlp_adapter": False,
    "use_mm_proj": True,
    "delay_load": False,
    "tokenizer_model_max_length": 2496,
}
TOWER = {"model_type": "clip_vision_model", "num_attention_heads": 2, "hidden_act": "quick_gelu"}
GENERATION = {"bos_token_id": 1, "eos_token_id": 2, "temperature": 0.9, "top_p": 0.6, "transformers_version": "4.31.0"}
UNUSED = {
    f"{VIT}embeddings.position_ids": (1, 577),
    f"{VIT}post_layernorm.weight": (16,),
    f"{VIT}post_layernorm.bias": (16,),
    f"{CONVNEXT}head.norm.weight": (12,),
    f"{CONVNEXT}head.norm.bias": (12,),
    f"{CONVNEXT}head.fc.weight": (5, 12),
    f"{CONVNEXT}head.fc.bias": (5,),
    "model.layers.0.self_attn.rotary_emb.inv_freq": (3,),
}


def golden_weights() -> dict[str, Tensor]:
    """The weights of the golden model, float32, by official names; a vocabulary of 60."""
    tensors = load_file(GOLDENS / "tiny_llava_hr.safetensors")
    return {name.removeprefix("weights/"): value for name, value in tensors.items() if name.startswith("weights/")}


def tiny_weights(unused: bool = True, words: int = WORDS) -> dict[str, Tensor]:
    """Random weights of the golden model's dimensions, float16, by official names, with what no computation uses."""
    generator = torch.Generator().manual_seed(0)
    shapes = {name: tuple(value.shape) for name, value in golden_weights().items() if name not in UNUSED}
    shapes |= {name: (words, 24) for name in ("model.embed_tokens.weight", "lm_head.weight")}
    shapes |= UNUSED if unused else {}
    weights = {name: (0.5 * torch.randn(shape, generator=generator)).half() for name, shape in shapes.items()}
    if unused:
        weights[f"{VIT}embeddings.position_ids"] = torch.arange(577)[None]
    return weights


def tokenizer_model() -> bytes:
    """The SentencePiece model of the golden data."""
    return bytes(load_file(GOLDENS / "conversation.safetensors")["in/tokenizer_model"].tolist())


def write_release(
    folder: Path,
    weights: dict[str, Tensor] | None = None,
    config: dict | None = None,
    *,
    pickled: bool = True,
    shards: int = 3,
    tokenizer: bool = True,
) -> Path:
    """An official folder as the training script leaves it."""
    weights = tiny_weights() if weights is None else weights
    (folder / "vision_tower").mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(CONFIG | (config or {}), indent=1))
    (folder / "generation_config.json").write_text(json.dumps(GENERATION))
    (folder / "vision_tower" / "config.json").write_text(json.dumps(TOWER))
    if tokenizer:
        (folder / "tokenizer.model").write_bytes(tokenizer_model())
        settings = {
            "tokenizer_class": "LlamaTokenizer",
            "legacy": False,
            "padding_side": "right",
            "add_bos_token": True,
        }
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
        (folder / "special_tokens_map.json").write_text(json.dumps({"bos_token": "<s>", "unk_token": "<unk>"}))
    names = list(weights)
    stem, suffix = ("pytorch_model", "bin") if pickled else ("model", "safetensors")
    save = torch.save if pickled else save_file
    if shards == 1:
        save(weights, folder / f"{stem}.{suffix}")
        return folder
    weight_map = {}
    for number in range(shards):
        file = f"{stem}-{number + 1:05d}-of-{shards:05d}.{suffix}"
        part = names[number::shards]
        save({name: weights[name] for name in part}, folder / file)
        weight_map |= dict.fromkeys(part, file)
    index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
    (folder / f"{stem}.{suffix}.index.json").write_text(json.dumps(index))
    return folder


def read_weights(folder: Path) -> dict[str, Tensor]:
    """All safetensors of a folder."""
    return {name: value for path in sorted(folder.glob("*.safetensors")) for name, value in load_file(path).items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    """Names, types and values, bit for bit."""
    return one.keys() == other.keys() and all(
        value.dtype == other[name].dtype and torch.equal(value, other[name]) for name, value in one.items()
    )
