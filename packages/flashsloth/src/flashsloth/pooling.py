"""Spatial Attention Pooling, SAP (Tong et al., CVPR 2025, arXiv 2412.04317): 729 patches become 81 visual tokens.

Each p x p block of the vision tower's patches becomes one weighted mean of itself. The weights come from a small MLP
on every patch alone: what stands out in the image, whatever is asked about it.

    pool = SpatialAttentionPooling(width=1152, pool=3)
    visual = pool(patches)  # [views, 729, 1152] -> [views, 81, 1152]

Because the MLP looks at one patch at a time, all scores come from one product (the official code walks over 81 blocks).
Sections in comments are those that this package was specified by.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.activations import ACT2FN

from tenfold import UserError


class SpatialAttentionPooling(nn.Module):
    """Softmax-weighted means over p x p blocks of a square grid (section 3.2).

    Args:
        width: of the patches, dv.
        pool: side p of a block.
        dropout: between ReLU and the last layer, in training.
    """

    def __init__(self, width: int, pool: int = 3, dropout: float = 0.1) -> None:
        super().__init__()
        self.pool = pool
        # Layer 0 and 3 hold weights, as in the official checkpoints.
        self.mlp = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Dropout(dropout), nn.Linear(width, 1))
        layer: Any
        for layer in (self.mlp[0], self.mlp[3]):
            layer.init_rule = "default"

    def forward(self, patches: Tensor) -> Tensor:
        """``[views, side^2, dv] -> [views, ceil(side / p)^2, dv]``, blocks row by row."""
        alpha = self.weights(patches)  # [views, blocks, p*p]
        blocks = into_blocks(patches, self.pool)  # [views, blocks, p*p, dv]
        return (alpha.to(patches.dtype).unsqueeze(2) @ blocks).squeeze(2)

    def weights(self, patches: Tensor) -> Tensor:
        """The weight of each patch in its block: ``[views, side^2, dv] -> [views, blocks, p*p]``, float32.

        ``s_i = w2^T ReLU(W1 r_i + b1) + b2``, then a softmax over the block. Places beyond the grid's edge, where its
        side is no multiple of p, weigh nothing.
        """
        scores = self.mlp(patches).float()  # [views, side^2, 1]
        return into_blocks(scores, self.pool, fill=-math.inf).squeeze(-1).softmax(dim=-1)


class Projector(nn.Module):
    """``Linear(dv -> d), GELU, Linear(d -> d)``, behind the pooling (section 3.2, the official mlp2x_gelu)."""

    def __init__(self, vision: int, width: int, act: str = "gelu") -> None:
        super().__init__()
        self.linear_1 = nn.Linear(vision, width)
        self.act = ACT2FN[act]
        self.linear_2 = nn.Linear(width, width)
        layer: Any
        for layer in (self.linear_1, self.linear_2):
            layer.init_rule = "default"

    def forward(self, pooled: Tensor) -> Tensor:
        """``[images, Nv, dv] -> [images, Nv, d]``."""
        return self.linear_2(self.act(self.linear_1(pooled)))


def average_pooling(patches: Tensor, pool: int = 3) -> Tensor:
    """The plain mean of every block, SAP's baseline: ``[views, side^2, dv] -> [views, ceil(side / p)^2, dv]``."""
    inside = into_blocks(torch.ones_like(patches[..., :1]), pool)  # 0 beyond the edge
    return into_blocks(patches, pool).sum(dim=2) / inside.sum(dim=2)


def into_blocks(values: Tensor, pool: int, fill: float = 0.0) -> Tensor:
    """Cut a square grid into blocks, row by row, and row by row inside a block.

    Args:
        values: ``[views, side^2, width]``.
        pool: side p of a block.
        fill: stands beyond the edge where p does not divide the side.

    Returns:
        ``[views, ceil(side / p)^2, p*p, width]``.

    Raises:
        UserError: patches that are no square.
    """
    views, patches, width = values.shape
    side = math.isqrt(patches)
    if side * side != patches:
        raise UserError(f"{patches} patches are no square", "SAP", "a square number of patches")
    grid = values.view(views, side, side, width)
    blocks = -(-side // pool)
    if missing := blocks * pool - side:
        grid = F.pad(grid, (0, 0, 0, missing, 0, missing), value=fill)
    cut = grid.view(views, blocks, pool, blocks, pool, width).transpose(2, 3)  # [views, blocks, blocks, p, p, width]
    return cut.reshape(views, blocks * blocks, pool * pool, width)
