"""Two ways to run the vision tower faster, measured by `llava-hr bench` and used nowhere else.

Both give what `LlavaHrVisionTower.forward` gives. They would have to save a twentieth of the vision pass to be worth
their lines in the method's file.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from llava_hr.vision import LlavaHrVisionTower, to_grid


def overlapped(tower: LlavaHrVisionTower, pixel_values: Tensor) -> Tensor:
    """The ConvNeXt and the ViT's first quarter on two CUDA streams: they meet at the first adapter.

    Args:
        pixel_values: `[images, 3, R, R]`; on the CPU one pathway runs after the other.

    Returns:
        `[images, N, d]`.
    """
    side: AbstractContextManager[object] = nullcontext()
    stream = None
    if pixel_values.is_cuda:
        stream, current = torch.cuda.Stream(pixel_values.device), torch.cuda.current_stream(pixel_values.device)
        stream.wait_stream(current)
        side = torch.cuda.stream(stream)
    with side:
        high = tower.high_res(pixel_values)
    tokens, grid = _embed(tower, pixel_values)
    groups = _groups(tower)
    for layer in groups[0]:
        tokens = layer(tokens, None)
    if stream is not None:
        current.wait_stream(stream)
        high.record_stream(current)
    for adapter, group in zip(tower.adapters, groups[1:], strict=True):
        tokens, _ = adapter(tokens, high, grid)
        for layer in group:
            tokens = layer(tokens, None)
    return tower.align(tokens, high, grid)


def projected_once(tower: LlavaHrVisionTower, pixel_values: Tensor) -> Tensor:
    """The high-resolution branches of all adapters in one go: all see the same H, so c -> 3c, then 3 groups of c -> d.

    Args:
        pixel_values: `[images, 3, R, R]`.

    Returns:
        `[images, N, d]`.
    """
    high = tower.high_res(pixel_values)
    tokens, grid = _embed(tower, pixel_values)
    first, last = ([getattr(adapter, name) for adapter in tower.adapters] for name in ("slow_conv", "slow_proj"))
    wide = F.conv2d(high, *_stacked(first))  # [images, adapters * c, height, width]
    narrow = F.conv2d(F.gelu(wide), *_stacked(last), groups=len(last))  # [images, adapters * d, height, width]
    branches = narrow.chunk(len(last), dim=1)
    adapters: list[Any] = list(tower.adapters)
    for number, group in enumerate(_groups(tower)):
        if number:
            adapter, s = adapters[number - 1], to_grid(branches[number - 1], grid)
            y1 = adapter.low_branch(tokens, grid)
            gate = torch.tanh(adapter.gate(torch.cat((y1.mean(dim=1), s.mean(dim=1)), dim=-1)))
            tokens = y1 + gate[:, None] * s
        for layer in group:
            tokens = layer(tokens, None)
    return tower.align(tokens, high, grid)


def _embed(tower: LlavaHrVisionTower, pixel_values: Tensor) -> tuple[Tensor, tuple[int, int]]:
    image = tower.low_res_image(pixel_values)
    low: Any = tower.config.low_res_config
    patch = low.patch_size
    return tower.vit.pre_layrnorm(tower.vit.embeddings(image)), (image.shape[2] // patch, image.shape[3] // patch)


def _groups(tower: LlavaHrVisionTower) -> list[list[torch.nn.Module]]:
    layers = list(tower.vit.encoder.layers)
    size = len(layers) // tower.config.num_groups
    return [layers[start : start + size] for start in range(0, len(layers), size)]


def _stacked(convolutions: list[torch.nn.Conv2d]) -> tuple[Tensor, Tensor | None]:
    weight, bias = (torch.cat([getattr(one, name) for one in convolutions]) for name in ("weight", "bias"))
    return weight, bias
