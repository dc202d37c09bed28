"""The way the authors' code renders, as a baseline: views one by one, keys and values made again for each, attention
with its map, modulation, bias, activation, gain and clamp as passes of their own, the blur as a depthwise convolution.

The same function as `Generator.forward` in evaluation mode; only the order of work differs.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from e3_facenet.camera import pixel_grid, pixel_rays
from e3_facenet.enhancer import StyleEnhancer
from e3_facenet.generator import Generator
from e3_facenet.layers import CLAMP, SQRT2, SynthesisConv, ToRGB, UpsamplingBlock, blur_filter


@torch.no_grad()
def render_views(model: Generator, ws: Tensor, tokens: Tensor, pose: Tensor, z_bg: Tensor) -> Tensor:
    """Pictures [V, 3, R, R] of one face, one view after the other.

    Args:
        ws: [1, num_ws, w_dim]; tokens: [1, T, token_dim]; pose: [V, 4, 4]; z_bg: [1, bg_dim].
    """
    return torch.cat([_view(model, ws, tokens, one[None], z_bg) for one in pose])


def _view(model: Generator, ws: Tensor, tokens: Tensor, pose: Tensor, z_bg: Tensor) -> Tensor:
    config, n = model.config, model.config.nerf_resolution
    position, rays = pixel_rays(pixel_grid(config.resolution, n, ws.device), pose, config)
    volume = model.field(ws[:, : config.fg_ws], z_bg, position, rays)
    x = volume.features[:, :, 3:].transpose(1, 2).unflatten(-1, (n, n)).contiguous()
    image = x
    for level, resolution in enumerate(config.blocks):
        enhancer, block = model.enhancers[str(resolution)], model.blocks[str(resolution)]
        assert isinstance(enhancer, StyleEnhancer) and isinstance(block, UpsamplingBlock)
        first = config.fg_ws + 2 * level
        codes = ws[:, first : first + 3] + _offset(enhancer, x, tokens)[:, None]
        x = _conv(block.conv1, _conv(block.conv0, x, codes[:, 0]), codes[:, 1])
        image = _rgb(block.torgb, x, codes[:, 2])
    return image


def _offset(enhancer: StyleEnhancer, x: Tensor, tokens: Tensor) -> Tensor:
    _, _, height, width = x.shape
    shape = (enhancer.heads, enhancer.head_dim)
    q = enhancer.to_q(enhancer.norm(x).flatten(2).transpose(1, 2)).unflatten(-1, shape).transpose(1, 2)
    k, v = (part(tokens).unflatten(-1, shape).transpose(1, 2) for part in (enhancer.to_k, enhancer.to_v))
    share = (q @ k.transpose(2, 3) * enhancer.head_dim**-0.5).softmax(-1).clone()
    read = (share @ v).transpose(1, 2).flatten(2)
    fused = x + enhancer.to_out(read).transpose(1, 2).unflatten(-1, (height, width))
    return enhancer.offset(enhancer.squeeze(fused).flatten(1))


def _conv(layer: SynthesisConv, x: Tensor, w: Tensor) -> Tensor:
    x = x * layer.w_avg.rsqrt()
    weight = layer.weight * layer.affine(w)[:, None, :, None, None]
    weight = weight * (weight.square().sum(dim=(2, 3, 4), keepdim=True) + 1e-8).rsqrt()
    x = F.conv2d(x, weight[0])
    if layer.adapter is not None:
        up = F.pixel_shuffle(layer.adapter(x), 2)
        x = F.interpolate(x, scale_factor=2, mode="nearest") + up
        kernel = blur_filter(x)[None, None].expand(x.shape[1], 1, 4, 4)
        x = F.conv2d(F.pad(x, (2, 1, 2, 1)), kernel, groups=x.shape[1])
    x = x + layer.bias[:, None, None]
    x = F.leaky_relu(x, 0.2)
    return (x * SQRT2).clamp(-CLAMP, CLAMP)


def _rgb(layer: ToRGB, x: Tensor, w: Tensor) -> Tensor:
    weight = layer.weight * (layer.affine(w) * layer.style_gain)[:, None, :, None, None]
    return (F.conv2d(x, weight[0]) + layer.bias[:, None, None]).clamp(-CLAMP, CLAMP)
