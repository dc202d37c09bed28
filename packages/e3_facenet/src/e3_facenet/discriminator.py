"""The discriminator: StyleGAN2's with RGB skips, and two heads on the same 4 x 4 features.

One head says how real a picture is, the other how well it matches a text: its 512 numbers are projected on the text's
mapped code. Captions of other pictures are never shown to it as negatives (as released).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from e3_facenet.config import DiscriminatorConfig
from e3_facenet.generator import Mapping
from e3_facenet.layers import CLAMP, EqualConv2d, EqualLinear, downsample2d


def batch_deviation(x: Tensor, group: int) -> Tensor:
    """Append the standard deviation over groups of the batch as one channel: [B, C, H, W] -> [B, C + 1, H, W]."""
    batch, _, height, width = x.shape
    size = min(group, batch)
    y = x.view(size, batch // size, *x.shape[1:])
    deviation = ((y - y.mean(dim=0)).square().mean(dim=0) + 1e-8).sqrt().mean(dim=(1, 2, 3))  # (B / size,)
    return torch.cat([x, deviation.repeat(size)[:, None, None, None].expand(-1, 1, height, width)], dim=1)


class DiscriminatorBlock(nn.Module):
    """Halves the size: features plus those of the picture itself, two convolutions, and the picture blurred."""

    def __init__(self, d_in: int, d_out: int) -> None:
        super().__init__()
        self.fromrgb = EqualConv2d(3, d_in, activation="lrelu", clamp=CLAMP)
        self.conv0 = EqualConv2d(d_in, d_in, 3, activation="lrelu", clamp=CLAMP)
        self.conv1 = EqualConv2d(d_in, d_out, 3, down=True, activation="lrelu", clamp=CLAMP)

    def forward(self, x: Tensor | None, image: Tensor) -> tuple[Tensor, Tensor]:
        """[B, C, H, W] or None and [B, 3, H, W] -> the same at half the size."""
        seen = self.fromrgb(image)
        x = seen if x is None else x + seen
        return self.conv1(self.conv0(x)), downsample2d(image)


class Head(nn.Module):
    """4 x 4 features to numbers: to one logit, or to a vector that is projected on a text code."""

    def __init__(self, channels: int, d_out: int, group: int) -> None:
        super().__init__()
        self.group = group
        self.fromrgb = EqualConv2d(3, channels, activation="lrelu", clamp=CLAMP)
        self.conv = EqualConv2d(channels + 1, channels, 3, activation="lrelu", clamp=CLAMP)
        self.fc = EqualLinear(channels * 16, channels, activation="lrelu")
        self.out = EqualLinear(channels, d_out)

    def forward(self, x: Tensor, image: Tensor, code: Tensor | None = None) -> Tensor:
        """[B, C, 4, 4], [B, 3, 4, 4] and, for matching, [B, d_out] -> logits [B, 1]."""
        x = batch_deviation(x + self.fromrgb(image), self.group)
        y = self.out(self.fc(self.conv(x).flatten(1)))
        return y if code is None else (y * code).sum(dim=1, keepdim=True) / math.sqrt(code.shape[1])


class Discriminator(nn.Module):
    """Pictures and texts to two logits each. Buffer `alpha`: the progressive state, as the generator's."""

    alpha: Tensor

    def __init__(self, config: DiscriminatorConfig) -> None:
        super().__init__()
        self.config = config
        self.mapping = Mapping(None, config.t_dim, config.cmap_dim, config.mapping_layers)
        self.blocks = nn.ModuleDict(
            {str(r): DiscriminatorBlock(config.channels(r), config.channels(r // 2)) for r in config.blocks}
        )
        self.real = Head(config.channels(4), 1, config.group)
        self.match = Head(config.channels(4), config.cmap_dim, config.group)
        self.register_buffer("alpha", torch.ones([]))

    def forward(self, image: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of being real and of matching, [B, 1] each.

        Args:
            image: [B, 3, R, R] at the progressive state's resolution; t: [B, t_dim], not differentiated.
        """
        size, x = image.shape[-1], None
        active = [r for r in self.config.blocks if r <= size]
        if size < self.config.resolution:
            # Below the full resolution the first block adds the picture's features twice (as released).
            first = self.blocks[str(active[0])]
            assert isinstance(first, DiscriminatorBlock)
            x = first.fromrgb(image)
        for resolution in active:
            x, image = self.blocks[str(resolution)](x, image)
        assert x is not None
        return self.real(x, image), self.match(x, image, self.mapping(None, t.detach()))


def resize_real(image: Tensor, resolution: int) -> Tensor:
    """Real pictures at the progressive state's resolution, bilinear."""
    return F.interpolate(image, size=(resolution, resolution), mode="bilinear", align_corners=False)
