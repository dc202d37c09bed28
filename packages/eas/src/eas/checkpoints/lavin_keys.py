"""Names of LaVIN's weights: the authors' and ours, LLaMA's in Hugging Face's layout, CLIP's in both.

    layers.{i}.adapter_attn.conv_A.weight [h, d, 1]                   layers.{i}.adapter.A.weight [h, d]
    layers.{i}.replaced_adapter.expert_weights.bias                   layers.{i}.pia.router.bias
    backbone.visual.transformer.resblocks.{i}.adapter_attn.conv_B...  backbone.visual....adapter.B...
    model.layers.{i}.self_attn.q_proj.weight (HF, permuted)           layers.{i}.attention.wq.weight
    vision_model.encoder.layers.{i}.self_attn.{q,k,v}_proj (HF)       backbone.visual....attn.in_proj_weight (joined)

All other names are the same. The projector's ``conv_A`` and ``conv_B`` are plain matrices and keep theirs.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

_OFFICIAL = re.compile(r"(.*\.)(adapter_attn|replaced_adapter)\.(conv_([ABCD])|expert_weights)\.(weight|bias)")
_OURS = re.compile(r"(.*\.)(adapter|pia)\.([ABCD]|router)\.(weight|bias)")
_KINDS = {"adapter_attn": "adapter", "replaced_adapter": "pia"}
_KINDS_BACK = {ours: official for official, ours in _KINDS.items()}
PREFIX = "module."  # of what was trained under DistributedDataParallel

_LLAMA = {
    "model.embed_tokens.weight": "tok_embeddings.weight",
    "model.norm.weight": "norm.weight",
    "lm_head.weight": "output.weight",
}
_LLAMA_LAYER = {
    "self_attn.q_proj": "attention.wq",
    "self_attn.k_proj": "attention.wk",
    "self_attn.v_proj": "attention.wv",
    "self_attn.o_proj": "attention.wo",
    "mlp.gate_proj": "feed_forward.w1",
    "mlp.up_proj": "feed_forward.w3",
    "mlp.down_proj": "feed_forward.w2",
    "input_layernorm": "attention_norm",
    "post_attention_layernorm": "ffn_norm",
}
VISUAL = "backbone.visual."
_CLIP = {
    "embeddings.class_embedding": "class_embedding",
    "embeddings.position_embedding.weight": "positional_embedding",
    "embeddings.patch_embedding.weight": "conv1.weight",
    "pre_layrnorm": "ln_pre",
    "post_layernorm": "ln_post",
}
_CLIP_LAYER = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}


def from_official(name: str) -> str:
    """Our name of a weight of the authors' checkpoint."""
    match = _OFFICIAL.fullmatch(name.removeprefix(PREFIX))
    if match is None:
        return name.removeprefix(PREFIX)
    front, kind, _, letter, leaf = match.groups()
    return f"{front}{_KINDS[kind]}.{letter or 'router'}.{leaf}"


def to_official(name: str) -> str:
    """The authors' name of one of our weights, without the prefix of its training."""
    match = _OURS.fullmatch(name)
    if match is None:
        return name
    front, kind, part, leaf = match.groups()
    return f"{front}{_KINDS_BACK[kind]}.{'expert_weights' if part == 'router' else f'conv_{part}'}.{leaf}"


def official_shape(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape that one of our weights has there: low-rank matrices are convolutions with a last axis of one."""
    match = _OURS.fullmatch(name)
    return (*shape, 1) if match and match[3] != "router" and match[4] == "weight" else shape


def from_official_tensors(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict under our names."""
    return {
        from_official(name): value.squeeze(-1)
        if value.ndim == 3 and _OFFICIAL.fullmatch(name.removeprefix(PREFIX))
        else value
        for name, value in weights.items()
    }


def is_method(name: str) -> bool:
    """Whether one of our names is of what a tuning trains."""
    return _OURS.fullmatch(name) is not None or name.startswith(("adapter_proj.", "adapter_modality_embedding."))


def from_hf_llama(name: str) -> str | None:
    """Our name of a weight of LLaMA in Hugging Face's layout; None for buffers, KeyError for what is none."""
    if name in _LLAMA:
        return _LLAMA[name]
    match = re.fullmatch(r"model\.layers\.(\d+)\.(.+)\.(weight|inv_freq)", name)
    if match is None:
        raise KeyError(name)
    if match[3] == "inv_freq":
        return None
    return f"layers.{match[1]}.{_LLAMA_LAYER[match[2]]}.weight"


def unpermute(weight: Tensor, heads: int) -> Tensor:
    """Undo Hugging Face's order of the rows of query and key, which turns halves where LLaMA turns neighbours."""
    out, width = weight.shape
    return weight.view(heads, 2, out // heads // 2, width).transpose(1, 2).reshape(out, width)


def from_hf_clip(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """CLIP's vision tower from Hugging Face's layout, without its projection. Raises KeyError for what is none."""
    found: dict[str, Tensor] = {}
    joined: dict[tuple[str, str], dict[str, Tensor]] = {}
    for name, value in weights.items():
        inner = name.removeprefix("vision_model.")
        if inner == name or inner.endswith("position_ids"):
            continue  # the text part, projections, buffers
        match = re.fullmatch(r"encoder\.layers\.(\d+)\.(.+)\.(weight|bias)", inner)
        if match is None:
            stem, _, leaf = inner.rpartition(".")
            found[VISUAL + (_CLIP[inner] if inner in _CLIP else f"{_CLIP[stem]}.{leaf}")] = value
            continue
        block = f"{VISUAL}transformer.resblocks.{match[1]}."
        part = re.fullmatch(r"self_attn\.([qkv])_proj", match[2])
        if part:
            joined.setdefault((f"{block}attn.in_proj_{match[3]}", match[3]), {})[part[1]] = value
        else:
            found[f"{block}{_CLIP_LAYER[match[2]]}.{match[3]}"] = value
    for (name, _), parts in joined.items():
        found[name] = torch.cat([parts[letter] for letter in "qkv"])
    return found
