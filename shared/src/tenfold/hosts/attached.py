"""Several methods on one host: who is attached, in which order, and which tokens they have left in this pass.

    refuse_beside(model, "DyVTE", after=("FitPrune",), reason="a host of whole layers, or FitPrune attached first")
    join(model, "DyVTE")
    ...
    leave(model, "DyVTE")

Methods put their own forward in place of a layer's, one around the other; so they come off in the reverse order. A
method names those that it can be attached after; beside any other it is refused.

What lets tokens leave says so in `present`; what is around it, or inside it, reads there which are left.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from contextvars import ContextVar
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from tenfold import UserError
from tenfold.hosts.ragged import Tokens, cache_length, kv_cache, take, take_positions
from tenfold.hosts.structure import visual_mask

# Arguments of a decoder layer that are understood; another one that holds a value per token cannot be compacted.
HANDLED = {"attention_mask", "position_ids", "position_embeddings", "past_key_values", "cache", "cache_position"}
_NAMES = "_tenfold_attached"
# Those that the last method that let some leave has left, in this thread's pass; None: nobody did.
present: ContextVar[Tokens | None] = ContextVar("present", default=None)


def attached(model: Any) -> tuple[str, ...]:
    """What is attached to a host, the first one first."""
    return tuple(getattr(model, _NAMES, ()))


def refuse_beside(model: Any, name: str, *, after: Collection[str] = (), reason: str) -> None:
    """Refuse a host to which something is attached that this method cannot come after.

    Args:
        model: the host, unwrapped.
        after: methods that it can be attached after. reason: what is expected otherwise.

    Raises:
        UserError: it is.
    """
    others = [other for other in attached(model) if other not in after and other != name]
    if others:
        raise UserError(f"{name} beside {others[0]}", type(model).__name__, reason)


def join(model: Any, name: str) -> None:
    """Note that a method is attached, after all that are."""
    setattr(model, _NAMES, (*attached(model), name))


def leave(model: Any, name: str) -> None:
    """Note that it is not any more; called before anything is undone.

    Raises:
        UserError: another one was attached after it and still is.
    """
    names = attached(model)
    if name in names and names[-1] != name:
        raise UserError(f"{name} detached before {names[-1]}", type(model).__name__, f"{names[-1]} detached first")
    if names[:-1]:
        setattr(model, _NAMES, names[:-1])
    elif names:
        delattr(model, _NAMES)


def left_by_another(prompt: Tokens, seen: Tokens | None) -> Tokens | None:
    """The tokens that are present, where another method has let some leave since.

    Args:
        prompt: this method's own description of the prompt.
        seen: what `present` held when it last looked, or set it.

    Returns:
        None where nothing has changed; else the present tokens, their text as ``prompt`` marks it.
    """
    now = present.get()
    if now is None or now is seen:
        return None
    now = now.to(prompt.index.device)
    return replace(now, text=prompt.text.gather(1, now.index))


def gather_positions(kwargs: Mapping[str, Any], select: Tensor, length: int) -> dict[str, Any]:
    """A decoder layer's positional arguments at ``select [batch, kept]`` of a prompt of ``length`` tokens; those that
    a method around has cut to the kept tokens already are left out.

    Raises:
        UserError: the layer takes a value per token that is not understood.
    """
    for name, value in kwargs.items():
        if name not in HANDLED and isinstance(value, Tensor) and value.ndim > 1 and length in value.shape[1:]:
            raise UserError(f"decoder layers take {name!r} per token", "this host", "positions and a mask only")
    kept = select.shape[1]
    gathered: dict[str, Any] = {}
    position_ids, angles = kwargs.get("position_ids"), kwargs.get("position_embeddings")
    if position_ids is not None and (kept == length or position_ids.shape[-1] != kept):
        gathered["position_ids"] = take_positions(position_ids, select)
    if angles is not None and (kept == length or angles[0].shape[-2] != kept):
        gathered["position_embeddings"] = tuple(take(part, select) for part in angles)
    return gathered


def visual_of_pass(model: Any, inputs: Mapping[str, Any], given: Tensor | None, batch: int, length: int) -> Tensor:
    """Which positions of a pass hold a visual token, ``[batch, length]`` bool: by the placeholders in its input ids, or
    for ``inputs_embeds`` by the mask that was given at attachment.

    Raises:
        UserError: a mask that does not fit, or none where ids are missing.
    """
    if inputs.get("input_ids") is not None or given is None:
        return visual_mask(model, inputs)
    mask, device = given.bool(), inputs["inputs_embeds"].device
    if mask.ndim != 2 or mask.shape[1] != length or batch % mask.shape[0]:
        if cache_length(kv_cache(inputs), 0):
            return torch.zeros(batch, length, dtype=torch.bool, device=device)  # a later turn, of text alone
        expected = f"[{batch}, {length}] as inputs_embeds"
        raise UserError("visual_mask does not fit inputs_embeds", f"mask {list(mask.shape)}", expected)
    return mask.to(device).repeat_interleave(batch // mask.shape[0], dim=0)  # beams of a row stand together
