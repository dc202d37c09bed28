"""Bookkeeping for a batch whose rows lose different numbers of tokens, and for the ragged KV cache that
results.

Every row keeps its tokens in order. A layer's width is the longest surviving row; shorter rows are padded,
at the end if the prompt was padded there, else at the start, so that the last column stays the last text
token. Padding is hidden by a key mask of that layer. Positions are those of the unpruned prompt; they are
gathered, never renumbered.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from tenfold import UserError


@dataclass(frozen=True)
class Tokens:
    """The tokens that are present at the input of a layer, in one forward pass over a prompt.

    Attributes:
        index: ``[batch, width]`` int64, each token's column in the unpruned prompt.
        real: ``[batch, width]`` bool, False at padding.
        visual: ``[batch, width]`` bool.
        text: ``[batch, width]`` bool, text after the first visual token of the row.
        num_real: tokens of every row without padding (Python ints: no device synchronisation in the layers).
        num_visual: visual tokens of every row.
        prompt_visual: the same in the unpruned prompt, the V that a recipe is scaled to.
        first_visual: how many real tokens stand before the first visual one, per row (``num_real`` if there
            is none).
        pad_end: padding stands at the end of the rows.
        closing: text tokens after the last visual one, per row; 0: the row ends in its image.
        question: ``[batch]`` int64, what tells a row's prompt from others by its ids alone; None where nobody said.
    """

    index: Tensor
    real: Tensor
    visual: Tensor
    text: Tensor
    num_real: tuple[int, ...]
    num_visual: tuple[int, ...]
    prompt_visual: tuple[int, ...]
    first_visual: tuple[int, ...]
    pad_end: bool
    closing: tuple[int, ...] = ()
    question: Tensor | None = None

    @classmethod
    def of_prompt(cls, visual: Tensor, attention_mask: Tensor | None) -> Tokens | None:
        """Describe an unpruned prompt without a past, or return None when it holds no visual token.

        Args, Raises: as for `read_prompt`.
        """
        return read_prompt(visual, attention_mask).tokens

    @property
    def width(self) -> int:
        return self.index.shape[1]

    @property
    def padded(self) -> bool:
        return any(count != self.width for count in self.num_real)

    @property
    def unasked(self) -> tuple[bool, ...]:
        """Which rows end in their image: no text after it says what matters in it."""
        return tuple(images > 0 and not words for images, words in zip(self.prompt_visual, self.closing, strict=False))

    @property
    def removable(self) -> Tensor:
        """``[batch, width]`` bool, the visual tokens that may leave: all but a row's last token, whose logits are
        asked for."""
        if not any(self.unasked):
            return self.visual
        columns = torch.arange(self.width, device=self.real.device)
        return self.visual & (columns != (columns * self.real).argmax(1, keepdim=True))

    @property
    def first_row(self) -> int:
        """The first column that holds a visual token in any row."""
        starts = [
            before if self.pad_end else self.width - count + before
            for count, before, images in zip(self.num_real, self.first_visual, self.num_visual, strict=True)
            if images
        ]
        return min(starts, default=self.width)

    def without(self, removed: Tensor, counts: tuple[int, ...]) -> tuple[Tokens, Tensor]:
        """Drop tokens.

        Args:
            removed: ``[batch, width]`` bool.
            counts: how many it marks in every row.

        Returns:
            The survivors, and ``[batch, new width]`` int64, their columns in the present layer's input.
        """
        num_real = tuple(n - r for n, r in zip(self.num_real, counts, strict=True))
        width = max(num_real)
        kept = self.real & ~removed
        # A stable sort of the flag moves padding to one side and leaves the survivors in order.
        order = torch.argsort(kept.int(), dim=1, descending=self.pad_end, stable=True)
        select = order[:, :width] if self.pad_end else order[:, order.shape[1] - width :]
        survivors = replace(
            self,
            index=self.index.gather(1, select),
            real=kept.gather(1, select),
            visual=(self.visual & kept).gather(1, select),
            text=self.text.gather(1, select),
            num_real=num_real,
            num_visual=tuple(n - r for n, r in zip(self.num_visual, counts, strict=True)),
        )
        return survivors, select

    def to(self, device: torch.device) -> Tokens:
        if self.index.device == device:
            return self
        moved = {name: getattr(self, name).to(device) for name in ("index", "real", "visual", "text")}
        question = None if self.question is None else self.question.to(device)
        return replace(self, **moved, question=question)


@dataclass(frozen=True)
class Reading:
    """What one look at a prompt tells the host.

    Attributes:
        tokens: None where the prompt holds no visual token.
        real: ``[batch, tokens]`` bool, False at padding; None when nothing is padded.
        past_real: ``[batch, past]`` bool, the same of what is cached already.
    """

    tokens: Tokens | None
    real: Tensor | None
    past_real: Tensor | None


def read_prompt(visual: Tensor, attention_mask: Tensor | None, past: int = 0, *, asked: bool = True) -> Reading:
    """Describe an unpruned prompt; the host waits for the device once.

    Args:
        visual: ``[batch, tokens]`` bool.
        attention_mask: ``[batch, past + tokens]``, zero at padding, or None.
        past: entries that are cached already.
        asked: a text has to follow a row's image.

    Raises:
        UserError: a row ends in its image, with ``asked``: the image and the question after it were split over two
            passes, or there is no question, so that nothing can say which tokens matter.
    """
    width = visual.shape[1]
    mask = None if attention_mask is None else attention_mask.bool()
    real = torch.ones_like(visual) if mask is None else mask[:, -width:]
    cached = real[:, :0] if mask is None else mask[:, :past]
    visual = visual & real
    after = visual.cumsum(1) > 0
    text = real & after & ~visual
    before = visual.flip(1).cumsum(1).flip(1) > 0
    closing = real & ~visual & ~before  # text after the last visual token
    counted = (real, visual, real & ~after, closing, real[:, -1:], real[:, :1], ~cached)
    facts = torch.stack([part.sum(1) for part in counted], dim=1).tolist()
    num_real, num_visual, first_visual, num_closing, last, first, gaps = zip(*facts, strict=True)
    padding = real if any(count < width for count in num_real) else None
    past_real = cached if any(gaps) else None
    if not any(num_visual):
        return Reading(None, padding, past_real)
    for row, (images, words) in enumerate(zip(num_visual, num_closing, strict=True)):
        if asked and images and not words:
            raise UserError(
                "no text after the image in this forward pass",
                f"row {row} of the batch",
                "one pass with the whole image and its question: no prompt chunk may split them",
            )
    index = torch.arange(width, device=visual.device).expand(visual.shape)
    pad_end = not all(last) and all(first)
    tokens = Tokens(index, real, visual, text, num_real, num_visual, num_visual, first_visual, pad_end, num_closing)
    return Reading(tokens, padding, past_real)


def counts_on(counts: Sequence[int], device: torch.device) -> Tensor:
    """Numbers of the host as a tensor ``[len(counts)]`` int64 on a device, without waiting for it."""
    if len(set(counts)) == 1:  # a fill, not a copy from host to device
        return torch.full((len(counts),), counts[0], device=device)
    if device.type != "cuda":
        return torch.tensor(counts, device=device)
    return torch.tensor(counts, pin_memory=True).to(device, non_blocking=True)


def take(states: Tensor, select: Tensor) -> Tensor:
    """Gather rows: ``states [..., batch or 1, tokens, width]`` at ``select [batch, kept]``, which names no column
    of a row twice -> ``[..., batch, kept, width]``."""
    batch, width = select.shape[0], states.shape[-1]
    if states.ndim == 3 and states.shape[0] == batch:  # whole rows are copied: several times as fast as by element
        return _Rows.apply(states.flatten(0, 1), _flat(select, states.shape[1])).view(batch, -1, width)
    states = states.expand(*states.shape[:-3], batch, *states.shape[-2:])
    return states.gather(-2, select.unsqueeze(-1).expand(*states.shape[:-2], select.shape[1], width))


def put(states: Tensor, select: Tensor, new: Tensor) -> Tensor:
    """Replace rows: ``states [batch, tokens, width]`` with ``new [batch, kept, width]`` at ``select [batch,
    kept]``, which names no column twice; a new tensor."""
    at = _flat(select, states.shape[1])
    return states.flatten(0, 1).index_copy(0, at, new.flatten(0, 1)).view_as(states)


class _Rows(torch.autograd.Function):
    """Rows that are all different: their gradients are put back, not added one after the other."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, at: Tensor) -> Tensor:
        ctx.save_for_backward(at)
        ctx.rows = states.shape[0]
        return states.index_select(0, at)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (at,) = ctx.saved_tensors
        return gradient.new_zeros(ctx.rows, gradient.shape[1]).index_copy(0, at, gradient), None


def _flat(select: Tensor, tokens: int) -> Tensor:
    """Columns of every row as rows of the flattened batch: ``[batch, kept]`` -> ``[batch * kept]``."""
    if select.shape[0] == 1:
        return select[0]
    return (select + tokens * torch.arange(select.shape[0], device=select.device)[:, None]).flatten()


def take_positions(position_ids: Tensor, select: Tensor) -> Tensor:
    """Gather ``position_ids [..., batch or 1, tokens]`` at ``select [batch, kept]``."""
    position_ids = position_ids.expand(*position_ids.shape[:-2], *((select.shape[0], position_ids.shape[-1])))
    return position_ids.gather(-1, select.expand(*position_ids.shape[:-1], select.shape[1]))


@dataclass
class RaggedCache:
    """What a pruned KV cache holds beside its tensors: per layer, its length and which entries are padding.

    It travels as an attribute of the transformers cache, so it lives, and is copied, with it. Layer ``i``
    caches the tokens at its input: tokens removed inside layer ``i`` stay in the caches of layers ``0..i``.
    """

    owner: int
    lengths: list[int]
    real: list[Tensor | None]  # per layer [batch, length] bool; None: nothing is padded
    pruned: list[bool]  # per layer: it lacks entries that the prompt had
    cut: bool = False  # also layer 0 does: its length is not the next token's position

    def extend(self, layer: int, real: Tensor | None, shape: torch.Size, pruned: bool) -> Tensor | None:
        """Record new entries in a layer's cache.

        Args:
            layer: its number.
            real: ``[batch, new]`` bool, None if none of the new entries is padding.
            shape: ``(batch, new)``.
            pruned: tokens of this pass were removed in an earlier layer.

        Returns:
            ``[batch, old + new]`` bool, None if nothing is padded.

        Raises:
            UserError: the batch is another than the one that the cache was made with.
        """
        batch, new = shape
        old, length = self.real[layer], self.lengths[layer]
        if old is not None and old.shape[0] != batch:
            raise UserError("a ragged cache with another batch", f"{batch} rows", f"{old.shape[0]} rows")
        if old is not None or real is not None:
            device = old.device if real is None else real.device  # type: ignore[union-attr]
            old = torch.ones(batch, length, dtype=torch.bool, device=device) if old is None else old.to(device)
            real = torch.ones(batch, new, dtype=torch.bool, device=device) if real is None else real
            self.real[layer] = torch.cat((old, real), dim=1)
        self.lengths[layer] = length + new
        self.pruned[layer] |= pruned
        return self.real[layer]

    def follow(self, cache: Any) -> None:
        """Let the bookkeeping of rows follow what is done to the rows of a transformers cache: reordered, chosen or
        repeated, as beams and batches that shrink need it."""
        for name in ("reorder_cache", "batch_select_indices", "batch_repeat_interleave"):
            if hasattr(type(cache), name):
                setattr(cache, name, _Following(self, cache, name))


@dataclass
class _Following:
    """A method of a cache that changes its rows, and its `RaggedCache`'s rows with them; copied with the cache."""

    ragged: RaggedCache
    cache: Any
    name: str

    def __call__(self, rows: Tensor | int) -> None:
        getattr(type(self.cache), self.name)(self.cache, rows)
        for layer, real in enumerate(self.ragged.real):
            if real is not None:
                chosen = real.repeat_interleave(rows, 0) if isinstance(rows, int) else real[rows.to(real.device)]
                self.ragged.real[layer] = chosen


def layer_mask(
    implementation: str,
    queries: int,
    keys: int,
    real: Tensor | None,
    *,
    dtype: torch.dtype,
    device: torch.device,
) -> Tensor | None:
    """The attention mask of one layer, in the form that its attention implementation takes.

    Args:
        implementation: "eager", "sdpa" or a flash attention.
        queries, keys: number of queries (the last tokens) and of keys (cached and present).
        real: ``[batch, keys]`` bool, False at padding; None when nothing is padded.
        dtype: of the additive mask that eager attention takes.

    Returns:
        None where the implementation's own causal path says the same; else ``[batch or 1, 1, queries,
        keys]``, bool for SDPA and additive for eager, or the two-dimensional padding mask for flash
        attention.
    """
    if "flash" in implementation:
        return real
    if queries == 1 and real is None:
        return None
    if implementation == "sdpa" and queries == keys and real is None:
        return None
    position = torch.arange(keys, device=device)
    seen = (position <= position[keys - queries :, None])[None, None]  # [1, 1, queries, keys]
    if real is not None:
        seen = seen & real[:, None, None, :].to(device)
        # Padding queries see themselves, so that no softmax runs over nothing.
        seen = seen | (position == position[keys - queries :, None])
    if implementation == "sdpa":
        return seen
    return torch.zeros(seen.shape, dtype=dtype, device=device).masked_fill_(~seen, torch.finfo(dtype).min)


def kv_cache(arguments: Mapping[str, Any]) -> Any:
    """The KV cache among a forward's arguments: `cache` from transformers 5.24 on, `past_key_values` before."""
    cache = arguments.get("cache")
    return arguments.get("past_key_values") if cache is None else cache


def cache_name(forward: Callable[..., Any]) -> str:
    """What a forward of transformers calls its KV cache: `cache` or `past_key_values`, as in :func:`kv_cache`."""
    return "cache" if "cache" in inspect.signature(forward).parameters else "past_key_values"


def cache_length(cache: Any, layer: int) -> int:
    """Entries in one layer of a transformers cache, padding included; 0 for a layer not yet written."""
    return 0 if cache is None else int(cache.get_seq_length(layer))
