"""What a call of the host must not bring while tokens leave inside it, each with its reason.

Whether a host can be served at all is read off its structure, once, when the pruner is attached
(`tenfold.hosts.structure`: its decoder layers, its blocks down to what their forward names, its visual tokens).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from tenfold import UserError
from tenfold.hosts.ragged import cache_length, kv_cache

CACHE_STATE = "fitprune_state"  # the attribute of a KV cache that holds its `RaggedCache`


def refuse_input(model: nn.Module, inputs: Mapping[str, Any], attention: str, owner: int, slots: Sequence[int]) -> None:
    """Refuse what pruning cannot serve.

    Args:
        model: the host.
        inputs: arguments of its forward by name.
        attention: the name of its attention implementation.
        owner: the attachment's number, which a cache that it pruned carries.
        slots: of the cache that the decoder's attentions use.

    Raises:
        UserError: labels, a static cache, a mask of another form, another attention, or a cache that was pruned
            elsewhere or changed since.
    """
    name = type(model).__name__
    if inputs.get("labels") is not None:
        raise UserError("labels under pruning", name, "no labels: logits exist for the surviving tokens only")
    cache = kv_cache(inputs)
    if getattr(cache, "is_compileable", False):
        raise UserError(
            "a static cache under pruning", name, "a dynamic cache: layers hold different numbers of tokens"
        )
    mask = inputs.get("attention_mask")
    if mask is not None and (not isinstance(mask, Tensor) or mask.ndim != 2):
        raise UserError("an attention mask that is not [batch, tokens]", name, "the two-dimensional padding mask")
    if attention not in ("eager", "sdpa") and "flash" not in attention:
        raise UserError(f"attention implementation {attention!r}", name, "sdpa, eager or flash attention")
    state = getattr(cache, CACHE_STATE, None)
    if state is not None and state.cut and inputs.get("position_ids") is None:
        raise UserError("tokens removed before layer 0 leave positions open", name, "generate(), or position_ids")
    lengths = [cache_length(cache, slot) for slot in slots]
    if (state is None and len(set(lengths)) > 1) or (state is not None and state.owner != owner):
        raise UserError("this cache was pruned elsewhere", name, "a cache made inside this context, or a new one")
    if state is not None and [state.lengths[slot] for slot in slots] != lengths:
        raise UserError("a pruned cache was changed between passes", name, "no cropping (assisted generation)")
