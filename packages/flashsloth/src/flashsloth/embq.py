"""Embedded Query module, EmbQ (Tong et al., CVPR 2025, arXiv 2412.04317): the question looks at the image once more.

K learnable query tokens stand behind the question. Where their hidden states enter one early decoder layer, they
first read the question's hidden states, then all patches that SAP had compressed, and what they found is added to
them. Only the prefill does this; while decoding, the found detail lies in the KV cache.

    embq = EmbeddedQuery(hidden=2560, vision=1152, width=576, heads=32)
    queries = embq(queries, text, text_mask, patches)  # [rows, rounds, 9, 2560]

All rounds of a conversation read the same image: its patches are projected once, and the rounds' queries stand side
by side in one attention (the official code copies 729 patches for every round). Nine rows of scores a round: there is
no map of the whole sequence. Sections in comments are those that this package was specified by.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Rounds that read one image up to which values are projected behind the attention (section 9, FLOPs):
# heads * K * n * dv a round against n * dv^2 once; at 32 heads, 9 queries and 1,152 they meet at four rounds.
LATE_VALUES = 3


class QueryTokens(nn.Module):
    """K learnable tokens; each use adds the embedding of " ." to them (section 3.3)."""

    def __init__(self, count: int, width: int) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.empty(count, width))

    def forward(self, embeds: Tensor, is_query: Tensor) -> Tensor:
        """Put the queries in: ``embeds [batch, tokens, d]`` hold the dot's embedding where ``is_query`` is true."""
        # The k-th query of a row is token k modulo K: groups are whole.
        index = (is_query.cumsum(dim=1) - 1).clamp(min=0) % self.token.shape[0]
        return embeds + self.token[index].to(embeds) * is_query.unsqueeze(-1).to(embeds)


class TextToQuery(nn.Module):
    """Weights of the step in which queries read the question (section 3.6); no output projection."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(width, width) for _ in range(3))


class ValueProjection(nn.Linear):
    """``W_v``: of patches, or of what each head has already pooled from them."""

    def forward(self, input: Tensor) -> Tensor:
        """``[rows, n, dv] -> [rows, n, dv]``, or one mean a head ``[rows, h, queries, dv] -> [rows, queries, dv]``."""
        if input.ndim == 3:
            # The bias apart, as below: gradients are then ready in one order, in which ZeRO-3's ranks sum them,
            # whatever their numbers of rounds.
            return F.linear(input, self.weight) + self.bias
        heads = self.weight.view(input.shape[1], -1, input.shape[-1])  # [h, dv/h, dv]: a head makes its own columns
        return _join(input @ heads.transpose(1, 2)) + self.bias


class ImageToQuery(nn.Module):
    """Weights of the step in which queries read the image: compared in dd, values in dv (section 3.6)."""

    def __init__(self, width: int, vision: int) -> None:
        super().__init__()
        self.q_proj, self.k_proj = nn.Linear(width, width), nn.Linear(width, width)
        self.v_proj = ValueProjection(vision, vision)


class EmbqLayer(nn.Module):
    """The two steps and their norms. There is no norm and no residual between them, and no feed-forward."""

    def __init__(self, width: int, vision: int) -> None:
        super().__init__()
        self.t2q_attn = TextToQuery(width)
        self.i2q_attn = ImageToQuery(width, vision)
        self.ln_text, self.ln_q, self.ln_kv = (nn.LayerNorm(width) for _ in range(3))


class EmbeddedQuery(nn.Module):
    """``queries + W_u image_step(text_step(queries, text), image) + b_u`` (section 3.6).

    Args:
        hidden: width d of the language model.
        vision: width dv of the patches.
        width: dd, in which queries, text and image are compared.
        heads: of both steps: those of the language model.
    """

    def __init__(self, hidden: int, vision: int, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.down_projector_learnable_text = nn.Linear(hidden, width)  # shared by queries and text
        self.down_projector_image = nn.Linear(vision, width)
        self.layers = nn.ModuleList([EmbqLayer(width, vision)])
        self.up_projector = nn.Linear(vision, hidden)
        linears: list[Any] = [layer for layer in self.modules() if isinstance(layer, nn.Linear)]
        for layer in linears:
            layer.init_rule = "embq"

    @property
    def layer(self) -> EmbqLayer:
        """The only one: the official code has a list of layers, of which one is built."""
        layer: EmbqLayer = self.layers[0]  # type: ignore[assignment]
        return layer

    def forward(
        self, queries: Tensor, text: Tensor, text_mask: Tensor, patches: Tensor, patch_mask: Tensor | None = None
    ) -> Tensor:
        """Queries that have seen the question and the image.

        Args:
            queries: hidden states of the query tokens, ``[rows, rounds, K, d]``.
            text: hidden states of the questions, zero where there is none, ``[rows, rounds, t, d]``, t >= 1.
            text_mask: true at a question's tokens, ``[rows, rounds, t]``.
            patches: what the vision tower gave, neither pooled nor projected, ``[rows, n, dv]``.
            patch_mask: true at patches that a round may read, ``[rows, rounds, n]``, for each round at least one;
                None: all.

        Returns:
            ``[rows, rounds, K, d]``.
        """
        read = self.text_step(queries.flatten(0, 1), text.flatten(0, 1), text_mask.flatten(0, 1))  # [pairs, K, dd]
        rows, rounds, count, _ = queries.shape
        read = read.view(rows, rounds * count, -1)
        seen = self.image_step(read, patches, _each_query(patch_mask, count), rounds)  # [rows, rounds*K, dv]
        return queries + self.up_projector(seen).view_as(queries)

    def text_step(self, queries: Tensor, text: Tensor, text_mask: Tensor) -> Tensor:
        """Each query reads its question: ``[pairs, K, d]``, ``[pairs, t, d]``, ``[pairs, t]`` -> ``[pairs, K, dd]``.

        ``A = W_t q + b_t``, ``C = W_t T + b_t``; ``o1 = softmax(Q K^T / sqrt(dd / h) + mask) V`` with ``Q`` from
        ``LN_q(A)`` and ``K``, ``V`` from ``LN_text(C)``. A question without tokens reads its zero rows evenly, whose
        ``C`` is the bias ``b_t``: so does the official mask of +1 and -1e4.
        """
        layer, attention = self.layer, self.layer.t2q_attn
        asked = layer.ln_q(self.down_projector_learnable_text(queries))
        words = layer.ln_text(self.down_projector_learnable_text(text))
        readable = text_mask | ~text_mask.any(dim=-1, keepdim=True)  # [pairs, t]
        read = F.scaled_dot_product_attention(
            self._scaled(attention.q_proj(asked)),
            self._split(attention.k_proj(words)),
            self._split(attention.v_proj(words)),
            attn_mask=readable[:, None, None],
            scale=1.0,
        )
        return _join(read)

    def image_step(self, read: Tensor, patches: Tensor, mask: Tensor | None, rounds: int = 1) -> Tensor:
        """Each query reads the image: ``[rows, queries, dd]`` and ``[rows, n, dv]`` -> ``[rows, queries, dv]``.

        ``Q = W_q2 o1``, ``K = W_k2 LN_kv(W_i I + b_i)``, values ``W_v2 I``: not normalised and of full width.

        Args:
            mask: true at patches that a query may read, ``[rows, queries or 1, n]``; None: all.
            rounds: that read one image; decides where values are projected, which changes no number.
        """
        project = self.layer.i2q_attn.v_proj
        # What stands in for the projection (an adapter, eight bits) knows one input only.
        if rounds <= LATE_VALUES and isinstance(project, ValueProjection):
            weights = self.image_weights(read, patches, mask)
            # W_v (A I) + b_v: a head's weights sum to 1, so the projection may follow the mean (part two, A4). All
            # heads read the same patches: their rows go in one product, and W_v meets K rows instead of n.
            pooled = weights.flatten(1, 2).to(patches.dtype) @ patches  # A I: [rows, h * queries, dv]
            return project(pooled.unflatten(1, weights.shape[1:3]))
        query, key = self._compared(read, patches)
        allowed = None if mask is None else mask[:, None]
        values = self._split(project(patches))
        return _join(F.scaled_dot_product_attention(query, key, values, attn_mask=allowed, scale=1.0))

    def image_weights(self, read: Tensor, patches: Tensor, mask: Tensor | None = None) -> Tensor:
        """How much each query looks at each patch, a head: ``[rows, h, queries, n]``, float32."""
        query, key = self._compared(read, patches)
        scores = query.float() @ key.float().transpose(-1, -2)
        return (scores if mask is None else scores.masked_fill(~mask[:, None], -torch.inf)).softmax(dim=-1)

    def _compared(self, read: Tensor, patches: Tensor) -> tuple[Tensor, Tensor]:
        """Scaled queries ``[rows, h, queries, dd/h]`` and keys ``[rows, h, n, dd/h]`` of the image step."""
        attention = self.layer.i2q_attn
        keys = attention.k_proj(self.layer.ln_kv(self.down_projector_image(patches)))
        return self._scaled(attention.q_proj(read)), self._split(keys)

    def _scaled(self, queries: Tensor) -> Tensor:
        """Divided by ``sqrt(width / h)`` before they meet the keys, not the scores behind: gradients of a question's
        hidden states are sums of terms thirty times their size, and follow the official ones in this order only."""
        split = self._split(queries)
        return split * split.shape[-1] ** -0.5

    def _split(self, values: Tensor) -> Tensor:
        """``[batch, tokens, width] -> [batch, h, tokens, width / h]``."""
        return values.unflatten(-1, (self.heads, -1)).transpose(1, 2)


def _join(heads: Tensor) -> Tensor:
    """``[batch, h, tokens, width / h] -> [batch, tokens, width]``."""
    return heads.transpose(1, 2).flatten(2)


def _each_query(mask: Tensor | None, count: int) -> Tensor | None:
    """A mask of rounds as one of queries: ``[rows, rounds, n] -> [rows, rounds * K, n]``."""
    return None if mask is None else mask.repeat_interleave(count, dim=1)
