"""The two blocks that encoder and decoder share: attention and feed-forward, each with its residual and LayerNorm."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from dtnet.config import DTNetConfig


class AttentionBlock(nn.Module):
    """``LN(x + drop(MultiHead(x, source)))``; what uses it adds a second residual and LayerNorm (as released).

    Args:
        config: width, heads, and both dropouts.
    """

    def __init__(self, config: DTNetConfig) -> None:
        super().__init__()
        d, self.heads = config.d_model, config.heads
        self.q = nn.Linear(d, config.heads * config.d_k)
        self.k = nn.Linear(d, config.heads * config.d_k)
        self.v = nn.Linear(d, config.heads * config.d_v)
        self.o = nn.Linear(config.heads * config.d_v, d)
        self.norm = nn.LayerNorm(d)
        self.dropout = nn.Dropout(config.dropout)
        self.weight_dropout = nn.Dropout(config.attention_dropout)
        for linear in (self.q, self.k, self.v, self.o):
            nn.init.zeros_(linear.bias)

    def forward(self, x: Tensor, source: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """
        Args:
            x: the queries `[batch, tokens, d]`.
            source: what is attended to `[batch, keys, d]`; None: x itself.
            mask: float, added to the logits, or bool, True where a query may look: broadcasts to
                `[batch, heads, tokens, keys]`.
        """
        return self.attend(x, *self.project(x if source is None else source), mask)

    def project(self, source: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of `[batch, keys, d]`: `[batch, heads, keys, d_k]` and `[batch, heads, keys, d_v]`."""
        return self._split(self.k(source)), self._split(self.v(source))

    def attend(self, x: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None = None) -> Tensor:
        """`forward`, with keys and values that are projected already."""
        return self.norm(x + self.dropout(self.multi_head(x, keys, values, mask)))

    def multi_head(self, x: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None = None) -> Tensor:
        """``softmax(Q K^T / sqrt(d_k) + mask) V``, heads joined and projected, without residual."""
        p = self.weight_dropout.p if self.training else 0.0
        attended = F.scaled_dot_product_attention(self._split(self.q(x)), keys, values, attn_mask=mask, dropout_p=p)
        return self.o(attended.transpose(1, 2).flatten(2))

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # [batch, heads, tokens, d_k]


class FeedForward(nn.Module):
    """``LN(x + drop(fc2(drop(relu(fc1 x)))))``: the decoder's, and in the encoder the channel projection cell (CPC)."""

    def __init__(self, config: DTNetConfig) -> None:
        super().__init__()
        self.fc1 = nn.Linear(config.d_model, config.d_ff)
        self.fc2 = nn.Linear(config.d_ff, config.d_model)
        self.norm = nn.LayerNorm(config.d_model)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        """`[batch, tokens, d]` -> the same."""
        inner = self.dropout(F.relu(self.fc1(x)))  # [batch, tokens, d_ff]
        return self.norm(x + self.dropout(self.fc2(inner)))
