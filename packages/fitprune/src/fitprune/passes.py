"""One forward of an attached model: which tokens are present, their positions, masks and cache.

A pass belongs to the thread that runs it, so that several threads can ask one pruned model at once.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fitprune.host import CACHE_STATE
from fitprune.rules import Observation
from tenfold.hosts import attached
from tenfold.hosts.ragged import RaggedCache, Reading, Tokens, cache_length, layer_mask, take

if TYPE_CHECKING:
    from fitprune.attachment import Attachment, Layer


class Pass:
    """One forward of the attached model.

    Attributes:
        past: entries in layer 0's cache before this pass, which is never pruned.
        prompt: the tokens before layer 0, or None in a pass without an image (decoding, a later turn of
            text).
        tokens: the tokens at the present layer's input; ``prompt`` until a layer removes some.
        real: ``[batch, tokens]`` bool of the pass's input, None without padding.
        entering: the tokens at the input of every layer so far, and after the last one.
        turn: set while a layer runs and its selection looks; None in between.
    """

    def __init__(self, past: int, reading: Reading) -> None:
        self.past = past
        self.prompt: Any = reading.tokens
        self.tokens: Any = reading.tokens
        self.real = reading.real
        self.entering: list[Tokens] = [] if reading.tokens is None else [reading.tokens]
        self.turn: Turn | None = None
        self._past_real = reading.past_real
        self._compacted: dict[str, Any] | None = None  # positions of the present tokens, gathered once per removal
        self._mask: Tensor | None = None
        self._seen: Tokens | None = None  # in `present`

    def look(self) -> bool:
        """Take note of tokens that another method has let leave; whether it has."""
        left = None if self.tokens is None else attached.left_by_another(self.prompt, self._seen)
        if left is None:
            return False
        self.tokens, self._seen = left, attached.present.get()
        self._compacted = self._mask = None
        return True

    def cache_state(self, cache: Any, owner: Attachment) -> RaggedCache | None:
        """The bookkeeping of this cache; made by the first pass that holds an image."""
        state = getattr(cache, CACHE_STATE, None)
        if cache is not None and state is None and self.tokens is not None:
            layers = len(owner.layers)
            lengths = [cache_length(cache, slot) for slot in range(layers)]
            state = RaggedCache(owner.serial, lengths, [self._past_real] * layers, [False] * layers)
            setattr(cache, CACHE_STATE, state)
            state.follow(cache)
        return state

    def on(self, device: torch.device) -> Tokens:
        """The present tokens, moved to the device of the layer that asks."""
        moved = self.tokens.to(device)
        if moved is not self.tokens:
            if self.tokens is self.prompt:
                self.prompt = moved
            self.tokens, self._compacted, self._mask = moved, None, None
        return self.tokens

    def remove(self, removed: Tensor, counts: tuple[int, ...]) -> Tensor:
        """Take tokens out of the pass; returns ``[batch, kept]`` int64, the columns that survive."""
        self.tokens, select = self.tokens.without(removed, counts)
        self._compacted = self._mask = None
        self._seen = self.tokens
        attached.present.set(self.tokens)
        return select

    def compact(
        self, kwargs: dict[str, Any], real: Tensor | None, past: int, like: Tensor, implementation: str
    ) -> dict:
        """A layer's arguments for the tokens that are left: positions gathered, mask made for its own keys.

        Args:
            kwargs: the layer's arguments for the unpruned prompt.
            real: ``[batch, past + tokens]`` bool, None without padding.
            past: entries in this layer's cache.
            like: ``[batch, tokens, width]``, the layer's input.
        """
        tokens, new = self.tokens, like.shape[1]
        kwargs = dict(kwargs)
        if self._compacted is None and tokens is not self.prompt:
            self._compacted = attached.gather_positions(kwargs, tokens.index, self.prompt.width)
        if tokens is not self.prompt:
            kwargs.update(self._compacted or {})
        mask = self._mask
        if mask is None or past:  # with a past, two layers of one width can hide different entries
            mask = layer_mask(implementation, new, past + new, real, dtype=like.dtype, device=like.device)
            self._mask = mask
        kwargs["attention_mask"] = mask
        return kwargs


@dataclass(frozen=True)
class Turn:
    """One layer's turn in a pass, while its selection looks at it: the one value that its callbacks hand on.

    Attributes:
        running: the pass.
        real_keys: ``[batch, keys]`` bool, None without padding.
        survivors: ``[batch, kept]`` int64, the columns that stay, once the selection has chosen; None: all stay.
    """

    running: Pass
    real_keys: Tensor | None
    survivors: Tensor | None = None

    def observed(self, layer: Layer, query: Tensor, key: Tensor, scaling: float) -> Turn:
        """The turn after the selection has seen the layer's queries and keys, after rotary embedding."""
        seen = Observation(layer.number, self.running.tokens, query, key, scaling, self.real_keys)
        answer = layer.attachment.selection.remove(seen)
        if answer is None or not any(answer[1]):
            return self
        return replace(self, survivors=self.running.remove(*answer))

    def take(self, states: Tensor) -> Tensor:
        """The rows of ``states [batch, tokens, width]`` that stay."""
        return states if self.survivors is None else take(states, self.survivors)
