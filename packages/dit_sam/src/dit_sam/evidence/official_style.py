"""The released way through a block, as the baseline of `bench`: it makes the map of all pairs, text queries too.

Written from the formulas of `dit_sam.attention`; it computes the same numbers from the same weights.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dit_sam.attention import Grid, position_scores, relative_positions
from dit_sam.image_encoder import Block, ImageEncoder


def released_block(block: Block, x: Tensor, grid: Grid, slots: int) -> Tensor:
    """A block on [batch, slots + h w, width], every token a query, by the map [batch, heads, tokens, tokens]."""
    attention = block.attn
    queries, keys, values = attention.split(block.norm1(x), 3)
    scores = (queries @ keys.mT) * queries.shape[-1] ** -0.5
    rel_h = relative_positions(attention.rel_pos_h, grid[0])
    rel_w = relative_positions(attention.rel_pos_w, grid[1])
    rows, columns = position_scores(queries[:, :, slots:], rel_h, rel_w, grid)
    bias = rows[..., :, None] + columns[..., None, :]  # [batch, heads, h, w, h, w]
    scores[:, :, slots:, slots:] = scores[:, :, slots:, slots:] + bias.flatten(4, 5).flatten(2, 3)
    mixed = (scores.softmax(-1) @ values).transpose(1, 2).flatten(2)
    x = x + attention.proj(mixed)
    return x + block.mlp(block.norm2(x))


def released_encoder(encoder: ImageEncoder, patches: Tensor, text: Tensor) -> Tensor:
    """All blocks and the neck in the released way, for variants whose slots depend on the sentence alone."""
    grid = (patches.shape[1], patches.shape[2])
    x = patches.flatten(1, 2)
    for i, block in enumerate(encoder.layers()):
        slots = encoder.enter(i, text, None, x)
        x = released_block(block, torch.cat([slots, x], dim=1), grid, slots.shape[1])[:, slots.shape[1] :]
    return encoder._neck(x.transpose(1, 2).unflatten(2, grid))
