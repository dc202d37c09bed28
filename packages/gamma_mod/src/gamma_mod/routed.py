"""One converted decoder layer: it stands in for the block's ``forward`` and leaves the block's modules as they are."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from gamma_mod import report
from gamma_mod.cache import KeptTokens, PassCache, kept_tokens
from gamma_mod.forward_pass import ForwardPass
from gamma_mod.layer import compute, compute_one, pack
from gamma_mod.routing import auxiliary_loss, keep_probability, per_row
from tenfold import UserError
from tenfold.hosts.attached import HANDLED
from tenfold.hosts.ragged import cache_name, kv_cache, layer_mask

if TYPE_CHECKING:
    from gamma_mod.conversion import Conversion


class RoutedLayer:
    """Routes the tokens of one layer.

    Args:
        conversion: of its model.
        index: its place among the converted layers.
        number: its place among all layers.
        block: the host's decoder block.
    """

    def __init__(self, conversion: Conversion, index: int, number: int, block: Any) -> None:
        self.conversion, self.index, self.number, self.block = conversion, index, number, block
        self._names = list(inspect.signature(inspect.unwrap(type(block).forward)).parameters)[1:]
        self._cache_name = cache_name(type(block).forward)
        # Accelerate's hooks (device_map) keep the forward they wrap under another name.
        self._slot = "_old_forward" if hasattr(block, "_hf_hook") else "forward"
        self._before = block.__dict__.get(self._slot)
        setattr(block, self._slot, self.forward)

    def remove(self) -> None:
        """Put the block's own forward back."""
        if self._before is None:
            delattr(self.block, self._slot)
        else:
            setattr(self.block, self._slot, self._before)

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The block's forward: ``[batch, tokens, width]`` -> the same shape."""
        arguments = dict(zip(self._names[1:], args, strict=False)) | kwargs
        run = self.conversion.running()
        if run.decoding:
            return self._decode(hidden_states, run, arguments)
        self._refuse(arguments, hidden_states)
        block, router, which = self.block, self.conversion.router, self.index
        checkpoint = self._checkpointing(run)
        normed: Tensor | None = None
        if checkpoint is None:
            normed = block.input_layernorm(hidden_states)
            logits = router(normed, which)
        else:
            logits = checkpoint(lambda states: router(block.input_layernorm(states), which), hidden_states)
        keep_prob = keep_probability(logits)  # [batch, tokens]
        chosen, counts = run.choose(self.number, keep_prob)
        if counts is None:
            counts = tuple(chosen.sum(1).tolist())  # the one wait of this layer: how much there is to compute
        if run.training:
            counted = None if run.counted is None else run.counted.to(chosen.device)
            run.auxiliary.append(auxiliary_loss(logits, chosen, counted))
        report.note(self.number, run, keep_prob, chosen, counts)
        cache = None if checkpoint is not None else self._cache(arguments, hidden_states)
        if not any(counts):
            return hidden_states  # nothing is kept: the layer is the identity, its cache stays as it is
        kept = pack(chosen, counts)
        past = (0,) * len(counts) if cache is None else cache.lengths
        rotation = self.conversion.positions.of_prompt(kept, past, hidden_states, arguments["position_embeddings"])
        attend = self._attention(arguments, cache, kept.counts, past, rotation)
        attends = None if run.attends is None else run.attends.to(chosen.device)

        def through(states: Tensor, probability: Tensor) -> Tensor:
            return compute(block, states, probability, kept, attend, normed, attends)

        if checkpoint is None:
            return through(hidden_states, keep_prob)
        # The indices of the first pass are kept: computed again, a tie might fall the other way.
        return checkpoint(through, hidden_states, keep_prob)

    def _decode(self, hidden: Tensor, run: ForwardPass, arguments: dict[str, Any]) -> Tensor:
        """One generated token a row: skipped, it launches nothing but the router."""
        normed = self.block.input_layernorm(hidden)
        keep_prob = keep_probability(self.conversion.router(normed, self.index))  # [batch, 1]
        executes = None
        rows = [True] * hidden.shape[0]
        if run.config.decode_skip:
            executes = keep_prob >= run.config.decode_threshold
            rows = executes[:, 0].tolist()  # the one wait of this layer: whether anything is to be launched
        counts = tuple(map(int, rows))
        report.note(self.number, run, keep_prob, executes, counts)
        cache = self._cache(arguments, hidden)
        if cache is None:
            raise UserError("a decoding step without a KV cache", self.conversion.name, "use_cache=True")
        if not any(rows):
            return hidden
        past = cache.lengths
        rotation = self.conversion.positions.of_token(past, hidden, arguments["position_embeddings"])
        attend = self._attention(arguments, cache, counts, past, rotation)
        return compute_one(self.block, hidden, keep_prob, None if all(rows) else executes, attend, normed)

    def _attention(
        self,
        arguments: dict[str, Any],
        cache: KeptTokens | None,
        counts: tuple[int, ...],
        past: tuple[int, ...],
        rotation: tuple[Tensor, Tensor],
    ) -> Callable[[Tensor], Tensor]:
        arguments = {
            name: value
            for name, value in arguments.items()
            if name not in ("position_ids", "cache_position", "past_key_values", "cache")
        }
        implementation = self.conversion.attention

        def attend(normed: Tensor) -> Tensor:
            mask = _mask(implementation, normed, past, cache)
            passed = arguments | {"attention_mask": mask, "position_embeddings": rotation}
            passed[self._cache_name] = None if cache is None else PassCache(cache, counts)
            return self.block.self_attn(hidden_states=normed, **passed)[0]

        return attend

    def _cache(self, arguments: dict[str, Any], hidden: Tensor) -> KeptTokens | None:
        cache = kv_cache(arguments)
        if cache is None:
            return None
        layer = kept_tokens(cache, self.number, self.conversion.name)
        layer.pass_by(hidden.shape[0], hidden.shape[1], self.conversion.name)
        return layer

    def _checkpointing(self, run: ForwardPass) -> Callable[..., Tensor] | None:
        on = run.training and torch.is_grad_enabled() and getattr(self.block, "gradient_checkpointing", False)
        return self.block._gradient_checkpointing_func if on else None

    def _refuse(self, arguments: dict[str, Any], hidden: Tensor) -> None:
        length = hidden.shape[1]
        for name, value in arguments.items():
            if name not in HANDLED and isinstance(value, Tensor) and value.ndim > 1 and length in value.shape[1:]:
                where = self.conversion.name
                raise UserError(f"decoder layers take {name!r} per token", where, "positions and a mask only")


def _mask(implementation: str, normed: Tensor, past: tuple[int, ...], cache: KeptTokens | None) -> Tensor | None:
    """Which keys the kept tokens see: their own row's entries before them, and themselves.

    None where plain causal attention says the same: with an empty past always, as unused slots stand behind.
    """
    queries = normed.shape[1]
    if cache is None or not any(past):
        return layer_mask(implementation, queries, queries, None, dtype=normed.dtype, device=normed.device)
    keys = cache.width_after(queries)
    if queries == 1 and set(past) == {keys - 1}:
        return None
    device = normed.device
    last = per_row(past, device)[:, :, None] + torch.arange(queries, device=device)[:, None]  # [batch, queries, 1]
    seen = (torch.arange(keys, device=device) <= last)[:, None]  # [batch, 1, queries, keys]
    if implementation == "sdpa":
        return seen
    return torch.zeros(seen.shape, dtype=normed.dtype, device=device).masked_fill_(~seen, torch.finfo(normed.dtype).min)
