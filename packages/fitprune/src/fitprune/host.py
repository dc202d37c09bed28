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


def refuse_pruned_cache(model: nn.Module, cache: Any) -> None:
    """For a pass that prunes nothing: raise UserError if another attachment has pruned this cache."""
    state = getattr(cache, CACHE_STATE, None)
    if state is not None and any(state.pruned):
        raise UserError("this cache was pruned elsewhere", type(model).__name__, "a cache made inside this context")


def refuse_generation(model: Any, options: Mapping[str, Any]) -> None:
    """Refuse at the start of `generate` what it would break inside.

    Args:
        model: the host.
        options: keyword arguments of `generate`.

    Raises:
        UserError: guesses that are cropped again, no cache, a static one, or a prompt in chunks.
    """
    config = options.get("generation_config") or getattr(model, "generation_config", None)

    def asked(name: str) -> Any:
        return options[name] if options.get(name) is not None else getattr(config, name, None)

    name = type(model).__name__
    guessing = ("assistant_model", "prompt_lookup_num_tokens", "assistant_early_exit")
    if given := next((one for one in guessing if asked(one) is not None), None):
        raise UserError(
            f"assisted generation under pruning ({given})", name, "no guesses: they are cropped from the cache again"
        )
    if asked("use_cache") is False:
        raise UserError("use_cache=False under pruning", name, "a cache: tokens leave once, at the prefill")
    if asked("prefill_chunk_size") is not None:
        raise UserError("a prompt in chunks under pruning", name, "no prefill_chunk_size: one pass over the prompt")
    kind = asked("cache_implementation")
    if isinstance(kind, str) and ("static" in kind or "quantized" in kind):
        raise UserError(f"a {kind} cache under pruning", name, "a dynamic one: layers hold different numbers of tokens")
