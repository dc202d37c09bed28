"""SAM's image encoder with text slots before the image tokens (section 3), and no windows.

    sequence of a block:  [ text slots | image tokens, row by row ]

Every block attends over the whole sequence: the released models drop SAM's window attention everywhere, also in the
baseline without text, and stretch each block's table of relative positions to the grid. Text slots pass through the
same norms, projections and MLP as image tokens, and have no positions.

Where the slots depend on the sentence alone (L-DIT), a block's output in them is never read. Then text takes part as
keys and values only, and `text_keys` can be kept for a sentence and used on any picture.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from segment_anything.modeling.common import LayerNorm2d, MLPBlock
from torch import Tensor, nn

from dit_sam.attention import Grid, attend, relative_positions
from dit_sam.config import DITConfig
from dit_sam.text_path import PATHS, TextPath

Trace = Callable[[int, Tensor, Tensor], None]
# Tokens at a time in an MLP on a CPU.
_TOKENS = 256


class Keys(NamedTuple):
    """A block's keys and values of the text slots, each [batch, heads, slots, d]."""

    keys: Tensor
    values: Tensor

    def expand(self, batch: int) -> Keys:
        """The same for every row of a larger batch."""
        return Keys(*(x.expand(batch, -1, -1, -1) for x in self))


class Attention(nn.Module):
    """SAM's attention with relative positions on the image part; weights under SAM's names."""

    def __init__(self, config: DITConfig, span: int) -> None:
        super().__init__()
        self.heads = config.heads
        self.qkv = nn.Linear(config.width, 3 * config.width)
        self.proj = nn.Linear(config.width, config.width)
        self.rel_pos_h = nn.Parameter(torch.zeros(2 * span - 1, config.width // config.heads))
        self.rel_pos_w = nn.Parameter(torch.zeros(2 * span - 1, config.width // config.heads))

    def split(self, x: Tensor, parts: int) -> tuple[Tensor, ...]:
        """The last `parts` of query, key and value of normed tokens, each [batch, heads, tokens, d]."""
        skip = (3 - parts) * x.shape[-1]
        projected = F.linear(x, self.qkv.weight[skip:], self.qkv.bias[skip:])
        return projected.unflatten(-1, (parts, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)

    def forward(self, x: Tensor, text: Keys | None, grid: Grid, slots: int) -> Tensor:
        """Attention of normed tokens.

        Args:
            x: [batch, slots + h w, width], or image tokens alone when `text` is given.
            text: keys and values of slots whose own output is not read.
            slots: text tokens at the front of `x`.
        """
        queries, keys, values = self.split(x, 3)
        rel_h = relative_positions(self.rel_pos_h, grid[0])
        rel_w = relative_positions(self.rel_pos_w, grid[1])
        mixed = attend(queries, keys, values, rel_h, rel_w, grid, slots > 0, text)
        return self.proj(mixed.transpose(1, 2).flatten(2))


class Block(nn.Module):
    """x + attention(norm1 x), then x + mlp(norm2 x)."""

    def __init__(self, config: DITConfig, span: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.width, eps=1e-6)
        self.attn = Attention(config, span)
        self.norm2 = nn.LayerNorm(config.width, eps=1e-6)
        self.mlp = MLPBlock(config.width, int(config.width * config.mlp_ratio))

    def text_keys(self, slots: Tensor) -> Keys:
        """What text slots [batch, slots, width] are to the other tokens of this block."""
        return Keys(*self.attn.split(self.norm1(slots), 2))

    def forward(self, x: Tensor, grid: Grid, text: Keys | None = None, slots: int = 0) -> Tensor:
        """The tokens after the block; arguments as those of `Attention.forward`."""
        x = x + self.attn(self.norm1(x), text, grid, slots)
        if x.device.type != "cpu" or torch.is_grad_enabled():
            return x + self.mlp(self.norm2(x))
        # The hidden layer is four times as wide as the sequence: a few tokens at a time keep it small, at equal speed.
        for row in x:
            for some in row.split(_TOKENS):
                some += self.mlp(self.norm2(some))
        return x


class ImageEncoder(nn.Module):
    """SAM's ViT, its neck, and the text's way into it.

    Weights have SAM's names; those of the text's way stand below `text_path`.
    """

    def __init__(self, config: DITConfig) -> None:
        super().__init__()
        self.config = config
        native = config.native_size // config.patch_size
        self.patch_embed = nn.ModuleDict(
            {"proj": nn.Conv2d(3, config.width, config.patch_size, stride=config.patch_size)}
        )
        self.pos_embed = nn.Parameter(torch.zeros(1, native, native, config.width))
        spans = [native if i in config.global_blocks else config.window_size or native for i in range(config.depth)]
        self.blocks = nn.ModuleList(Block(config, span) for span in spans)
        out = config.prompt_width
        self.neck = nn.Sequential(
            nn.Conv2d(config.width, out, 1, bias=False),
            LayerNorm2d(out),
            nn.Conv2d(out, out, 3, padding=1, bias=False),
            LayerNorm2d(out),
        )
        path = PATHS.get(config.variant)
        self.text_path: TextPath | None = None if path is None else path(config)

    def layers(self) -> list[Block]:
        """The blocks in their order."""
        return [block for block in self.blocks if isinstance(block, Block)]

    def enter(self, layer: int, text: Tensor, left: Tensor | None, image: Tensor) -> Tensor:
        """What block `layer` finds in its text slots: see `TextPath.enter`; not of the variant `default`."""
        assert self.text_path is not None
        return self.text_path.enter(layer, text, left, image)

    def patches(self, image: Tensor) -> Tensor:
        """Patch embedding plus position: [batch, 3, H, W] -> [batch, h, w, width]. The same for every sentence."""
        x = self.patch_embed["proj"](image).permute(0, 2, 3, 1)
        positions: Tensor = self.pos_embed
        if positions.shape[1:3] != x.shape[1:3]:
            resized = F.interpolate(
                positions.float().permute(0, 3, 1, 2), size=x.shape[1:3], mode="bicubic", align_corners=False
            )
            positions = resized.permute(0, 2, 3, 1).to(positions.dtype)
        return x + positions

    def text_keys(self, text: Tensor) -> list[Keys]:
        """Keys and values of a sentence for every block, where they depend on the sentence alone.

        Args:
            text: y, [batch, slots, text width].
        """
        return [block.text_keys(self.enter(i, text, None, text)) for i, block in enumerate(self.layers())]

    def forward(self, image: Tensor, text: Tensor | None = None) -> Tensor:
        """Encode pictures [batch, 3, H, W] under their sentences: see `encode`."""
        return self.encode(self.patches(image), text)

    def encode(
        self,
        patches: Tensor,
        text: Tensor | None = None,
        keys: Sequence[Keys] | None = None,
        trace: Trace | None = None,
    ) -> Tensor:
        """All blocks and the neck.

        Args:
            patches: of `patches`, [batch, h, w, width].
            text: y, [batch, slots, text width]; not read by the variant `default`.
            keys: of `text_keys`, in place of `text`.
            trace: called as trace(block, text slots that enter it, whole sequence that leaves it); then the text's
                outputs are computed in every variant.

        Returns:
            [batch, prompt width, h, w]
        """
        grid = (patches.shape[1], patches.shape[2])
        x = patches.flatten(1, 2)  # [batch, h w, width]
        if self.config.variant == "default":
            x = self._without_text(x, grid, trace)
        elif trace is None and self.config.text_alone:
            if keys is None:
                assert text is not None
                keys = self.text_keys(text)
            x = self._beside_text(x, keys, grid)
        else:
            assert text is not None
            x = self._with_text(x, text, grid, trace)
        return self._neck(x.transpose(1, 2).unflatten(2, grid))

    def _without_text(self, x: Tensor, grid: Grid, trace: Trace | None) -> Tensor:
        for i, block in enumerate(self.layers()):
            x = block(x, grid)
            if trace is not None:
                trace(i, x[:, :0], x)
        return x

    def _beside_text(self, x: Tensor, keys: Sequence[Keys], grid: Grid) -> Tensor:
        """Text as keys and values only: its own outputs would not be read."""
        for block, text in zip(self.layers(), keys, strict=True):
            x = block(x, grid, text=text.expand(len(x)))
        return x

    def _with_text(self, x: Tensor, text: Tensor, grid: Grid, trace: Trace | None) -> Tensor:
        """Text as full tokens; after the last block, too, only where someone looks."""
        left, slots = None, text.shape[1]
        for i, block in enumerate(self.layers()):
            entering = self.enter(i, text, left, x)
            if trace is None and i + 1 == len(self.blocks):
                return block(x, grid, text=block.text_keys(entering))
            both = block(torch.cat([entering, x], dim=1), grid, slots=slots)
            if trace is not None:
                trace(i, entering, both)
            left, x = both[:, :slots], both[:, slots:]
        return x

    def _neck(self, x: Tensor) -> Tensor:
        """The neck computes in the precision of its weights, also under autocast: in half precision it overflows."""
        with torch.autocast(x.device.type, enabled=False):
            return self.neck(x.to(next(self.neck.parameters()).dtype))
