"""One forward pass of an attached model: which tokens are present, which rows have left, what the next layer is given.

A prompt of n tokens, its image of V tokens and e, the layer after whose gate the image leaves: layers 0..e run on n
tokens and cache n keys, layers e + 1.. run on n - V and cache as many.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dyvte.observation import Observed
from dyvte.states import text_block
from tenfold.hosts.attached import gather_positions, left_by_another, present
from tenfold.hosts.ragged import RaggedCache, Tokens, cache_length, kv_cache, layer_mask, take

if TYPE_CHECKING:
    from dyvte.attachment import Attachment

CACHE_STATE = "dyvte_state"


@dataclass
class Exits:
    """After which layer the visual tokens of each row left.

    Attributes:
        layer: ``[batch]`` int64 on the device: -1 before the first layer, the number of layers for never.
        images: per row, whether it has visual tokens at all.
        layers: number of layers.
    """

    layer: Tensor
    images: tuple[bool, ...]
    layers: int

    def tolist(self) -> list[int | None]:
        """Exit layer per row, counted from 0; None where nothing left. Waits for the device."""
        exits = zip(self.layer.tolist(), self.images, strict=True)
        return [layer if image and layer < self.layers else None for layer, image in exits]


@dataclass
class CacheState:
    """What a KV cache remembers of the exits in it: it lives, and is copied, with the cache.

    Attributes:
        ragged: its lengths and padding, layer by layer.
        exits: of every prompt with an image that went into it, in order.
    """

    ragged: RaggedCache
    exits: list[Exits]


class ForwardPass:
    """One forward of the attached model.

    Attributes:
        past: entries in layer 0's cache before this pass.
        prompt: the tokens before layer 0, or None in a pass without an image (decoding, a later turn of text).
        tokens: those at the present layer's input; their ``text`` is the block that gates read. A row that has left
            still has its visual tokens here until the next compaction.
        real: ``[batch, tokens]`` bool of the pass's input, None without padding.
        exits: the decisions so far; None without an image.
        entering: the tokens at the input of every layer so far, and after the last one.
        observed: queries and keys of the present layer, where its rule wanted them.
        seen: ``[batch, keys]`` bool, the present layer's visible keys; None when all are.
    """

    def __init__(
        self, owner: Attachment, past: int, prompt: Tokens | None, real: Tensor | None, attention_mask: Tensor | None
    ) -> None:
        self.owner = owner
        self.past = past
        if prompt is not None:
            prompt = replace(prompt, text=text_block(prompt.visual, prompt.real))
        self.prompt = prompt
        self.tokens: Tokens | None = prompt
        self.real = real
        self.observed: Observed | None = None
        self.seen: Tensor | None = None
        self.exits: Exits | None = None
        self.entering: list[Tokens] = []
        self._attention_mask = attention_mask
        self._positions: dict[str, Any] | None = None  # of the present tokens, gathered once per removal
        self._mask: Tensor | None = None
        self._seen: Tokens | None = None  # in `present`
        self._cache: Any = None
        self._waiting: list[tuple[int, int]] = []  # (layer, past): layers since the last compaction
        self._pending = False  # rows may have left since the last compaction
        self._undecided: set[int] = set()  # rows that the host does not know to have left
        if prompt is not None:
            layers = len(owner.layers)
            images = tuple(bool(count) for count in prompt.num_visual)
            never = torch.full((len(images),), layers, device=prompt.index.device)
            self.exits = Exits(never, images, layers)
            self._undecided = {row for row, image in enumerate(images) if image}

    @property
    def batch(self) -> int:
        assert self.prompt is not None
        return self.prompt.index.shape[0]

    def cache_state(self, cache: Any) -> CacheState | None:
        """The bookkeeping of this cache; made by the first pass that holds an image."""
        state = getattr(cache, CACHE_STATE, None)
        if cache is None or self.tokens is None:
            self._cache = cache
            return state
        if state is None:
            layers = len(self.owner.layers)
            real = None if self._attention_mask is None else self._attention_mask[:, : self.past].bool()
            real = None if real is None or not self.past or bool(real.all()) else real
            ragged = RaggedCache(self.owner.serial, [self.past] * layers, [real] * layers, [False] * layers)
            state = CacheState(ragged, [])
            setattr(cache, CACHE_STATE, state)
        if self._cache is None:
            self._cache = cache
            assert self.exits is not None
            state.exits.append(self.exits)
        return state

    def on(self, device: torch.device) -> None:
        """Move the description of the present tokens to the device of the layer that asks."""
        assert self.tokens is not None and self.exits is not None
        moved = self.tokens.to(device)
        if moved is not self.tokens:
            if self.tokens is self.prompt:
                self.prompt = moved
            self.tokens, self._positions, self._mask = moved, None, None
            self.exits.layer = self.exits.layer.to(device)

    def look(self) -> None:
        """Take note of tokens that another method has let leave."""
        if self.prompt is not None and (left := left_by_another(self.prompt, self._seen)) is not None:
            self.tokens, self._seen = left, present.get()
            self._positions = self._mask = None

    def leave_before(self, hidden: Tensor) -> Tensor:
        """All visual tokens leave before layer 0; returns the states of the others."""
        assert self.tokens is not None and self.exits is not None
        self.exits.layer = torch.where(self.tokens.visual.any(1), -1, self.exits.layer)
        self._undecided.clear()
        return take(hidden, self._remove(self.tokens.visual, self.tokens.num_visual))

    def arguments(self, layer: int, hidden: Tensor, kwargs: dict[str, Any], implementation: str) -> dict[str, Any]:
        """What the host's layer is called with: its arguments, cut to the tokens that are present, and a mask for
        its own keys where those differ from the host's.

        Args:
            layer: its number.
            hidden: ``[batch, width, d]``, its input.
            kwargs: its arguments for the whole prompt.
            implementation: of its attention.
        """
        tokens, cache = self.tokens, kv_cache(kwargs)
        past = cache_length(cache, layer)
        state = getattr(cache, CACHE_STATE, None)
        pruned = tokens is not self.prompt
        real = self.real if tokens is None else tokens.real if tokens.padded else None
        if state is not None:
            state.ragged.cut |= pruned and layer == 0
            real = state.ragged.extend(layer, real, hidden.shape[:2], pruned)
            pruned = state.ragged.pruned[layer]
        if tokens is not None:
            self.entering.append(tokens)
            self._waiting.append((layer, past))
            hidden_keys = self._hidden_keys(layer, past)
            if hidden_keys is not None:
                real = ~hidden_keys if real is None else real & ~hidden_keys
                pruned, self._mask = True, None  # rows may have left since the last layer
        self.seen = real
        return self._compact(kwargs, real, past, hidden, implementation) if pruned else kwargs

    def after(self, layer: int, hidden: Tensor) -> Tensor:
        """Ask the rule, and remove what has left where a compaction is due.

        Args:
            layer: its number.
            hidden: ``[batch, width, d]``, its output.

        Returns:
            ``[batch, remaining, d]``; ``hidden`` itself where nothing was removed.
        """
        assert self.tokens is not None
        rule, last = self.owner.rule, layer + 1 == len(self.owner.layers)
        pruned = rule.prune(layer, self) if self._undecided else None
        if pruned is not None and any(pruned[1]):
            hidden = take(hidden, self._remove(*pruned))
        if self._undecided:
            held = self.owner.held
            kept = held is not None and held.exits is not None
            leave = held.decide(layer, self) if kept and held else rule.decide(layer, hidden, self)
            if leave is True:
                hidden = self._leave_at_once(layer, hidden)
            elif isinstance(leave, Tensor):
                self._leave(layer, leave)
                self._pending = True
            if self._pending and (last or (layer + 1) % self.owner.compact_every == 0):
                hidden = self._compaction(layer, hidden)
        if not self._pending:
            self._waiting.clear()
        self.observed = None
        if last:
            self.entering.append(self.tokens)
        return hidden

    def _leave(self, layer: int, leave: Tensor) -> None:
        assert self.exits is not None and self.prompt is not None
        images = self.prompt.visual.any(1).to(leave.device)
        first = leave & images & (self.exits.layer == self.exits.layers)  # the first exit wins and is final
        self.exits.layer = torch.where(first, layer, self.exits.layer)

    def _leave_at_once(self, layer: int, hidden: Tensor) -> Tensor:
        assert self.tokens is not None and self.exits is not None
        self._leave(layer, torch.ones_like(self.exits.layer, dtype=torch.bool))
        self._undecided.clear()
        self._pending = False
        return take(hidden, self._remove(self.tokens.visual, self.tokens.num_visual))

    def _compaction(self, layer: int, hidden: Tensor) -> Tensor:
        """The one wait: which rows have left since the last compaction. Their tokens go, also from the caches of
        the layers in between."""
        assert self.tokens is not None and self.exits is not None
        exits = self.exits.layer.tolist()
        gone = {row for row in self._undecided if exits[row] <= layer}
        if gone:
            self._trim(gone, exits)
            self._undecided -= gone
            counts = tuple(n if row in gone else 0 for row, n in enumerate(self.tokens.num_visual))
            left = self.exits.layer[:, None] <= layer
            hidden = take(hidden, self._remove(self.tokens.visual & left, counts))
        self._pending, self._mask = False, None
        return hidden

    def _trim(self, gone: set[int], exits: list[int]) -> None:
        state = getattr(self._cache, CACHE_STATE, None)
        if state is None:
            return
        assert self.exits is not None
        for layer, past in self._waiting:
            rows = {row for row in gone if exits[row] < layer}
            if not rows:
                continue
            tokens = self.entering[layer]
            counts = tuple(n if row in rows else 0 for row, n in enumerate(tokens.num_visual))
            # The row of a layer on another device: its cache lies there.
            cached = self._cache.layers[layer]
            tokens = tokens.to(cached.keys.device)
            left = self.exits.layer.to(cached.keys.device)[:, None] < layer
            kept, select = tokens.without(tokens.visual & left, counts)
            for name in ("keys", "values"):
                entries = getattr(cached, name)
                trimmed = take(entries[:, :, past:].transpose(0, 1), select).transpose(0, 1)
                setattr(cached, name, torch.cat((entries[:, :, :past], trimmed), dim=2))
            old = state.ragged.real[layer]
            if kept.padded or (old is not None and past):
                before = kept.real.new_ones(kept.real.shape[0], past) if old is None else old[:, :past]
                state.ragged.real[layer] = torch.cat((before.to(kept.real.device), kept.real), dim=1)
            else:
                state.ragged.real[layer] = None
            state.ragged.lengths[layer] = past + kept.width
            state.ragged.pruned[layer] = True

    def _hidden_keys(self, layer: int, past: int) -> Tensor | None:
        """Keys of rows that have left but were not yet removed, ``[batch, past + width]`` bool."""
        assert self.tokens is not None and self.exits is not None
        if not self._pending:
            return None
        hidden = self.tokens.visual & (self.exits.layer < layer)[:, None]
        return torch.cat((hidden.new_zeros(hidden.shape[0], past), hidden), dim=1) if past else hidden

    def _remove(self, removed: Tensor, counts: tuple[int, ...]) -> Tensor:
        assert self.tokens is not None
        self.tokens, select = self.tokens.without(removed, counts)
        self._positions = self._mask = None
        self._seen = self.tokens
        present.set(self.tokens)
        return select

    def _compact(
        self, kwargs: dict[str, Any], real: Tensor | None, past: int, like: Tensor, implementation: str
    ) -> dict[str, Any]:
        tokens, new = self.tokens, like.shape[1]
        kwargs = dict(kwargs)
        if tokens is not self.prompt:
            assert tokens is not None and self.prompt is not None
            if self._positions is None:
                self._positions = gather_positions(kwargs, tokens.index, self.prompt.width)
            kwargs.update(self._positions)
        mask = self._mask
        if mask is None or past:  # with a past, two layers of one width can hide different entries
            mask = layer_mask(implementation, new, past + new, real, dtype=like.dtype, device=like.device)
            self._mask = mask
        kwargs["attention_mask"] = mask
        return kwargs
