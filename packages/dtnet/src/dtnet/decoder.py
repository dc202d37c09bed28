"""The decoder (section 3.4): a plain transformer, with teacher forcing or one word at a time.

One word at a time it keeps the projected keys and values: of each beam's own words, and once an image of the memory.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dtnet.blocks import AttentionBlock, FeedForward
from dtnet.config import DTNetConfig

KeyValues = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class DecoderCache:
    """What the words so far left behind, for B images of k beams.

    Attributes:
        words: of each layer keys and values of the words `[B * k, heads, t, d_k]`; empty before the first.
        memory: of each layer keys and values of the image `[B, heads, n, d_k]`, once for all its beams.
        memory_mask: bool, True where a query may look `[B, 1, 1, n]`; None: everywhere.
        visible: bool, False where a word was ``<pad>`` `[B * k, 1, 1, t]`.
    """

    words: tuple[KeyValues, ...]
    memory: tuple[KeyValues, ...]
    memory_mask: Tensor | None
    visible: Tensor | None

    def reorder(self, rows: Tensor) -> DecoderCache:
        """The words of beams `rows` `[B * new k]`, as numbers in 0..B * k - 1."""
        words = tuple((keys.index_select(0, rows), values.index_select(0, rows)) for keys, values in self.words)
        return replace(self, words=words, visible=None if self.visible is None else self.visible.index_select(0, rows))


class DecoderLayer(nn.Module):
    """Self-attention, cross-attention, feed-forward; the two attentions with a double residual, as released."""

    def __init__(self, config: DTNetConfig) -> None:
        super().__init__()
        self.self_attention = AttentionBlock(config)
        self.cross_attention = AttentionBlock(config)
        self.feed_forward = FeedForward(config)
        self.self_norm = nn.LayerNorm(config.d_model)
        self.cross_norm = nn.LayerNorm(config.d_model)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, keep: Tensor, mask: Tensor, memory: Tensor, memory_mask: Tensor | None) -> Tensor:
        """
        Args:
            x: `[batch, length, d]`.
            keep: 0 where the word is ``<pad>``, else 1 `[batch, length, 1]`.
            mask: bool, True where a word may look `[batch, 1, length, length]`.
            memory, memory_mask: `[batch, n, d]` and `[batch, 1, 1, n]`.
        """
        return self._rest(x, self.self_attention(x, mask=mask), keep, self.cross_attention.project(memory), memory_mask)

    def step(
        self, x: Tensor, keep: Tensor, words: KeyValues | None, visible: Tensor, memory: KeyValues, mask: Tensor | None
    ) -> tuple[Tensor, KeyValues]:
        """One more word of every beam: `[B, k, d]` -> the same, and the words' keys and values with it."""
        rows = x.flatten(0, 1).unsqueeze(1)  # [B * k, 1, d]
        keys, values = self.self_attention.project(rows)
        if words is not None:
            keys, values = torch.cat((words[0], keys), dim=2), torch.cat((words[1], values), dim=2)
        attended = self.self_attention.attend(rows, keys, values, visible).view_as(x)
        return self._rest(x, attended, keep, memory, mask), (keys, values)

    def _rest(self, x: Tensor, attended: Tensor, keep: Tensor, memory: KeyValues, mask: Tensor | None) -> Tensor:
        a = self.self_norm(x + self.dropout(attended)) * keep
        # The beams of an image are queries to the same keys: the memory is not repeated for them.
        e = self.cross_norm(a + self.dropout(self.cross_attention.attend(a, *memory, mask))) * keep
        return self.feed_forward(e) * keep


class Decoder(nn.Module):
    """Words and an image's memory to the log-probabilities of the next words."""

    def __init__(self, config: DTNetConfig) -> None:
        super().__init__()
        self.pad_id = config.pad_id
        # No factor sqrt(d), no dropout, and an output layer of its own.
        self.word_embedding = nn.Embedding(config.vocabulary_size, config.d_model, padding_idx=config.pad_id)
        self.position_embedding = nn.Embedding(config.max_len + 1, config.d_model)  # row 0: <pad>
        self.position_embedding.weight.requires_grad_(False)
        self.layers = nn.ModuleList(DecoderLayer(config) for _ in range(config.decoder_layers))
        self.fc = nn.Linear(config.d_model, config.vocabulary_size, bias=False)

    def forward(self, tokens: Tensor, memory: Tensor, memory_mask: Tensor | None = None) -> Tensor:
        """Teacher forcing.

        Args:
            tokens: `[batch, length]` int64.
            memory: `[batch, n, d]`.
            memory_mask: bool, True where a query may look `[batch, 1, 1, n]`; None: everywhere.

        Returns:
            Log-probabilities `[batch, length, vocabulary]`, uniform where the token is ``<pad>``.
        """
        length = tokens.shape[1]
        real = tokens != self.pad_id
        positions = torch.arange(1, length + 1, device=tokens.device) * real
        causal = torch.ones(length, length, dtype=torch.bool, device=tokens.device).tril()
        mask = causal & real[:, None, None]  # [batch, 1, length, length]
        keep = real.unsqueeze(-1)
        x = self.word_embedding(tokens) + self.position_embedding(positions)
        for layer in self.layers:
            x = layer(x, keep, mask, memory, memory_mask)
        return self._log_probs(x)

    def start(self, memory: Tensor, memory_mask: Tensor | None = None) -> DecoderCache:
        """Before the first word; keys and values of the memory are projected here, once."""
        layers = [cast(DecoderLayer, layer) for layer in self.layers]
        projected = tuple(layer.cross_attention.project(memory) for layer in layers)
        return DecoderCache(words=(), memory=projected, memory_mask=memory_mask, visible=None)

    def step(self, tokens: Tensor, cache: DecoderCache) -> tuple[Tensor, DecoderCache]:
        """One more word of every beam.

        Args:
            tokens: `[B, k]` int64, the last word of each beam.
            cache: of the words before them.

        Returns:
            Log-probabilities of the next word `[B, k, vocabulary]`, and the cache with these words.
        """
        real = tokens != self.pad_id
        visible = real.view(-1, 1, 1, 1)
        position = 1
        if cache.visible is not None:
            position += cache.visible.shape[-1]
            visible = torch.cat((cache.visible, visible), dim=-1)
        # While decoding, a <pad> has the position of any other word.
        x = self.word_embedding(tokens) + self.position_embedding.weight[position]
        words = []
        for number, layer in enumerate(self.layers):
            before = cache.words[number] if cache.words else None
            args = (before, visible, cache.memory[number], cache.memory_mask)
            x, after = cast(DecoderLayer, layer).step(x, real.unsqueeze(-1), *args)
            words.append(after)
        return self._log_probs(x), replace(cache, words=tuple(words), visible=visible)

    def _log_probs(self, x: Tensor) -> Tensor:
        logits = self.fc(x)  # bfloat16 is too coarse to add up log-probabilities
        return F.log_softmax(logits, dim=-1, dtype=torch.promote_types(logits.dtype, torch.float32))
