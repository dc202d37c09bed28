"""The Spatial-Channel Joint Router (SCJR, section 3.3): from a layer's input to one weight a cell and image."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from dtnet.config import DTNetConfig


class Paths(NamedTuple):
    """The weights of the cells, which sum to 1 over each layer's spatial and over its channel cells.

    Attributes:
        spatial: `[batch, layers, 3]`, the cells in the order of `DTNetConfig.spatial_cells`: local, axial, global.
        channel: `[batch, layers, 2]`, in the order of `DTNetConfig.channel_cells`: attention, projection.
    """

    spatial: Tensor
    channel: Tensor


class Router(nn.Module):
    """Pools x once over positions and once over channels, and gives the softmax weights of `paths` cells.

    Both branches and a joint head are the paper's; a variant has one branch, whose output goes to the softmax.

    Args:
        config: sizes, reductions and `routing`.
        paths: how many cells there are to weigh, P.
    """

    def __init__(self, config: DTNetConfig, paths: int) -> None:
        super().__init__()
        self.routing = config.routing
        n, d = config.positions, config.d_model
        over_positions, over_channels = config.router_reductions
        if self.routing != "channel":
            self.spatial_branch = _two_layers(n, n // over_positions, paths)
        if self.routing != "spatial":
            self.channel_branch = _two_layers(d, d // over_channels, paths)
        if self.routing == "joint":
            self.joint = _two_layers(2 * paths, paths, paths)

    @property
    def last_layers(self) -> nn.Sequential:
        """The two layers whose output goes to the softmax, with their ReLU between."""
        return self.joint if self.routing == "joint" else getattr(self, f"{self.routing}_branch")

    def forward(self, x: Tensor) -> Tensor:
        """`[batch, n, d]` -> `[batch, paths]`, positive, sum 1."""
        if self.routing == "spatial":
            logits = self.spatial_logits(x)
        elif self.routing == "channel":
            logits = self.channel_logits(x)
        else:
            logits = self.joint(torch.cat((self.channel_logits(x), self.spatial_logits(x)), dim=-1))
        return logits.softmax(dim=-1)

    def channel_logits(self, x: Tensor) -> Tensor:
        """From the mean over positions: `[batch, paths]`."""
        return self.channel_branch(x.mean(dim=1))

    def spatial_logits(self, x: Tensor) -> Tensor:
        """From the mean over channels: `[batch, paths]`. Of a LayerNorm without gain that mean is 0: no signal."""
        return self.spatial_branch(x.mean(dim=2))


def _two_layers(width: int, hidden: int, paths: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, paths))


class UniformRouter(nn.Module):
    """The same weight for every cell: the variant without routing, and what is left with one cell."""

    def __init__(self, paths: int) -> None:
        super().__init__()
        self.paths = paths

    def forward(self, x: Tensor) -> Tensor:
        return x.new_full((len(x), self.paths), 1 / self.paths)


def build_router(config: DTNetConfig, paths: int) -> nn.Module:
    """The router that `config.routing` names; with one cell there is nothing to weigh."""
    if config.routing == "uniform" or paths == 1:
        return UniformRouter(paths)
    return Router(config, paths)


def harden(weights: Tensor, hard: str | float) -> Tensor:
    """Drop cells of little weight; not in the paper, whose routing is soft.

    Args:
        weights: `[batch, paths]`.
        hard: "top1", or the least weight of a cell that is kept. The cell with the most is always kept.

    Returns:
        Weights that sum to 1, 0 where a cell is dropped.
    """
    most = torch.zeros_like(weights, dtype=torch.bool).scatter(1, weights.argmax(dim=1, keepdim=True), True)
    kept = weights * (most if hard == "top1" else most | (weights >= float(hard)))
    return kept / kept.sum(dim=1, keepdim=True)
