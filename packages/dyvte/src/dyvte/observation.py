"""A look at the queries and keys of a layer while its host runs: its attention stays the host's own."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from transformers import AttentionInterface

ATTENTION = "dyvte"


@dataclass(frozen=True)
class Observed:
    """Queries and keys of a layer, after rotary embedding.

    Attributes:
        query: ``[batch, heads, width, head_dim]``.
        key: ``[batch, kv_heads, past + width, head_dim]``.
        scaling: factor of the logits.
        real_keys: ``[batch, past + width]`` bool, False where a key is padding or hidden; None where none is.
    """

    query: Tensor
    key: Tensor
    scaling: float
    real_keys: Tensor | None = None


class Observer:
    """Shows ``see`` the queries and keys of one attention module, from construction to ``remove``.

    Args:
        attention: a transformers attention module.
        see: called with what it computes with.
    """

    def __init__(self, attention: Any, see: Callable[[Observed], None]) -> None:
        self.attention: Any = attention
        self.see = see
        self.config = self.attention.config
        config = copy.copy(self.config)
        config._attn_implementation_internal = ATTENTION
        self.attention.config = config
        self.attention._dyvte_observer = self

    def function(self) -> Callable[..., Any]:
        implementation = self.config._attn_implementation
        if implementation == "eager":
            return sys.modules[type(self.attention).__module__].eager_attention_forward
        return AttentionInterface()[implementation]

    def remove(self) -> None:
        self.attention.config = self.config
        del self.attention._dyvte_observer


def _observed_attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, Tensor | None]:
    observer: Observer = module._dyvte_observer
    output = observer.function()(module, query, key, value, attention_mask, **kwargs)
    observer.see(Observed(query, key, kwargs.get("scaling") or query.shape[-1] ** -0.5))
    return output


AttentionInterface.register(ATTENTION, _observed_attention)
