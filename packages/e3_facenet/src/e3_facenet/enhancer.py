"""The Style Code Enhancer: text tokens change the style code of an upsampling block (section 3.2).

    f = x + Wo softmax(q k^T / 8) v + bo,   q = Wq LN(x),  k = Wk tokens,  v = Wv tokens
    dw = lrelu(FC(conv1x1(f)))              one channel of f survives, h x h numbers, then one offset of the style code

Because of that one channel, value and output projections fold exactly into one number for each token and head, and
where the block is narrow the query projection folds into the keys:

    conv(f) = conv(x) + sum_h sum_t softmax(n . m_ht) s_ht + const,   m_ht = Wq_h^T k_ht / 8,   s_ht = conv . Wo_h v_ht

Training runs the plain form through scaled_dot_product_attention, inference the folded one in chunks of pixels; both
are the same function (44.4 against 18.6 GFLOPs a view, see `costs`).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from e3_facenet.config import GeneratorConfig
from e3_facenet.layers import EqualLinear

# Pixels at a time of the folded form: scores of 2,048 x 616 stay in a core's cache.
CHUNK = 2048


@dataclass(frozen=True)
class FoldedText:
    """A text as one enhancer sees it, made once and shared by all views.

    Attributes:
        keys: [P, heads tokens, C] where the query projection is folded in, else [P, heads, tokens, head_dim].
        values: [P, heads, tokens].
        split: whether queries are projected head by head (the second form of keys).
    """

    keys: Tensor
    values: Tensor
    split: bool


class StyleEnhancer(nn.Module):
    """The enhancer of one upsampling block.

    Args:
        channels, size: of the block's input [B, channels, size, size]; frozen into the weights.
    """

    def __init__(self, channels: int, size: int, config: GeneratorConfig) -> None:
        super().__init__()
        inner = config.heads * config.head_dim
        self.heads, self.head_dim = config.heads, config.head_dim
        # One mean and variance for the whole map; an affine of its own for every element.
        self.norm = nn.LayerNorm([channels, size, size])
        self.to_q = nn.Linear(channels, inner, bias=False)
        self.to_k = nn.Linear(config.token_dim, inner, bias=False)
        self.to_v = nn.Linear(config.token_dim, inner, bias=False)
        self.to_out = nn.Linear(inner, channels)
        self.squeeze = nn.Conv2d(channels, 1, 1)
        self.offset = EqualLinear(size * size, config.w_dim, activation="lrelu")

    def forward(self, x: Tensor, tokens: Tensor, folded: bool | None = None) -> Tensor:
        """The offset of the style code.

        Args:
            x: [B, C, h, h] of any floating type; computed in float32.
            tokens: [P, T, token_dim] with B a multiple of P: views of one text stand together. Nothing is masked.
            folded: which form; default: folded outside training.

        Returns:
            dw [B, w_dim].
        """
        x, tokens = x.float(), tokens.float()
        if folded if folded is not None else not self.training:
            return self.folded_offset(x, self.fold(tokens))
        return self.offset(self.squeeze(self.fuse(x, tokens)).flatten(1))

    def fuse(self, x: Tensor, tokens: Tensor) -> Tensor:
        """x + Attn(LN(x), tokens) in the plain form: [B, C, h, h]."""
        batch, _, height, width = x.shape
        queries = self.to_q(self.norm(x).flatten(2).transpose(1, 2))  # (B, hh, inner)
        tokens = tokens.repeat_interleave(batch // len(tokens), dim=0)
        q, k, v = (
            part.unflatten(-1, (self.heads, self.head_dim)).transpose(1, 2)
            for part in (queries, self.to_k(tokens), self.to_v(tokens))
        )
        read = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return x + self.to_out(read).transpose(1, 2).unflatten(-1, (height, width))

    def fold(self, tokens: Tensor) -> FoldedText:
        """A text's keys and values, with what does not depend on the picture folded in: [P, T, token_dim]."""
        shape = (self.heads, self.head_dim)
        k = self.to_k(tokens).unflatten(-1, shape).transpose(1, 2) * self.head_dim**-0.5  # (P, heads, T, d)
        v = self.to_v(tokens).unflatten(-1, shape)
        read = (self.squeeze.weight.flatten(1) @ self.to_out.weight).view(shape)  # conv . Wo, (heads, d)
        values = torch.einsum("pthd,hd->pht", v, read)
        # heads T products a channel, against heads head_dim a channel and as many a token.
        inner, channels = self.heads * self.head_dim, self.to_q.in_features
        folded = self.heads * tokens.shape[1] * channels <= inner * (channels + tokens.shape[1])
        if folded:
            query = self.to_q.weight.view(*shape, channels)
            k = torch.einsum("phtd,hdc->phtc", k, query).flatten(1, 2)
        return FoldedText(k, values, split=not folded)

    def folded_offset(self, x: Tensor, text: FoldedText) -> Tensor:
        """The offset by the folded form: [B, C, h, h] -> [B, w_dim], B a multiple of the texts."""
        batch, channels = x.shape[:2]
        keys, values = (part.repeat_interleave(batch // len(text.values), dim=0) for part in (text.keys, text.values))
        text = FoldedText(keys, values, text.split)
        # One mean and deviation a picture; normalisation itself is done chunk by chunk, channels last.
        mean = x.mean(dim=(1, 2, 3))[:, None, None]
        scale = (x.var(dim=(1, 2, 3), correction=0)[:, None, None] + self.norm.eps).rsqrt()
        pixels = x.permute(0, 2, 3, 1).reshape(batch, -1, channels)
        weight, bias = (part.permute(1, 2, 0).reshape(-1, channels) for part in (self.norm.weight, self.norm.bias))
        squeeze, offset = self.squeeze.weight.flatten(), self.squeeze.bias
        assert offset is not None  # this convolution is made with one
        constant = squeeze @ self.to_out.bias + offset
        parts = []
        for start in range(0, pixels.shape[1], CHUNK):
            part = slice(start, start + CHUNK)
            normed = ((pixels[:, part] - mean) * scale) * weight[part] + bias[part]
            parts.append(pixels[:, part] @ squeeze + self._read(normed, text))
        return self.offset(torch.cat(parts, dim=1) + constant)

    def _read(self, normed: Tensor, text: FoldedText) -> Tensor:
        """What every pixel reads from its text: [B, pixels, C] -> [B, pixels]."""
        batch, heads, tokens = text.values.shape
        if text.split:
            q = self.to_q(normed).unflatten(-1, (heads, self.head_dim)).transpose(1, 2)
            share = (q @ text.keys.transpose(2, 3)).softmax(-1)  # (B, heads, pixels, T)
            return (share @ text.values[..., None])[..., 0].sum(dim=1)
        scores = torch.bmm(normed, text.keys.transpose(1, 2))  # (B, pixels, heads T)
        share = scores.view(batch, -1, heads, tokens).softmax(-1).flatten(2)
        return torch.bmm(share, text.values.view(batch, -1, 1))[..., 0]
