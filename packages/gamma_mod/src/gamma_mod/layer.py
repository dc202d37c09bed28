"""A mixture-of-depths layer (sections 3.2 and 3.4): kept tokens go through the block, the others pass by.

    h  = x[S]                                              the kept tokens of every row, in order
    h  = h + Attention(norm(h))                            causal among S, RoPE positions 0 .. k-1
    h  = h + p[S] * MLP(norm(h))                           only the MLP is scaled, as released
    x' = x with rows S replaced by h

Rows keep different numbers of tokens. Kept tokens are packed to the front of a row and slots that are left over stand
behind them, so plain causal attention needs no mask: nothing real ever looks at a slot. No map of tokens x tokens is
made, and what is skipped costs nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gamma_mod.routing import per_row
from tenfold import UserError
from tenfold.hosts.ragged import put, take

Rotation = tuple[Tensor, Tensor]
_BLOCK = 256  # the table of cosines and sines grows in steps


@dataclass(frozen=True)
class Kept:
    """The kept tokens of a batch.

    Attributes:
        select: ``[batch, width]`` int64, their columns, in order; behind them columns of tokens that are not kept.
        filled: ``[batch, width]`` bool, which of them are kept; None: all.
        counts: kept tokens of every row.
    """

    select: Tensor
    filled: Tensor | None
    counts: tuple[int, ...]

    @property
    def width(self) -> int:
        return self.select.shape[1]


def pack(kept: Tensor, counts: Sequence[int]) -> Kept:
    """Bring the kept tokens of every row to its front.

    Args:
        kept: ``[batch, tokens]`` bool.
        counts: how many it marks in every row; known to the host, so that nothing waits for the device here.
    """
    width = max(counts)
    select = kept.int().argsort(dim=1, descending=True, stable=True)[:, :width]
    filled = None
    if len(set(counts)) > 1:
        filled = torch.arange(width, device=kept.device) < per_row(counts, kept.device)
    return Kept(select, filled, tuple(counts))


def compute(
    block: Any,
    hidden: Tensor,
    keep_prob: Tensor,
    kept: Kept,
    attention: Callable[[Tensor], Tensor],
    normed: Tensor | None = None,
    attends: Tensor | None = None,
) -> Tensor:
    """The layer's output for all tokens.

    Args:
        block: a pre-norm decoder block.
        hidden: ``[batch, tokens, width]``, x.
        keep_prob: ``[batch, tokens]`` float32, p.
        kept: S.
        attention: of the kept tokens, ``[batch, k, width]`` -> ``[batch, k, width]``: causal, in compact positions.
        normed: ``[batch, tokens, width]``, x after ``input_layernorm`` where the router has already made it.
        attends: ``[batch, tokens]`` bool; the attention output of the others is zero (padding, as released).

    Returns:
        ``[batch, tokens, width]``, a new tensor.
    """
    before = take(hidden, kept.select)  # [batch, k, width]
    attended = attention(block.input_layernorm(before) if normed is None else take(normed, kept.select))
    if attends is not None:
        attended = attended * attends.gather(1, kept.select)[..., None]
    after = before + attended
    scale = keep_prob.gather(1, kept.select).to(hidden.dtype)[..., None]  # [batch, k, 1]
    after = after + scale * block.mlp(block.post_attention_layernorm(after))
    if kept.filled is not None:
        after = torch.where(kept.filled[..., None], after, before)
    return put(hidden, kept.select, after)


def compute_one(
    block: Any,
    hidden: Tensor,
    keep_prob: Tensor,
    executes: Tensor | None,
    attention: Callable[[Tensor], Tensor],
    normed: Tensor,
) -> Tensor:
    """The same for one generated token a row, of which at least one is computed.

    Args:
        hidden, normed: ``[batch, 1, width]``.
        keep_prob: ``[batch, 1]``.
        executes: ``[batch, 1]`` bool, whose token is computed; the others keep their state. None: every row's.
    """
    after = hidden + attention(normed)
    after = after + keep_prob.to(hidden.dtype)[..., None] * block.mlp(block.post_attention_layernorm(after))
    return after if executes is None else torch.where(executes[..., None], after, hidden)


class Positions:
    """RoPE of a converted layer: the kept tokens of a row are numbered 0, 1, 2, ... (section 3.2).

    A table for these numbers is made once and sliced. Hosts that count positions along several axes have no such
    numbering; their tokens keep the positions they had.

    Args:
        decoder: the module that holds the layers; its ``rotary_emb`` makes the table.
        config: the text configuration.
        kind: as `GammaModConfig.positions`.

    Raises:
        UserError: a host without rotary embedding, or with one that changes with the length of a prompt.
    """

    def __init__(self, decoder: nn.Module, config: Any, kind: str) -> None:
        rope = getattr(config, "rope_parameters", None) or {}
        self.axes = 3 if "mrope_section" in rope else 1
        self.compact = kind == "compact" or (kind == "auto" and self.axes == 1)
        name = type(decoder).__name__
        if not hasattr(decoder, "rotary_emb"):
            raise UserError("no rotary position embedding", name, "a decoder with rotary_emb")
        if self.compact and rope.get("rope_type") in ("dynamic", "longrope"):
            raise UserError(f"{rope['rope_type']} RoPE, which changes with length", name, 'positions="original"')
        self._decoder: Any = decoder
        self._tables: dict[tuple[torch.device, torch.dtype], Rotation] = {}

    def of_prompt(self, kept: Kept, past: Sequence[int], like: Tensor, host: Rotation) -> Rotation:
        """For the kept tokens of a prompt.

        Args:
            past: every row's entries in this layer's cache.
            like: a tensor of the wanted dtype and device.
            host: cosines and sines of all tokens, as the host hands them to its layers.

        Returns:
            Two tensors ``[..., batch or 1, k, head width]``.
        """
        if not self.compact:
            cos, sin = (take(part, kept.select) for part in host)
            return cos, sin
        return self._numbered(past, kept.width, like)

    def of_token(self, past: Sequence[int], like: Tensor, host: Rotation) -> Rotation:
        """For one generated token a row."""
        return self._numbered(past, 1, like) if self.compact else host

    def _numbered(self, past: Sequence[int], width: int, like: Tensor) -> Rotation:
        cos, sin = self._table(max(past) + width, like)
        first = past[0]
        if len(set(past)) == 1:
            return cos[..., first : first + width, :], sin[..., first : first + width, :]
        numbers = per_row(past, like.device) + torch.arange(width, device=like.device)  # [batch, width]
        return cos[..., 0, numbers, :], sin[..., 0, numbers, :]

    def _table(self, length: int, like: Tensor) -> Rotation:
        key = (like.device, like.dtype)
        table = self._tables.get(key)
        if table is None or table[0].shape[-2] < length:
            numbers = torch.arange(-(-length // _BLOCK) * _BLOCK, device=like.device)[None]
            if self.axes > 1:
                numbers = numbers.expand(self.axes, 1, -1)
            with torch.no_grad():
                table = self._decoder.rotary_emb(like, numbers)
            self._tables[key] = table
        return table
