"""Tiny checkpoints in the official layout: official names, fp16 shards, "phi", no SigLIP folder."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from flashsloth.checkpoints import release
from flashsloth.checkpoints.keys import to_official
from flashsloth.configuration import FlashSlothConfig
from flashsloth.miniature.vocabulary import write_vocabulary
from flashsloth.modeling import FlashSlothForConditionalGeneration
from tenfold.runs import atomic_write_json
from tenfold.weights import StoredTensor, write_weights


def release_config(views: int = 1) -> FlashSlothConfig:
    """What the official code has as constants is as there; the rest is tiny."""
    text = {
        "vocab_size": 50304,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 9,
        "num_attention_heads": 4,
        "partial_rotary_factor": 0.5,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5},
        "resid_pdrop": 0.1,
        "bos_token_id": 50256,
        "eos_token_id": 50256,
    }
    vision = {
        "hidden_size": 24,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "image_size": 42,
        "patch_size": 7,
        "vision_use_head": False,
        "hidden_act": "gelu_pytorch_tanh",
    }
    return FlashSlothConfig(text_config=text, vision_config=vision, embq_width=12, views=views, dtype="float16")


def weights(config: FlashSlothConfig, seed: int = 0) -> dict[str, Tensor]:
    """Random weights under official names, float16."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = FlashSlothForConditionalGeneration(config)
    return {name: tensor.half() for name, tensor in to_official(model.state_dict()).items()}


def write_release(folder: Path, views: int = 1, shard_bytes: int = 2_000_000, stage1: bool = False) -> Path:
    """A whole release."""
    config = release_config(views)
    folder.mkdir(parents=True)
    official = release.config_to_official(config)
    if stage1:
        del official["image_hd"]
    atomic_write_json(folder / "config.json", official)
    atomic_write_json(folder / "generation_config.json", {"bos_token_id": 50256, "eos_token_id": 50256})
    write_vocabulary(folder)
    stored = {name: StoredTensor.of(tensor) for name, tensor in weights(config).items()}
    write_weights(folder, stored, shard_bytes)
    return folder
