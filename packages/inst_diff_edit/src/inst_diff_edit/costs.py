"""What an edit costs: UNet sample-forwards, sequential calls, FLOPs (section "cost").

FLOPs are two per multiply-accumulate and include the products of attention. One UNet sample-forward is one picture (or
one half of a guided pair) through the UNet once; a sequential call is one execution of it, of however many samples.
Batching hides the first, nothing hides the second.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import CLIPTextConfig, CLIPTextModel


@dataclass(frozen=True)
class Forward:
    """FLOPs of one sample through each model of Stable Diffusion 1.4 at 512 x 512."""

    unet: int
    unet_inpainting: int
    vae_encode: int
    vae_decode: int
    text_encoder: int


@dataclass(frozen=True)
class Cost:
    """What one edited picture takes.

    Attributes:
        samples: UNet sample-forwards. calls: sequential UNet calls.
        encodes, decodes, texts: of autoencoder and text tower, in samples.
        inpainting: how many of the sample-forwards are the inpainting UNet's.
    """

    samples: int
    calls: int
    encodes: int
    decodes: int
    texts: int
    inpainting: int = 0

    def flops(self, forward: Forward) -> int:
        """FLOPs in all."""
        return (
            (self.samples - self.inpainting) * forward.unet
            + self.inpainting * forward.unet_inpainting
            + self.encodes * forward.vae_encode
            + self.decodes * forward.vae_decode
            + self.texts * forward.text_encoder
        )

    def tflops(self) -> float:
        """TFLOPs on Stable Diffusion 1.4."""
        return self.flops(sd_forward()) / 1e12


def inst_diff_edit_cost(
    num_masks: int = 3, steps: int = 50, strength: float = 0.5, final: str = "inpaint", inpaint_steps: int = 50
) -> Cost:
    """The method: guided steps from ``strength`` for every noise, then the final stage."""
    taken = int(steps * strength)
    if final == "latents":
        return Cost(2 * num_masks * taken, taken, 1, 1, 2)
    inpainting = 2 * inpaint_steps
    # The inpainting model encodes the masked picture (the picture itself is not used at full strength) and decodes.
    return Cost(2 * num_masks * taken + inpainting, taken + inpaint_steps, 2, 1, 4, inpainting)


def repository_diffedit_cost(noises: int = 10, steps: int = 50, strength: float = 0.5, inpaint_steps: int = 50) -> Cost:
    """DiffEdit as the authors' repository has it: each run also decodes its latents, for nothing."""
    taken = int(steps * strength)
    inpainting = 2 * inpaint_steps
    samples, calls = 2 * noises * 2 * taken, 2 * noises * taken
    return Cost(samples + inpainting, calls + inpaint_steps, 2, 2 * noises + 1, 4, inpainting)


def diffusers_diffedit_cost(maps: int = 10, steps: int = 50, inpaint_strength: float = 0.8) -> Cost:
    """DiffEdit as diffusers has it: one call of ``4 * maps`` rows, inversion, guided denoising."""
    taken = int(steps * inpaint_strength)
    return Cost(4 * maps + 2 * taken + 2 * taken, 1 + 2 * taken, maps + 1, 1, 4)


def sdedit_cost(steps: int = 50, strength: float = 0.5) -> Cost:
    """SDEdit: as direct decoding with one noise."""
    return inst_diff_edit_cost(1, steps, strength, "latents")


@cache
def sd_forward() -> Forward:
    """Counted on the full-size models, without weights."""
    latents = torch.zeros(1, 4, LATENT_EDGE, LATENT_EDGE, device="meta")
    nine = torch.zeros(1, INPAINT_CHANNELS, LATENT_EDGE, LATENT_EDGE, device="meta")
    first = torch.nn.Conv2d(INPAINT_CHANNELS, UNET["block_out_channels"][0], 3, padding=1, device="meta")
    context = torch.zeros(1, TEXT_POSITIONS, 768, device="meta")
    pixels = torch.zeros(1, 3, EDGE, EDGE, device="meta")
    ids = torch.zeros(1, TEXT_POSITIONS, dtype=torch.long, device="meta")
    time = torch.zeros(1, device="meta")
    plain, autoencoder, text = eager(unet()), eager(vae()), text_encoder()
    flops = count(lambda: plain(latents, time, encoder_hidden_states=context))
    return Forward(
        unet=flops,
        # The two UNets differ in what their first convolution takes.
        unet_inpainting=flops - count(lambda: plain.conv_in(latents)) + count(lambda: first(nine)),
        vae_encode=count(lambda: autoencoder.encode(pixels)),
        vae_decode=count(lambda: autoencoder.decode(latents)),
        text_encoder=count(lambda: text(ids)),
    )


def count(call: object) -> int:
    """FLOPs of a call, by torch's counter."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        call()  # type: ignore[operator]
    return counter.get_total_flops()


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


def unet(inpainting: bool = False, device: str = "meta", **changes: Any) -> Any:
    """The UNet with random (on "meta": no) weights; ``changes`` replace settings, e.g. a narrower width."""
    settings = {**UNET, "in_channels": INPAINT_CHANNELS if inpainting else 4, **changes}
    with torch.device(device):
        return UNet2DConditionModel(**settings).eval()


def vae(device: str = "meta", **changes: Any) -> Any:
    """The autoencoder, as `unet`."""
    with torch.device(device):
        return AutoencoderKL(**{**VAE, **changes}).eval()


def text_encoder(device: str = "meta", **changes: Any) -> Any:
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
