"""How text enters the image encoder: what stands in the text slots before each block (section 3, figure 2).

y is the text of BERT, [batch, slots, width]; t_i what block i gets in its text slots, t_i' what it leaves there:

    L-DIT (layer_wise)    t_i = P_i y
    E-DIT (e2e)           t_0 = P_0 y,  t_i = P_i t'_{i-1}

and the ablations of the injection. P_i is linear and starts at zero, weight and bias: at first the slots are empty,
and the encoder's output does not depend on the text. It is not SAM's either: empty slots take part in attention.

The names of the weights (`probs`, `tokens`, `cross`, `ln`, `prob_text`) are those of the released models.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dit_sam.config import DITConfig

# The learned tokens of the variants that have some.
TOKENS = 20


class TextPath(nn.Module):
    """Text slots before each block; one subclass a variant.

    Args:
        config: of the model. dropout: while training; 0 leaves results as they are.
    """

    def __init__(self, config: DITConfig) -> None:
        super().__init__()
        self.drop = nn.Dropout(config.dropout)

    def enter(self, layer: int, text: Tensor, left: Tensor | None, image: Tensor) -> Tensor:
        """What block `layer` finds in its text slots.

        Args:
            layer: counted from 0.
            text: y, [batch, slots, text width].
            left: t' of the block before, [batch, slots, width]; None before the first block.
            image: the image tokens that enter the block, [batch, h w, width].

        Returns:
            [batch, slots, width]
        """
        raise NotImplementedError


class LayerWise(TextPath):
    """L-DIT: t_i = P_i y."""

    def __init__(self, config: DITConfig) -> None:
        super().__init__(config)
        self.probs = nn.ModuleList(_zero_linear(config.width) for _ in range(config.depth))

    def enter(self, layer: int, text: Tensor, left: Tensor | None, image: Tensor) -> Tensor:
        return self.drop(self.probs[layer](text))


class LayerWiseWide(LayerWise):
    """L-DIT for encoders wider than the text: t_i = P_i W y."""

    def __init__(self, config: DITConfig) -> None:
        super().__init__(config)
        self.prob_text = nn.Linear(config.text_width, config.width)

    def enter(self, layer: int, text: Tensor, left: Tensor | None, image: Tensor) -> Tensor:
        return super().enter(layer, self.prob_text(text), left, image)


class EndToEnd(TextPath):
    """E-DIT: t_i = P_i t'_{i-1}, and P_0 y at first. As its text reads (`reproject=False`): P_0 y, then t'_{i-1}."""

    def __init__(self, config: DITConfig) -> None:
        super().__init__(config)
        self.probs = nn.ModuleList(_zero_linear(config.width) for _ in range(config.depth if config.reproject else 1))

    def enter(self, layer: int, text: Tensor, left: Tensor | None, image: Tensor) -> Tensor:
        if left is not None and layer >= len(self.probs):
            return left
        return self.drop(self.probs[layer](text if left is None else left))


class EndToEndTokens(TextPath):
    """The slots travel, and learned tokens are added: t_0 = P y, t_i = t'_{i-1} + tokens_{i-1}."""

    def __init__(self, config: DITConfig) -> None:
        super().__init__(config)
        self.probs = nn.Linear(config.width, config.width)
        self.tokens = nn.Parameter(torch.empty(config.depth - 1, TOKENS, config.width))
        nn.init.xavier_uniform_(self.tokens)

    def enter(self, layer: int, text: Tensor, left: Tensor | None, image: Tensor) -> Tensor:
        return self.drop(self.probs(text)) if left is None else left + self.tokens[layer - 1]


class LayerWiseTokens(TextPath):
    """Learned tokens of each layer beside the text: t_i = y + tokens_i."""

    def __init__(self, config: DITConfig) -> None:
        super().__init__(config)
        self.tokens = nn.Parameter(torch.randn(config.depth, TOKENS, config.width))

    def enter(self, layer: int, text: Tensor, left: Tensor | None, image: Tensor) -> Tensor:
        return text + self.tokens[layer]


class CrossAttention(TextPath):
    """The text re-reads its slots: t_0 = P_0 y, t_i = norm(P_i y + CrossAttention(y; t'_{i-1})).

    The P_i start at weights of one, as released.
    """

    def __init__(self, config: DITConfig) -> None:
        super().__init__(config)
        projections = [_zero_linear(config.width) for _ in range(config.depth)]
        for projection in projections:
            nn.init.ones_(projection.weight)
        self.probs = nn.ModuleList(projections)
        self.cross = nn.ModuleList(_Attention(config) for _ in range(config.depth - 1))
        self.ln = nn.ModuleList(_Norm(config.width) for _ in range(config.depth - 1))

    def enter(self, layer: int, text: Tensor, left: Tensor | None, image: Tensor) -> Tensor:
        projected = self.probs[layer](text)
        if left is None:
            return projected
        return self.ln[layer - 1](projected + self.drop(self.cross[layer - 1](text, left)))


class CrossAttentionFeedForward(TextPath):
    """The text reads the image: t_i = norm(y + CrossAttentionLayer_i(y; image tokens))."""

    def __init__(self, config: DITConfig) -> None:
        super().__init__(config)
        self.cross = nn.ModuleList(_AttentionLayer(config) for _ in range(config.depth))
        self.ln = nn.ModuleList(_Norm(config.width) for _ in range(config.depth))

    def enter(self, layer: int, text: Tensor, left: Tensor | None, image: Tensor) -> Tensor:
        return self.ln[layer](text + self.drop(self.cross[layer](text, image)))


PATHS: dict[str, type[TextPath]] = {
    "layer_wise": LayerWise,
    "e2e": EndToEnd,
    "e2e_token": EndToEndTokens,
    "token_layer_wise": LayerWiseTokens,
    "cross_attention": CrossAttention,
    "cross_attention_ffn": CrossAttentionFeedForward,
    "layer_wise_vith": LayerWiseWide,
}


def _zero_linear(width: int) -> nn.Linear:
    linear = nn.Linear(width, width)
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)
    return linear


class _Norm(nn.Module):
    """weight (x - mean) / (std + 1e-6) + bias with the unbiased standard deviation: not `nn.LayerNorm`."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        deviation, mean = torch.std_mean(x, dim=-1, keepdim=True)
        return self.weight * (x - mean) / (deviation + 1e-6) + self.bias


class _Attention(nn.Module):
    """Cross attention through a narrower width: q, k, v to `cross_width`, merged back; dropout on the weights."""

    def __init__(self, config: DITConfig) -> None:
        super().__init__()
        self.heads, self.dropout = config.cross_heads, config.dropout
        self.linear_q = _xavier_linear(config.width, config.cross_width)
        self.linear_k = _xavier_linear(config.width, config.cross_width)
        self.linear_v = _xavier_linear(config.width, config.cross_width)
        self.linear_merge = _xavier_linear(config.cross_width, config.width)

    def forward(self, text: Tensor, read: Tensor) -> Tensor:
        """text [batch, slots, width] reads `read` [batch, tokens, width]."""
        q, k, v = (
            linear(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)  # [batch, heads, tokens, d]
            for linear, x in ((self.linear_q, text), (self.linear_k, read), (self.linear_v, read))
        )
        mixed = F.scaled_dot_product_attention(q, k, v, dropout_p=self.dropout if self.training else 0.0)
        return self.linear_merge(mixed.transpose(1, 2).flatten(2))


class _FeedForward(nn.Module):
    """Width -> cross_mlp -> width with ReLU, under the released names."""

    def __init__(self, config: DITConfig) -> None:
        super().__init__()
        inner = nn.ModuleDict({"linear": nn.Linear(config.width, config.cross_mlp)})
        self.mlp = nn.ModuleDict({"fc": inner, "linear": nn.Linear(config.cross_mlp, config.width)})
        self.drop = nn.Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        inner = self.mlp["fc"]["linear"](x)  # type: ignore[index]
        return self.mlp["linear"](self.drop(F.relu(inner)))


class _AttentionLayer(nn.Module):
    """A post-norm transformer layer: norm1(y + attention), then norm2(. + feed-forward)."""

    def __init__(self, config: DITConfig) -> None:
        super().__init__()
        self.mhatt = _Attention(config)
        self.ffn = _FeedForward(config)
        self.norm1 = _Norm(config.width)
        self.norm2 = _Norm(config.width)
        self.drop = nn.Dropout(config.dropout)

    def forward(self, text: Tensor, image: Tensor) -> Tensor:
        text = self.norm1(text + self.drop(self.mhatt(text, image)))
        return self.norm2(text + self.drop(self.ffn(text)))


def _xavier_linear(inputs: int, outputs: int) -> nn.Linear:
    linear = nn.Linear(inputs, outputs)
    nn.init.xavier_uniform_(linear.weight)
    nn.init.zeros_(linear.bias)
    return linear
