"""The KV cache of a converted layer (section 3.4): it holds the kept tokens only, so layers and rows have lengths of
their own.

A row's entries stand at the front, in order; behind them, up to the longest row, stand unused slots that a key mask
hides. A generated token that a row skips is written behind its entries, where the next one will overwrite it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers.cache_utils import Cache, DynamicLayer

from gamma_mod.routing import per_row
from tenfold import UserError


class KeptTokens(DynamicLayer):
    """One converted layer's part of a transformers cache.

    Attributes:
        lengths: entries of every row; empty before the first pass.
        seen: tokens that passed this layer, kept or not, padding included: the length that the host counts.
        keys, values: ``[batch, heads, longest row, head width]``.
    """

    is_croppable = False
    # Until the first pass (`is_initialized`) there are none.
    keys: Tensor
    values: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.lengths: tuple[int, ...] = ()
        self.seen = 0

    def get_seq_length(self) -> int:
        return self.seen

    def pass_by(self, batch: int, tokens: int, where: str) -> None:
        """Count the tokens of a pass.

        Raises:
            UserError: another batch than the one that this cache was made with.
        """
        if self.lengths and len(self.lengths) != batch:
            raise UserError("a cache of another batch", where, f"{len(self.lengths)} rows, not {batch}")
        self.lengths = self.lengths or (0,) * batch
        self.seen += tokens

    def width_after(self, width: int) -> int:
        """Slots of ``keys`` once ``width`` more have been added to every row."""
        return max(self.keys.shape[2] if self.is_initialized else 0, max(self.lengths) + width)

    def append(self, keys: Tensor, values: Tensor, counts: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Add a pass's kept tokens.

        Args:
            keys, values: ``[batch, heads, width, head width]``, of every row the first ``counts`` belong to it.

        Returns:
            All keys and values, ``[batch, heads, longest row or longer, head width]``.
        """
        old, width = self.lengths, keys.shape[2]
        self.lengths = tuple(length + count for length, count in zip(old, counts, strict=True))
        if not self.is_initialized:
            self.lazy_initialization(keys, values)
            self.keys, self.values = keys, values
        elif len(set(old)) == 1 and self.keys.shape[2] == old[0]:  # all rows end at the last slot
            self.keys, self.values = torch.cat((self.keys, keys), 2), torch.cat((self.values, values), 2)
        else:
            slots = per_row(old, keys.device) + torch.arange(width, device=keys.device)  # [batch, width]
            slots, total = slots.expand(keys.shape[0], width), max(self.keys.shape[2], max(old) + width)
            self.keys, self.values = _write(self.keys, keys, slots, total), _write(self.values, values, slots, total)
        return self.keys, self.values

    def crop(self, tokens_to_remove: int) -> None:
        if tokens_to_remove:
            raise UserError(
                "a cache of kept tokens cannot be cropped", "generate", "no assisted generation, no rolling back"
            )

    def reset(self) -> None:
        super().reset()
        self.lengths, self.seen = (), 0

    def reorder_cache(self, beam_idx: Tensor) -> None:
        self.batch_select_indices(beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        self.lengths = tuple(self.lengths[row] for row in torch.arange(len(self.lengths))[indices.cpu()].tolist())
        if self.is_initialized:
            self.keys, self.values = (part[indices.to(part.device)] for part in (self.keys, self.values))

    def batch_repeat_interleave(self, repeats: int) -> None:
        self.lengths = tuple(length for length in self.lengths for _ in range(repeats))
        if self.is_initialized:
            self.keys, self.values = (part.repeat_interleave(repeats, 0) for part in (self.keys, self.values))


class PassCache:
    """What a converted layer hands to its attention in place of the cache, for one pass."""

    def __init__(self, layer: KeptTokens, counts: Sequence[int]) -> None:
        self.layer = layer
        self.counts = counts

    def update(self, keys: Tensor, values: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        return self.layer.append(keys, values, self.counts)


def kept_tokens(cache: Cache, layer: int, where: str) -> KeptTokens:
    """The converted layer's part of a cache; put there at the first pass.

    Raises:
        UserError: a static, quantised or offloaded cache, or one that an unconverted model has filled.
    """
    if cache.layer_class_to_replicate is not None:
        while len(cache.layers) <= layer:
            cache.layers.append(cache.layer_class_to_replicate())
    part = cache.layers[layer] if layer < len(cache.layers) else None
    if isinstance(part, KeptTokens):
        return part
    if part is None or type(part) is not DynamicLayer or getattr(cache, "offloading", False):
        raise UserError("this kind of KV cache", where, "a dynamic cache: layers hold different numbers of tokens")
    if part.get_seq_length():
        raise UserError("a cache made by an unconverted model", where, "a new cache")
    made = KeptTokens()
    cache.layers[layer] = made
    return made


def kv_lengths(cache: Cache) -> list[list[int]]:
    """Tokens in the cache of every layer, per row: ``[layers][batch]``; dense layers count padding too."""
    lengths: list[list[int]] = []
    parts: Sequence[Any] = cache.layers
    for part in parts:
        if isinstance(part, KeptTokens):
            lengths.append(list(part.lengths))
        else:
            lengths.append([part.keys.shape[2]] * part.keys.shape[0] if part.is_initialized else [])
    return lengths


def _write(cache: Tensor, new: Tensor, slots: Tensor, width: int) -> Tensor:
    """``new [batch, heads, n, d]`` at ``slots [batch, n]`` of a cache grown to ``width``."""
    cache = F.pad(cache, (0, 0, 0, max(0, width - cache.shape[2])))
    index = slots[:, None, :, None].expand_as(new)
    return cache.scatter(2, index, new)
