"""The encoder (sections 3.1 and 3.2): grid features, two positional codes, and dynamic layers."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dtnet.cells import GlobalCell, build_cell
from dtnet.config import DTNetConfig
from dtnet.router import Paths, build_router, harden

GEOMETRY_WIDTH = 64


def sinusoid(positions: Tensor, width: int) -> Tensor:
    """``P(p)[2i] = sin(p 10000^(-2i/width)), P(p)[2i+1] = cos(...)``: `[positions]` -> `[positions, width]`."""
    angles = positions.float()[:, None] * 10000.0 ** (-torch.arange(0, width, 2).float() / width)
    return torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(1)


def grid_code(grid: int, width: int) -> Tensor:
    """P(row) + P(column) of every cell, row-major: `[grid ** 2, width]`. The same for (r, c) and (c, r)."""
    line = sinusoid(torch.arange(grid), width)
    return (line[:, None] + line[None]).flatten(0, 1)


def geometry_embedding(grid: int) -> Tensor:
    """How far apart two grid cells are, as sines and cosines: `[n, n, 64]`.

    Of the four log-ratios of two boxes, those of widths and heights are 0, as all boxes are equal: entries 16 to 31 are
    0 and 48 to 63 are 1. The distances know no sign, so that attention cannot tell left from right.
    """
    row, column = torch.meshgrid(torch.arange(grid), torch.arange(grid), indexing="ij")
    apart = torch.stack([(part.flatten()[:, None] - part.flatten()).abs() for part in (row, column)], dim=-1)
    # A cell of width 1 counts as a box of 2.
    ratios = (apart / 2).clamp(min=1e-3).log()  # [n, n, 2]
    ratios = torch.cat((ratios, torch.zeros_like(ratios)), dim=-1)  # [n, n, 4]
    waves = 1000.0 ** (-torch.arange(8).float() / 8)
    angles = (100 * ratios[..., None] * waves).flatten(2)  # [n, n, 32]
    return torch.cat((angles.sin(), angles.cos()), dim=-1)


class EncoderLayer(nn.Module):
    """The two routing spaces: a weighted sum of spatial cells, then one of channel cells."""

    def __init__(self, config: DTNetConfig) -> None:
        super().__init__()
        self.spatial = nn.ModuleDict({name: build_cell(name, config) for name in config.spatial_cells})
        self.channel = nn.ModuleDict({name: build_cell(name, config) for name in config.channel_cells})
        self.spatial_router = build_router(config, len(self.spatial))
        self.channel_router = build_router(config, len(self.channel))
        self.spatial_norm = nn.LayerNorm(config.d_model)
        self.channel_norm = nn.LayerNorm(config.d_model)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self,
        x: Tensor,
        bias: Tensor | None,
        given: tuple[Tensor, Tensor] | None = None,
        hard: str | float | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """
        Args:
            x: `[batch, n, d]`.
            bias: for the attention's logits, `[batch or 1, heads, n, n]`.
            given: weights that replace the routers' (spatial `[batch, 3]`, channel `[batch, 2]`).
            hard: None, or how cells are dropped (`router.harden`).

        Returns:
            The output, and the weights that were used.
        """
        alpha = self.spatial_router(x) if given is None else given[0]
        if hard is not None:
            alpha = harden(alpha, hard)
        mix = soft_mix if hard is None else hard_mix
        s = self.spatial_norm(x + self.dropout(mix(self.spatial.values(), x, alpha, bias)))
        beta = self.channel_router(s) if given is None else given[1]
        if hard is not None:
            beta = harden(beta, hard)
        output = self.channel_norm(s + self.dropout(mix(self.channel.values(), s, beta, bias)))
        return output, alpha, beta


def soft_mix(cells: Iterable[nn.Module], x: Tensor, weights: Tensor, bias: Tensor | None) -> Tensor:
    """``sum over cells of weight * cell(x)``: every cell is computed for every image, as in the paper."""
    mixed = torch.zeros_like(x)
    for cell, weight in zip(cells, weights.unbind(dim=1), strict=True):
        mixed = mixed + weight[:, None, None] * _apply(cell, x, bias)
    return mixed


def hard_mix(cells: Iterable[nn.Module], x: Tensor, weights: Tensor, bias: Tensor | None) -> Tensor:
    """`soft_mix` that computes a cell only for the images in which its weight is not 0."""
    mixed = torch.zeros_like(x)
    for cell, weight in zip(cells, weights.unbind(dim=1), strict=True):
        images = weight.nonzero()[:, 0]
        if len(images):
            own = bias if bias is None or len(bias) == 1 else bias[images]
            mixed = mixed.index_add(0, images, weight[images, None, None] * _apply(cell, x[images], own))
    return mixed


def _apply(cell: nn.Module, x: Tensor, bias: Tensor | None) -> Tensor:
    return cell(x, bias) if isinstance(cell, GlobalCell) else cell(x)


class Encoder(nn.Module):
    """Features `[batch, n, d_in]` to memory `[batch, n, d_model]`."""

    grid_code: Tensor
    geometry_embedding: Tensor

    def __init__(self, config: DTNetConfig) -> None:
        super().__init__()
        self.fc = nn.Linear(config.d_in, config.d_model)
        self.norm = nn.LayerNorm(config.d_model)
        self.dropout = nn.Dropout(config.dropout)
        self.geometry = nn.ModuleList()  # one Linear(64 -> 1) a head; only the global cell uses them
        if "gmc" in config.cells:
            self.geometry.extend(nn.Linear(GEOMETRY_WIDTH, 1) for _ in range(config.heads))
        self.layers = nn.ModuleList(EncoderLayer(config) for _ in range(config.encoder_layers))
        self.register_buffer("grid_code", grid_code(config.grid, config.d_in), persistent=False)
        self.register_buffer("geometry_embedding", geometry_embedding(config.grid), persistent=False)

    def forward(
        self,
        features: Tensor,
        padding: Tensor | None = None,
        given: Paths | None = None,
        hard: str | float | None = None,
    ) -> tuple[Tensor, Paths]:
        """
        Args:
            features: `[batch, n, d_in]`.
            padding: `[batch, n]` bool, True where there is no feature. The official code never masks: it looks for zero
                rows after the positional code was added.
            given: weights instead of the routers' `[batch, layers, cells]`.
            hard: as for `EncoderLayer`.

        Returns:
            The memory, and the weights of every layer.
        """
        x = self.norm(self.dropout(F.relu(self.fc(features + self.grid_code))))  # [batch, n, d]
        if padding is not None:
            x = x.masked_fill(padding[..., None], 0)
        bias = self.geometry_bias(padding) if self.geometry else None
        spatial, channel = [], []
        for number, layer in enumerate(self.layers):
            own = None if given is None else (given.spatial[:, number], given.channel[:, number])
            x, alpha, beta = layer(x, bias, own, hard)
            spatial.append(alpha)
            channel.append(beta)
        return x, Paths(torch.stack(spatial, dim=1), torch.stack(channel, dim=1))

    def geometry_bias(self, padding: Tensor | None = None) -> Tensor:
        """``ln(max(relu(Linear_h(embedding)), 1e-6))``, -inf where a key is padding: `[batch or 1, heads, n, n]`.

        Once a forward pass: the layers share it, and it does not depend on the image.
        """
        bias = self.geometry_gate().clamp(min=1e-6).log()[None]
        return bias if padding is None else bias.masked_fill(padding[:, None, None], float("-inf"))

    def geometry_gate(self) -> Tensor:
        """``relu(Linear_h(embedding))``: `[heads, n, n]`."""
        heads = [cast(nn.Linear, head) for head in self.geometry]
        weight = torch.cat([head.weight for head in heads])  # [heads, 64]
        offset = torch.cat([head.bias for head in heads])
        return F.relu(F.linear(self.geometry_embedding, weight, offset)).permute(2, 0, 1)


@dataclass(frozen=True)
class Encoded:
    """What the encoder makes of a batch of images.

    Attributes:
        memory: the encoder's output `[batch, n, d_model]`.
        mask: `[batch, 1, 1, n]` bool, True where the decoder may look; None: everywhere.
        paths: the weights of the cells in every layer.
    """

    memory: Tensor
    mask: Tensor | None
    paths: Paths
