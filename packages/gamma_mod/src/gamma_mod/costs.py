"""What skipping saves, counted: FLOPs of the paper's tables, parameters, KV cache, and what really runs (section 9).

A layer on n tokens costs ``F(n) = 8 n D^2 + 4 n^2 D + 6 n D M`` FLOPs (a multiply-accumulate is two): projections,
scores and their product with the values, gated MLP. Norms, softmax, router, embeddings, language-model head and vision
tower are left out, as in the paper. Its tables take a nominal prompt and a measured skip:

    model_flops(LLAVA_7B, 1400, skip=0.577, converted=28)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from gamma_mod.routing import budget


@dataclass(frozen=True)
class DecoderShape:
    """Dimensions of a text decoder.

    Attributes:
        layers: L. hidden: D. intermediate: M, width of the gated MLP.
        heads, kv_heads, head_dim: of attention; without grouping ``heads`` twice, and ``hidden / heads``.
        vocabulary: rows of embedding and language-model head.
    """

    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int = 32000

    @classmethod
    def of(cls, config: Any) -> DecoderShape:
        """Read them from a transformers configuration, of a vision-language model or of its decoder."""
        text = config.get_text_config()
        heads = text.num_attention_heads
        return cls(
            layers=text.num_hidden_layers,
            hidden=text.hidden_size,
            intermediate=text.intermediate_size,
            heads=heads,
            kv_heads=getattr(text, "num_key_value_heads", None) or heads,
            head_dim=getattr(text, "head_dim", None) or text.hidden_size // heads,
            vocabulary=text.vocab_size,
        )


VICUNA_7B = DecoderShape(32, 4096, 11008, 32, 32, 128)
VICUNA_13B = DecoderShape(40, 5120, 13824, 40, 40, 128)
# The nominal prompts behind the paper's TFLOPs.
NOMINAL = {"llava": 800, "llava-hr": 1400, "mini-gemini-hd": 4000}


def layer_flops(tokens: int, shape: DecoderShape) -> int:
    """F(n), the paper's cost of a layer; full attention matrices, as many key/value heads as query heads."""
    d, m = shape.hidden, shape.intermediate
    return 8 * tokens * d**2 + 4 * tokens**2 * d + 6 * tokens * d * m


def model_flops(shape: DecoderShape, tokens: int, skip: float = 0.0, converted: int | None = None) -> int:
    """Dense layers on all tokens, converted ones on ``int(tokens * (1 - skip))``.

    Args:
        tokens: of the prompt.
        skip: share that converted layers skip.
        converted: how many layers are converted; None: all but four.
    """
    converted = shape.layers - 4 if converted is None else converted
    dense = (shape.layers - converted) * layer_flops(tokens, shape)
    return dense + converted * layer_flops(int(tokens * (1 - skip)), shape)


def training_flops(shape: DecoderShape, tokens: int, routable: int, routing_ratio: float, converted: int) -> int:
    """The same in training, where the budget fixes how many tokens converted layers compute."""
    kept = budget(tokens, routable, routing_ratio)
    return (shape.layers - converted) * layer_flops(tokens, shape) + converted * layer_flops(kept, shape)


def training_skip(tokens: int, routable: int, routing_ratio: float) -> float:
    """(T - k) / T: of a whole row, what training skips in a converted layer; the routing ratio counts routable tokens
    only."""
    return 1 - budget(tokens, routable, routing_ratio) / tokens


def kv_kept(layers: int, converted: int, skip: float) -> float:
    """Share of the dense model's KV cache that is kept."""
    return (layers - converted + converted * (1 - skip)) / layers


def router_parameters(hidden: int, routers: int = 1) -> int:
    """Of one shared router, or of several."""
    return 2 * hidden * routers


def true_layer_flops(tokens: int, shape: DecoderShape, keys: int | None = None) -> int:
    """What a layer's matrix products cost, with grouped heads and full (not halved) attention matrices.

    Args:
        tokens: queries.
        keys: keys that they look at; None: as many as queries.
    """
    q, k = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    projections = tokens * shape.hidden * (2 * q + 2 * k)
    products = 2 * tokens * (tokens if keys is None else keys) * q
    return 2 * (projections + products + 3 * tokens * shape.hidden * shape.intermediate)


def prefill_flops(kept: Sequence[int], shape: DecoderShape) -> int:
    """What a prompt really costs, given the tokens that each layer computes; the router reads all of them elsewhere."""
    return sum(true_layer_flops(tokens, shape) for tokens in kept)


def decode_bytes(
    executed: Sequence[bool], kv_lengths: Sequence[int], shape: DecoderShape, bytes_per_value: int = 2
) -> int:
    """What one generated token reads: weights and cached entries of the layers that compute it, and the head.

    Args:
        executed: per layer, whether the token is computed there.
        kv_lengths: per layer, entries that it looks at, itself included.
    """
    q, k = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    weights = shape.hidden * (2 * q + 2 * k) + 3 * shape.hidden * shape.intermediate
    read = sum(weights + 2 * k * length for run, length in zip(executed, kv_lengths, strict=True) if run)
    return bytes_per_value * (read + shape.hidden * shape.vocabulary)
