"""RoPE positions in a converted layer (section 3.2): the kept tokens of a row are numbered 0, 1, 2, ...

A table of cosines and sines for these numbers is made once and sliced. Hosts that count positions along several axes
have no such numbering; their tokens keep the positions they had (`GammaModConfig.positions`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from gamma_mod.layer import Kept
from gamma_mod.routing import per_row
from tenfold import UserError
from tenfold.hosts.ragged import take

Rotation = tuple[Tensor, Tensor]
_BLOCK = 256  # the table grows in steps


class Positions:
    """Cosines and sines for the tokens of a converted layer.

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
        self._decoder = decoder
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
