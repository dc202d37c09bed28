"""Diffusion in pixel space behind the parts of Stable Diffusion: an autoencoder whose latents are the pixels.

diffusers looks the parts of a saved pipeline up among the modules that are imported; the pipeline imports this one.
"""

from __future__ import annotations

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.autoencoders.vae import DecoderOutput, DiagonalGaussianDistribution
from diffusers.models.modeling_outputs import AutoencoderKLOutput
from torch import Tensor


class PixelAutoencoder(ModelMixin, ConfigMixin):
    """An autoencoder whose latents are the pixels, for diffusion models of pictures.

    Args:
        block_out_channels: what pipelines ask of an autoencoder; one block: no downsampling.
        scaling_factor: latents over pixels, as in Stable Diffusion's. The smaller, the more of the picture the same
            noise hides: a thing of 60 pixels at full contrast is still in plain sight where edits begin.
    """

    @register_to_config
    def __init__(self, block_out_channels: tuple[int, ...] = (3,), scaling_factor: float = 1.0) -> None:
        super().__init__()
        # Pipelines ask a model for its dtype and device.
        self.register_buffer("anchor", torch.zeros(1))

    def encode(self, pixels: Tensor) -> AutoencoderKLOutput:
        """``[images, 3, height, width]`` in [-1, 1] -> a distribution without spread."""
        moments = torch.cat([pixels, torch.full_like(pixels, -torch.inf)], 1)
        return AutoencoderKLOutput(latent_dist=_Certain(moments))

    def decode(self, latents: Tensor) -> DecoderOutput:
        """The latents themselves."""
        return DecoderOutput(sample=latents)


class _Certain(DiagonalGaussianDistribution):
    """A distribution of one value."""

    def __init__(self, moments: Tensor) -> None:
        super().__init__(moments, deterministic=True)
