"""The five cells of a dynamic encoder layer (section 3.2); the fifth, the channel projection, is `blocks.FeedForward`.

Spatial: local (LMC), axial (AMC), global (GMC). Channel: attention (CAC), projection (CPC). Each maps
`[batch, n, d]` to `[batch, n, d]`, n = grid ** 2 in row-major order, and ends in a residual and a LayerNorm.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dtnet.blocks import AttentionBlock, FeedForward
from dtnet.config import DTNetConfig


class ResidualCell(nn.Module):
    """``LN(x + drop(cell(x)))``. The paper draws bare cells; the released code wraps each of them."""

    def __init__(self, cell: nn.Module, config: DTNetConfig) -> None:
        super().__init__()
        self.cell = cell
        self.norm = nn.LayerNorm(config.d_model)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x + self.dropout(self.cell(x)))


class GlobalCell(nn.Module):
    """GMC: self-attention of all grid cells, with the geometry bias.

    Two residuals and LayerNorms on the same x, as released.
    """

    def __init__(self, config: DTNetConfig) -> None:
        super().__init__()
        self.attention = AttentionBlock(config)
        self.norm = nn.LayerNorm(config.d_model)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """`bias`: added to the logits, `[batch or 1, heads, n, n]`."""
        return self.norm(x + self.dropout(self.attention(x, mask=bias)))


class LocalCell(nn.Module):
    """LMC: a gate from the mean map, by a re-parameterisable block of one channel in two stages.

    The output is x times (1 + gate), as released; the paper writes x times gate.
    """

    def __init__(self, config: DTNetConfig) -> None:
        super().__init__()
        self.grid = config.grid
        self.stage1 = RepStage()
        self.stage2 = RepStage()

    def forward(self, x: Tensor) -> Tensor:
        return x * (1 + self.gate(x).flatten(1).unsqueeze(-1))

    def gate(self, x: Tensor) -> Tensor:
        """`[batch, n, d]` -> one number a grid cell, in (0, 1): `[batch, 1, grid, grid]`."""
        mean_map = x.mean(dim=-1).view(-1, 1, self.grid, self.grid)
        hidden = F.relu(self.stage1(mean_map, self.stage1.identity))
        # As released, stage 1's identity again; stage 2's own is never used, but it is in the checkpoints.
        return torch.sigmoid(self.stage2(hidden, self.stage1.identity))


class RepStage(nn.Module):
    """``BN(conv1x1 z) + BN(conv3x3(BN(conv1x1 z))) + BN_identity(z)`` on maps of one channel.

    The convolution is padded with zeros after the inner BN, so that the three branches do not fuse into one kernel
    without padding by that BN's bias; with 19 parameters there is nothing to gain from fusing.
    """

    def __init__(self) -> None:
        super().__init__()
        self.point = nn.Sequential(nn.Conv2d(1, 1, 1, bias=False), nn.BatchNorm2d(1))
        self.three = nn.Sequential(
            nn.Conv2d(1, 1, 1, bias=False),
            nn.BatchNorm2d(1),
            nn.Conv2d(1, 1, 3, padding=1, bias=False),
            nn.BatchNorm2d(1),
        )
        self.identity = nn.BatchNorm2d(1)

    def forward(self, z: Tensor, identity: nn.BatchNorm2d) -> Tensor:
        return self.point(z) + self.three(z) + identity(z)


class AxialCell(nn.Module):
    """AMC: a gate from mixing along rows and along columns, with weights that all channels share."""

    def __init__(self, config: DTNetConfig) -> None:
        super().__init__()
        self.grid, d = config.grid, config.d_model
        self.rows = nn.Linear(self.grid, self.grid)
        self.columns = nn.Linear(self.grid, self.grid)
        self.fuse = nn.Linear(3 * d, d)

    def forward(self, x: Tensor) -> Tensor:
        square = x.unflatten(1, (self.grid, self.grid))  # [batch, row, column, d]
        over_rows = self.rows(square.transpose(1, 3)).transpose(1, 3)
        over_columns = self.columns(square.transpose(2, 3)).transpose(2, 3)
        gate = torch.sigmoid(self.fuse(torch.cat((over_rows, over_columns, square), dim=-1)))
        return x * gate.flatten(1, 2)


class ChannelAttention(nn.Module):
    """CAC: squeeze and excitation; one factor in (0, 1) a channel."""

    def __init__(self, config: DTNetConfig) -> None:
        super().__init__()
        d = config.d_model
        self.squeeze = nn.Linear(d, d // config.se_reduction, bias=False)
        self.excite = nn.Linear(d // config.se_reduction, d, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate = torch.sigmoid(self.excite(F.relu(self.squeeze(x.mean(dim=1)))))  # [batch, d]
        return x * gate.unsqueeze(1)


def build_cell(name: str, config: DTNetConfig) -> nn.Module:
    """The cell of that name, with its residual and LayerNorm."""
    if name == "gmc":
        return GlobalCell(config)
    if name == "cpc":
        return FeedForward(config)
    return ResidualCell({"lmc": LocalCell, "amc": AxialCell, "cac": ChannelAttention}[name](config), config)
