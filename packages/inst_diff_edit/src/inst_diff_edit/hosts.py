"""Stable Diffusion 1.4 at full size: what its folders hold, for counting and for checks without weights."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel

EDGE = 512
LATENT_EDGE = 64
TEXT_POSITIONS = 77
# The inpainting model's UNet also gets the mask and the masked picture's latent.
INPAINT_CHANNELS = 9

UNET: dict[str, Any] = {
    "sample_size": LATENT_EDGE,
    "in_channels": 4,
    "out_channels": 4,
    "layers_per_block": 2,
    "block_out_channels": (320, 640, 1280, 1280),
    "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    "cross_attention_dim": 768,
    "attention_head_dim": 8,
}
VAE: dict[str, Any] = {
    "in_channels": 3,
    "out_channels": 3,
    "latent_channels": 4,
    "sample_size": EDGE,
    "layers_per_block": 2,
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
}
TEXT: dict[str, Any] = {
    "vocab_size": 49408,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "max_position_embeddings": TEXT_POSITIONS,
    "hidden_act": "quick_gelu",
}


def unet(inpainting: bool = False, device: str = "meta", **changes: Any) -> UNet2DConditionModel:
    """The UNet with random (on "meta": no) weights; ``changes`` replace settings, e.g. a narrower width."""
    settings = {**UNET, "in_channels": INPAINT_CHANNELS if inpainting else 4, **changes}
    with torch.device(device):
        return UNet2DConditionModel(**settings).eval()


def vae(device: str = "meta", **changes: Any) -> AutoencoderKL:
    """The autoencoder, as `unet`."""
    with torch.device(device):
        return AutoencoderKL(**{**VAE, **changes}).eval()


def text_encoder(device: str = "meta", **changes: Any) -> CLIPTextModel:
    """The text tower, as `unet`; attention is eager, whose products every counter sees."""
    with torch.device(device):
        return CLIPTextModel(CLIPTextConfig(**{**TEXT, **changes}, attn_implementation="eager")).eval()


def eager(model: Any) -> Any:
    """Attention as plain matrix products, for counters that do not see fused kernels."""
    model.set_attn_processor(AttnProcessor())
    return model


def parameters(model: nn.Module) -> int:
    """Number of parameters."""
    return sum(parameter.numel() for parameter in model.parameters())
