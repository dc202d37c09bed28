"""The host of a golden case: a Llama decoder with the case's weights, under a LLaVA whose vision tower is not used."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from dyvte.checkpoints.keys import host_from_official, official_gates
from dyvte.gates import Gates
from tenfold import UserError


def golden_model(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> LlavaForConditionalGeneration:
    """Built from the case's dimensions and weights under their official names; all of them are used."""
    weights = golden_weights(tensors)
    words = weights["model.embed_tokens.weight"].shape[0]
    text = LlamaConfig(
        vocab_size=words,
        hidden_size=config["hidden"],
        intermediate_size=config["ffn"],
        num_hidden_layers=config["layers"],
        num_attention_heads=config["heads"],
        num_key_value_heads=config.get("kv_heads", config["heads"]),
        rms_norm_eps=config.get("rms_norm_eps", 1e-5),
        rope_parameters={"rope_type": "default", "rope_theta": float(config.get("rope_theta", 10000))},
        max_position_embeddings=4096,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )
    vision = CLIPVisionConfig(
        hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1, image_size=4, patch_size=2
    )
    llava = LlavaConfig(text_config=text, vision_config=vision, image_token_index=words)
    model = LlavaForConditionalGeneration._from_config(llava).eval()
    named = {new: weights[old] for old, new in host_from_official(weights).items()}
    missing, unexpected = model.load_state_dict(named, strict=False)
    absent = [name for name in missing if "vision_tower" not in name and "multi_modal_projector" not in name]
    if absent or unexpected:
        raise UserError("weights that do not fit", None, f"{absent[:2]} present, {unexpected[:2]} absent")
    return model.requires_grad_(False)


def golden_gates(tensors: Mapping[str, Tensor]) -> Gates:
    """The case's gates, through the same names as an official checkpoint's."""
    config, weights = official_gates(golden_weights(tensors))
    gates = Gates(config)
    gates.load_state_dict(weights)
    return gates


def golden_weights(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix("weights/"): tensor for name, tensor in tensors.items() if name.startswith("weights/")}


def image_mask(config: Mapping[str, Any], embeds: Tensor, real: Tensor | None = None) -> Tensor:
    """Where a case's image stands, ``[batch, tokens]`` bool: after the prefix of every row, padded on either side."""
    real = torch.ones(embeds.shape[:2], dtype=torch.bool) if real is None else real.bool()
    place = real.cumsum(1) - 1  # among the row's own tokens
    return real & (place >= config["n_prefix"]) & (place < config["n_prefix"] + config["n_visual"])
