"""The generator: noise and text to a style code, a radiance field to a feature map, and the enhanced upsampler.

w   = mapping(z, t)                              norm2(z) + norm2(embed(t)), eight layers
x   = field(w[:10], camera)                      32 x 32, 64 channels
x   = block_r(x, w[10 + 2l : 13 + 2l] + dw_r)    r = 64, 128, 256, 512;  dw_r = enhancer_r(x, tokens)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from e3_facenet.camera import path_pixels, pixel_grid, pixel_rays
from e3_facenet.config import GeneratorConfig
from e3_facenet.enhancer import StyleEnhancer
from e3_facenet.layers import EqualLinear, UpsamplingBlock
from e3_facenet.nerf import FRESH_SAMPLES, Draws, RadianceField, Volume

W_AVG_DECAY = 0.995
MAPPING_LR = 0.01


def norm2(x: Tensor) -> Tensor:
    """Unit mean square along the last axis: [B, d]."""
    return x * (x.square().mean(dim=-1, keepdim=True) + 1e-8).rsqrt()


class Mapping(nn.Module):
    """StyleGAN2's mapping network on the SUM of normalised noise and normalised text embedding.

    Args:
        z_dim: of the noise, or None for the discriminator's (text alone, no average).
        d_out: of the code.
    """

    w_avg: Tensor

    def __init__(self, z_dim: int | None, t_dim: int, d_out: int, layers: int) -> None:
        super().__init__()
        self.embed = EqualLinear(t_dim, z_dim or t_dim)
        widths = [z_dim or t_dim] + [d_out] * layers
        self.layers = nn.ModuleList(EqualLinear(a, b, activation="lrelu", lr=MAPPING_LR) for a, b in pairwise(widths))
        if z_dim is not None:
            self.register_buffer("w_avg", torch.zeros(d_out))

    def forward(self, z: Tensor | None, t: Tensor, update_average: bool = True) -> Tensor:
        """[B, z_dim] noise and [B, t_dim] text -> [B, d_out]; in training the average follows."""
        x = norm2(self.embed(t))
        if z is not None:
            x = norm2(z) + x
        for layer in self.layers:
            x = layer(x)
        if z is not None and self.training and update_average:
            with torch.no_grad():
                self.w_avg.copy_(x.detach().mean(dim=0).lerp(self.w_avg, W_AVG_DECAY))
        return x


@dataclass(frozen=True)
class Synthesis:
    """What a pass of the generator gives.

    Attributes:
        image: [B, 3, R, R], unbounded, nominally in [-1, 1].
        rgb: [B, 3, n, n], what the field alone renders.
        volume: of the rendering; its first n^2 rays are the picture's.
        offsets: dw of each upsampling block, [B, w_dim].
        path_loss: [B, 1] of the NeRF-path regulariser, in training; else None.
    """

    image: Tensor
    rgb: Tensor
    volume: Volume
    offsets: tuple[Tensor, ...]
    path_loss: Tensor | None = None

    @property
    def points(self) -> Tensor:
        """World points at the expected depth of the picture's rays: [B, 3, n, n]."""
        n = self.rgb.shape[-1]
        return self.volume.points[:, : n * n].transpose(1, 2).unflatten(-1, (n, n))

    @property
    def depth(self) -> Tensor:
        """Expected z-depth of the picture's rays: [B, n, n]."""
        n = self.rgb.shape[-1]
        return self.volume.depth[:, : n * n].unflatten(-1, (n, n))


class Generator(nn.Module):
    """The whole generator, with its own exact dimensions and buffers.

    The buffer `alpha` is the progressive state: 1 uses all blocks; below it the last one fades in; -1 is a model whose
    state was never set, which samples rays more densely (official behaviour).
    """

    alpha: Tensor

    def __init__(self, config: GeneratorConfig) -> None:
        super().__init__()
        self.config = config
        self.mapping = Mapping(config.z_dim, config.t_dim, config.w_dim, config.mapping_layers)
        self.field = RadianceField(config)
        self.blocks = nn.ModuleDict()
        self.enhancers = nn.ModuleDict()
        for resolution in config.blocks:
            d_in, d_out = config.block_channels(resolution)
            self.blocks[str(resolution)] = UpsamplingBlock(d_in, d_out, config.w_dim)
            self.enhancers[str(resolution)] = StyleEnhancer(d_in, resolution // 2, config)
        self.register_buffer("alpha", torch.ones([]))
        # Blocks above the first run in this type outside training; field and enhancers stay in float32.
        self.block_dtype = torch.float32

    def channels_last(self) -> None:
        """Keep the enhancers' per-element affines channels last in memory, as inference reads them; values stay."""
        for enhancer in self.enhancers.values():
            assert isinstance(enhancer, StyleEnhancer)
            for parameter in enhancer.norm.parameters():
                parameter.data = parameter.data.permute(1, 2, 0).contiguous().permute(2, 0, 1)

    def use_dtype(self, dtype: torch.dtype) -> None:
        """Compute the upsampling blocks above the first in this type (bf16, fp16); weights stay in float32."""
        self.block_dtype = dtype

    def styles(
        self,
        z: Tensor,
        t: Tensor,
        psi: float = 1.0,
        cutoff: int | None = None,
        update_average: bool = True,
    ) -> Tensor:
        """Style codes [B, num_ws, w_dim] of noise [B, z_dim] and text [B, t_dim].

        Args:
            psi: truncation: w_avg + psi (w - w_avg), of the first `cutoff` codes or all.
        """
        ws = self.mapping(z, t, update_average)[:, None].repeat(1, self.config.num_ws, 1)
        if psi != 1:
            average = self.mapping.w_avg
            ws[:, :cutoff] = average + psi * (ws[:, :cutoff] - average)
        return ws

    def forward(
        self,
        ws: Tensor,
        tokens: Tensor | None,
        pose: Tensor,
        z_bg: Tensor | None,
        kept_tokens: Tensor | None = None,
        kept: float = 0.0,
        draws: Draws | None = None,
    ) -> Synthesis:
        """Render pictures.

        Args:
            ws: [P, num_ws, w_dim]; tokens: [P, T, token_dim]. None leaves style codes as they are.
            pose: [B, 4, 4] with B a multiple of P: the views of one face stand together.
            z_bg: [B, bg_dim], or None: no background.
            kept_tokens, kept: manipulation: dw = (1 - kept) SCE(x, tokens) + kept SCE(x, kept_tokens).
            draws: the random numbers of a training pass, which adds the NeRF-path rays.
        """
        c, n = self.config, self.config.nerf_resolution
        pixels = pixel_grid(c.resolution, n, ws.device)
        places = None
        # The path regulariser compares whole pictures; before the last level is reached there is none.
        blocks, fade = self._levels()
        if draws is not None:
            path, places = path_pixels(draws.uniform("path pixels", (len(pose), 2)), c.resolution, c.path_rays)
            pixels = torch.cat([pixels.expand(len(pose), -1, -1), path], dim=1)
        position, rays = pixel_rays(pixels, pose, c)
        coarse = FRESH_SAMPLES if float(self.alpha) == -1 else None
        volume = self.field(ws[:, : c.fg_ws], z_bg, position, rays, draws, places is not None, coarse)
        picture = volume.features[:, : n * n].transpose(1, 2).unflatten(-1, (n, n))
        rgb, x = picture[:, :3], picture[:, 3:].contiguous()
        views = ws[:, c.fg_ws :].repeat_interleave(len(pose) // len(ws), dim=0)
        image, before, offsets, styles = rgb, rgb, [], []
        for level, resolution in enumerate(blocks):
            block_ws = views[:, 2 * level : 2 * level + 3]
            if tokens is not None:
                dw = self.offset(resolution, x, tokens, kept_tokens, kept)
                offsets.append(dw)
                block_ws = block_ws + dw[:, None]
            styles.append(block_ws)
            if level and not self.training:
                x = x.to(self.block_dtype)
            before = image
            x, image = self.blocks[str(resolution)](x, block_ws)
        image = image.float()
        if fade is not None:
            below = F.interpolate(before.float(), size=image.shape[-2:], mode="bilinear", align_corners=False)
            image = torch.lerp(below, image, fade)
        loss = self.path_loss(volume, styles, image, places) if places is not None else None
        return Synthesis(image, rgb, volume, tuple(offsets), loss)

    def offset(
        self, resolution: int, x: Tensor, tokens: Tensor, kept_tokens: Tensor | None = None, kept: float = 0.0
    ) -> Tensor:
        """dw of one block: [B, w_dim]; of two texts, their mixture (section 3.4)."""
        enhancer = self.enhancers[str(resolution)]
        if kept_tokens is None or kept == 0:
            return enhancer(x, tokens)
        if kept == 1:
            return enhancer(x, kept_tokens)
        return (1 - kept) * enhancer(x, tokens) + kept * enhancer(x, kept_tokens)

    def _levels(self) -> tuple[Sequence[int], float | None]:
        """The blocks that take part, and how far the last one has faded in."""
        blocks, alpha = self.config.blocks, float(self.alpha)
        if alpha < 0 or alpha >= 1:
            return blocks, None
        if alpha == 0:
            return (), None
        levels = len(blocks) * alpha
        return blocks[: int(levels) + 1], levels - int(levels)

    def path_loss(self, volume: Volume, styles: Sequence[Tensor], image: Tensor, places: Tensor) -> Tensor:
        """The NeRF-path regulariser: each sample upsampled alone, then summed, against the picture; [B, 1].

        Per-sample features pass the blocks without interpolation, with the main pass's style codes; their RGB is
        summed with the samples' weights and compared at the path rays' pixels.
        """
        c, batch = self.config, len(image)
        start = c.nerf_resolution**2
        assert volume.samples is not None
        features = volume.samples[:, start:, :, 3:]  # (B, N, S, C)
        shape = features.shape[1:3]
        x = features.permute(0, 3, 1, 2)
        rgb = volume.samples[:, start:, :, :3].permute(0, 3, 1, 2)
        for resolution, ws in zip(c.blocks, styles, strict=False):
            x, rgb = self.blocks[str(resolution)](x.contiguous(), ws, skip_up=True)
        weights = volume.weights[:, start:]
        if volume.bg_weights is not None:
            weights = torch.cat([weights, volume.bg_weights[:, start:] * volume.light[:, start:, None]], dim=-1)
        summed = (rgb.view(batch, 3, *shape) * weights[:, None]).sum(-1)  # (B, 3, N)
        seen = image.flatten(2).gather(2, places[:, None].expand(-1, 3, -1))
        return 2 * (seen - summed).square().sum(dim=1).mean(dim=-1, keepdim=True)
