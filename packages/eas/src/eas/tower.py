"""The vision tower of CLIP under the names of OpenAI's release, for the two hosts that were built on it.

METER takes all tokens behind one block less than was trained; LaVIN takes the class token behind every fourth block,
and puts an adapter before each attention. Both are the same transformer.

    class_embedding, positional_embedding, conv1, ln_pre, ln_post
    transformer.resblocks.{i}.{ln_1, attn.in_proj_weight, attn.out_proj, ln_2, mlp.c_fc, mlp.c_proj}
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from eas.adapters import Adapter
from eas.folding import Folded, affine, fold
from tenfold import UserError


class Attention(nn.Module):
    """Self-attention with one matrix for query, key and value."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.in_proj_weight = nn.Parameter(torch.zeros(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)

    def forward(self, tokens: Tensor, folded: Folded | None = None) -> Tensor:
        """``[batch, tokens, width]``, every token attends to all; `folded` stands for the one matrix."""
        batch, length, width = tokens.shape
        weight, bias = (self.in_proj_weight, self.in_proj_bias) if folded is None else (folded.weight, folded.bias)
        joined = F.linear(tokens, weight, bias)
        query, key, value = joined.view(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(query, key, value)  # [batch, heads, tokens, width / heads]
        return self.out_proj(mixed.transpose(1, 2).reshape(batch, length, width))


class MLP(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.c_fc, self.c_proj = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        hidden = self.c_fc(tokens)
        return self.c_proj(hidden * torch.sigmoid(1.702 * hidden))


class Block(nn.Module):
    """Pre-norm attention and MLP; an adapter on the attention's input is routed by the tokens behind the first."""

    def __init__(self, width: int, heads: int, adapter: Adapter | None) -> None:
        super().__init__()
        self.ln_1, self.attn = nn.LayerNorm(width), Attention(width, heads)
        self.ln_2, self.mlp = nn.LayerNorm(width), MLP(width)
        self.adapter = adapter

    def forward(self, tokens: Tensor, *, fold_adapter: bool = False) -> Tensor:
        """``[batch, tokens, width]``; `fold_adapter`: of one picture, with the adapter in the attention's matrix."""
        normed, folded = self.ln_1(tokens), None
        if self.adapter is not None:
            router = self.adapter.route(normed[:, 1:].float().mean(1))
            if fold_adapter:
                one = affine(self.adapter, router[0])
                folded = fold(self.attn.in_proj_weight, one, bias=self.attn.in_proj_bias)
            else:
                normed = self.adapter(normed, router)
        tokens = tokens + self.attn(normed, folded)
        return tokens + self.mlp(self.ln_2(tokens))


class _Transformer(nn.Module):
    def __init__(self, blocks: list[Block]) -> None:
        super().__init__()
        self.resblocks = nn.ModuleList(blocks)


class Tower(nn.Module):
    """CLIP's vision transformer.

    Args:
        width, heads, patch: of the release; `blocks` of its layers are built.
        size: edge of the picture in pixels, a multiple of `patch`.
        adapter_rank: of an adapter in every block; 0: none.
        options: of `eas.adapters.Adapter`.
    """

    def __init__(
        self, width: int, blocks: int, heads: int, patch: int, size: int, adapter_rank: int = 0, **options: float
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, patch, stride=patch, bias=False)
        self.class_embedding = nn.Parameter(torch.zeros(width))
        self.positional_embedding = nn.Parameter(torch.zeros(side(size, patch) ** 2 + 1, width))
        self.ln_pre, self.ln_post = nn.LayerNorm(width), nn.LayerNorm(width)
        self.transformer = _Transformer(
            [
                Block(width, heads, Adapter(width, adapter_rank, **options) if adapter_rank else None)  # type: ignore[arg-type]
                for _ in range(blocks)
            ]
        )

    def embed(self, pixels: Tensor) -> Tensor:
        """``[batch, 3, size, size]`` to ``[batch, 1 + patches, width]``, normed: what the first block sees."""
        patches = self.conv1(pixels).flatten(2).transpose(1, 2)
        first = self.class_embedding.expand(len(patches), 1, -1)
        return self.ln_pre(torch.cat((first, patches), dim=1) + self.positional_embedding)

    def forward(self, pixels: Tensor) -> Tensor:
        """All tokens behind the last block, normed: ``[batch, 1 + patches, width]``."""
        tokens = self.embed(pixels)
        for block in self.transformer.resblocks:
            tokens = block(tokens)
        return self.ln_post(tokens)

    def classes(self, pixels: Tensor, every: int, *, fold: bool = False) -> Tensor:
        """The class token behind every `every`-th block, not normed: ``[batch, blocks / every, width]``.

        Args:
            fold: with the adapters in the matrices behind them: routers are a picture's own, so one at a time.
        """
        if fold and len(pixels) != 1:
            raise UserError(f"{len(pixels)} pictures", "a folded tower", "one: a fold is one picture's")
        tokens, found = self.embed(pixels), []
        for number, block in enumerate(self.transformer.resblocks, start=1):
            tokens = block(tokens, fold_adapter=fold)
            if number % every == 0:
                found.append(tokens[:, 0])
        return torch.stack(found, dim=1)


def side(size: int, patch: int) -> int:
    """Patches along an edge. Raises UserError for a picture that is no whole number of them."""
    if size < patch or size % patch:
        raise UserError(f"pictures of {size} pixels", f"patches of {patch}", "a multiple of it")
    return size // patch


def interpolate_positions(positions: Tensor, edge: int) -> Tensor:
    """Positions of another resolution, ``[1 + edge^2, width]``, bicubically from ``[1 + n^2, width]``.

    The class token's stays; a grid that fits already comes back as it is.
    """
    before = round((len(positions) - 1) ** 0.5)
    if before**2 + 1 != len(positions):
        raise UserError(f"{len(positions)} positions", "the tower", "one of the class token and a square of patches")
    if before == edge:
        return positions
    grid = positions[1:].float().view(before, before, -1).permute(2, 0, 1)[None]
    grid = F.interpolate(grid, size=(edge, edge), mode="bicubic", align_corners=False)
    grid = grid[0].permute(1, 2, 0).reshape(edge * edge, -1).to(positions.dtype)
    return torch.cat((positions[:1], grid))
