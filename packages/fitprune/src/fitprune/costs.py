"""What pruning saves, counted: multiply-accumulates of visual tokens as the official code counts them, and more.

Four ways of counting, each under its own name:

- the official formula (`layer_macs`, `recipe_macs`): visual tokens only, as many key/value heads as query heads, full
  attention matrices; embeddings, norms, the language-model head and the vision tower are left out. Budgets and recipes
  are stated in it.
- the whole prompt (`prompt_flops`): the same with the text tokens added in every layer; FLOPs are 2 x MACs.
- what really runs (`true_layer_macs`): grouped key/value heads, and where in the layer the tokens leave.
- decoding and the KV cache (`decode_macs`, `kv_bytes`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any


@dataclass(frozen=True)
class DecoderShape:
    """Dimensions of a text decoder.

    Attributes:
        layers: L.
        hidden: d.
        intermediate: m, width of the gated MLP.
        heads: query heads.
        kv_heads: key/value heads; as many as ``heads`` without grouping.
        head_dim: width of a head, usually ``hidden / heads``.
    """

    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int | None = None
    head_dim: int | None = None

    @classmethod
    def of(cls, config: Any) -> DecoderShape:
        """Read them from a transformers configuration, of a vision-language model or of its decoder."""
        text = config.get_text_config()
        return cls(
            layers=text.num_hidden_layers,
            hidden=text.hidden_size,
            intermediate=text.intermediate_size,
            heads=text.num_attention_heads,
            kv_heads=getattr(text, "num_key_value_heads", None),
            head_dim=getattr(text, "head_dim", None),
        )

    @property
    def query_width(self) -> int:
        return self.heads * (self.head_dim or self.hidden // self.heads)

    @property
    def key_width(self) -> int:
        return (self.kv_heads or self.heads) * (self.head_dim or self.hidden // self.heads)


LLAVA_7B = DecoderShape(layers=32, hidden=4096, intermediate=11008, heads=32, kv_heads=32, head_dim=128)


def layer_macs(entering: int, leaving: int, shape: DecoderShape) -> int:
    """The official cost of a layer: q, k, v | scores and their product with v | o_proj | gate, up, down.

    Args:
        entering: tokens at the layer's input.
        leaving: tokens left after its attention.

    Returns:
        ``3 n d^2 + 2 n^2 d + n' d^2 + 3 n' d m`` multiply-accumulates.
    """
    d, m = shape.hidden, shape.intermediate
    return 3 * entering * d**2 + 2 * entering**2 * d + leaving * d**2 + 3 * leaving * d * m


def base_macs(visual_tokens: int, shape: DecoderShape) -> int:
    """The official cost of all visual tokens through all layers, F0."""
    return shape.layers * layer_macs(visual_tokens, visual_tokens, shape)


def alive(remove: Sequence[int], visual_tokens: int) -> list[int]:
    """Visual tokens at the input of every layer, and after the last one: ``L + 1`` numbers."""
    return list(accumulate(remove, lambda left, count: left - count, initial=visual_tokens))


def recipe_macs(remove: Sequence[int], visual_tokens: int, shape: DecoderShape, text_tokens: int = 0) -> int:
    """The official cost of a prefill under a recipe; with ``text_tokens`` present in every layer besides."""
    left = [tokens + text_tokens for tokens in alive(remove, visual_tokens)]
    return sum(layer_macs(before, after, shape) for before, after in pairwise(left))


def reduction(remove: Sequence[int], visual_tokens: int, shape: DecoderShape) -> float:
    """Share of the visual MACs that a recipe saves."""
    return 1 - recipe_macs(remove, visual_tokens, shape) / base_macs(visual_tokens, shape)


def prompt_flops(remove: Sequence[int], visual_tokens: int, text_tokens: int, shape: DecoderShape) -> int:
    """FLOPs (2 x MACs) of the whole prompt's prefill, prefix and text included."""
    return 2 * recipe_macs(remove, visual_tokens, shape, text_tokens)


def mean_entering(remove: Sequence[int], visual_tokens: int) -> float:
    """Mean number of visual tokens at a layer's input."""
    return sum(alive(remove, visual_tokens)[:-1]) / len(remove)


def kv_kept(remove: Sequence[int], visual_tokens: int) -> float:
    """Share of the visual KV cache that is kept: layer i caches the tokens at its input."""
    return mean_entering(remove, visual_tokens) / visual_tokens


def true_layer_macs(entering: int, leaving: int, shape: DecoderShape, *, drops_before_projection: bool = True) -> int:
    """What a layer's matrix products cost, with grouped heads and full (not halved) attention matrices.

    Args:
        drops_before_projection: tokens leave before ``o_proj`` and the MLP, or at the layer's output.
    """
    q, k, d, m = shape.query_width, shape.key_width, shape.hidden, shape.intermediate
    after = leaving if drops_before_projection else entering
    return entering * d * (q + 2 * k) + 2 * entering**2 * q + after * q * d + 3 * after * d * m


def true_prefill_macs(
    remove: Sequence[int],
    visual_tokens: int,
    text_tokens: int,
    shape: DecoderShape,
    *,
    drops_before_projection: bool = True,
    score_rows: int | None = None,
) -> int:
    """What the decoder's matrix products of a prefill cost, the language-model head left out.

    Args:
        score_rows: tokens whose attention rows are computed again for the scores, those from the first
            visual token on; in layers that remove something, every row against the keys that it sees. None
            leaves scoring out.
    """
    total = 0
    left = [tokens + text_tokens for tokens in alive(remove, visual_tokens)]
    for layer, count in enumerate(remove):
        before, after = left[layer], left[layer + 1]
        total += true_layer_macs(before, after, shape, drops_before_projection=drops_before_projection)
        if score_rows is not None and count:
            total += scoring_macs(before, before - (left[0] - score_rows), shape)
    return total


def scoring_macs(tokens: int, rows: int, shape: DecoderShape) -> int:
    """Logits of the last ``rows`` of ``tokens`` causal rows, computed beside the fused attention."""
    return shape.query_width * sum(range(tokens - rows + 1, tokens + 1))


def decode_macs(kv_lengths: Sequence[int], shape: DecoderShape) -> int:
    """One generated token through all layers, given each layer's cache length (the token itself included)."""
    fixed = true_layer_macs(1, 1, shape) - 2 * shape.query_width
    return sum(fixed + 2 * length * shape.query_width for length in kv_lengths)


def kv_bytes(kv_lengths: Sequence[int], shape: DecoderShape, bytes_per_value: int = 2) -> int:
    """Memory of the KV cache of one row."""
    return sum(2 * length * shape.key_width * bytes_per_value for length in kv_lengths)


def fastv_alive(visual_tokens: int, layer: int, ratio: float, layers: int) -> list[int]:
    """FastV (K = ``layer``, R = ``ratio``): all visual tokens in the first K layers, ``(1 - R)`` of them
    after."""
    return [visual_tokens if i < layer else round(visual_tokens * (1 - ratio)) for i in range(layers)]


def pyramid_alive(visual_tokens: int, stages: Sequence[int], keep: float, layers: int) -> list[int]:
    """PyramidDrop: ``keep`` of the visual tokens, rounded down, remain at each of the ``stages``."""
    return [int(visual_tokens * keep ** sum(i >= stage for stage in stages) + 1e-9) for i in range(layers)]


def alive_macs(entering: Sequence[int], shape: DecoderShape) -> int:
    """The official cost of visual tokens that enter each layer and leave it whole: peers that drop between
    layers."""
    return sum(layer_macs(tokens, tokens, shape) for tokens in entering)
