"""What EAS costs and saves, from closed formulas: MACs, parameters, bytes of weights and of the KV cache.

For L tokens, width d, FFN width f, n layers of which K skip their attention, ranks h (adapter) and h' (PIA):

    MHA = 4 L d^2 + 2 L^2 d       FFN = 3 L d f       Adp = L d h (1 + 2 / groups) + 2 d
    PIA = 2 L d h' + 2 L d h' / groups + 2 d          (as the authors compute it: the global vector token by token)
    total = n FFN + (n - K) (MHA + Adp) + K PIA + V d         folded: no Adp, no PIA

Grouped keys and values (GQA) are counted by the heads of the shape. One multiply-add counts as one MAC.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any


@dataclass(frozen=True)
class Shape:
    """A decoder: width, FFN width, layers, vocabulary, query and key/value heads."""

    width: int
    ffn: int
    layers: int
    vocabulary: int
    heads: int
    kv_heads: int

    @classmethod
    def of(cls, config: Any) -> Shape:
        """Of a transformers model's configuration."""
        text = config.get_text_config()
        heads = text.num_attention_heads
        kv_heads = getattr(text, "num_key_value_heads", None) or heads
        sizes = (text.hidden_size, text.intermediate_size, text.num_hidden_layers, text.vocab_size)
        return cls(*sizes, heads, kv_heads)

    @property
    def kv_width(self) -> int:
        return self.width // self.heads * self.kv_heads


LLAMA_7B = Shape(4096, 11008, 32, 32000, 32, 32)
LLAMA_13B = replace(LLAMA_7B, width=5120, ffn=13824, layers=40, heads=40, kv_heads=40)
NAMED = {"7b": LLAMA_7B, "13b": LLAMA_13B}


@dataclass(frozen=True)
class RankSizes:
    """Of what is trained: h, h' and the groups of the up-projections."""

    adapter: int
    pia: int
    groups: int = 2


LAVIN = RankSizes(8, 32)
LLAVA_SCIENCEQA = RankSizes(128, 256)
LLAVA_AID = RankSizes(128, 128)
EXPERTS = 2


def attention_macs(shape: Shape, tokens: int) -> int:
    """Projections and the two products of one attention over `tokens`."""
    projections = 2 * shape.width * shape.width + 2 * shape.width * shape.kv_width
    return tokens * projections + 2 * tokens * tokens * shape.width


def ffn_macs(shape: Shape, tokens: int) -> int:
    return 3 * tokens * shape.width * shape.ffn


def adapter_macs(width: int, ranks: RankSizes, tokens: int) -> int:
    return tokens * width * ranks.adapter * (ranks.groups + 2) // ranks.groups + 2 * width


def pia_macs(width: int, ranks: RankSizes, tokens: int) -> int:
    return 2 * tokens * width * ranks.pia + 2 * tokens * width * ranks.pia // ranks.groups + 2 * width


def prefill_macs(shape: Shape, tokens: int, removed: int, ranks: RankSizes | None) -> int:
    """Of a prompt, un-merged; folded (nothing left of adapters and PIAs) where `ranks` is None. One output token."""
    kept = shape.layers - removed
    total = shape.layers * ffn_macs(shape, tokens) + kept * attention_macs(shape, tokens)
    total += shape.vocabulary * shape.width
    if ranks is not None:
        total += kept * adapter_macs(shape.width, ranks, tokens) + removed * pia_macs(shape.width, ranks, tokens)
    return total


def attention_parameters(shape: Shape) -> int:
    """Of one attention without biases: what goes with it."""
    return 2 * shape.width * shape.width + 2 * shape.width * shape.kv_width


def adapter_parameters(width: int, ranks: RankSizes, router_bias: bool = True) -> int:
    """Of one adapter: A, B, D, the router."""
    h = ranks.adapter
    return width * h + h + 2 * (width * h // ranks.groups + width) + EXPERTS * width + EXPERTS * router_bias


def pia_parameters(width: int, ranks: RankSizes) -> int:
    """Of one PIA: A, C, B, D, the router."""
    h = ranks.pia
    return 2 * (width * h + h) + 2 * (width * h // ranks.groups + width) + EXPERTS * width + EXPERTS


def module_parameters(shape: Shape, removed: int, ranks: RankSizes, router_bias: bool = True) -> int:
    """All adapters and PIAs of a tuned model."""
    kept = shape.layers - removed
    one = adapter_parameters(shape.width, ranks, router_bias)
    return kept * one + removed * pia_parameters(shape.width, ranks)


def lavin_parameters(shape: Shape, removed: int, ranks: RankSizes = LAVIN) -> int:
    """What LaVIN-EAS trains: adapters in use, those of CLIP ViT-L/14 (rank 8), projector and modality embedding."""
    vision = 24 * adapter_parameters(1024, RankSizes(8, 8))
    projector = 1024 * 128 + 128 + 128 * shape.width + shape.width
    return module_parameters(shape, removed, ranks) + vision + projector + 2 * shape.width


def equal_parameter_rank(shape: Shape, removed: int, ranks: RankSizes, router_bias: bool = True) -> int:
    """The adapter rank (a multiple of groups) with which nothing skipped trains nearest as many weights as `removed`
    skipped do: the fair comparison."""
    aim = module_parameters(shape, removed, ranks, router_bias)
    found = range(ranks.groups, 16 * max(ranks.adapter, ranks.pia), ranks.groups)
    return min(found, key=lambda h: abs(module_parameters(shape, 0, replace(ranks, adapter=h), router_bias) - aim))


def projector_parameters(width: int, kind: str) -> int:
    """Of LLaVA's projector from CLIP ViT-L: "linear", or LLaVA-1.5's "mlp"."""
    first = 1024 * width + width
    return first if kind == "linear" else first + width * width + width


def language_model_parameters(shape: Shape) -> int:
    """Of the frozen decoder, with embedding and head."""
    layer = attention_parameters(shape) + 3 * shape.width * shape.ffn + 2 * shape.width
    return shape.layers * layer + 2 * shape.vocabulary * shape.width + shape.width


def dense_fold_macs(shape: Shape, removed: int) -> int:
    """A request's folding as the authors do it, ``W @ M`` with dense M: q, k, v where kept, gate and up where not."""
    kept = 3 * (shape.layers - removed) * shape.width**3
    return kept + 2 * removed * shape.ffn * shape.width**2


def low_rank_fold_macs(shape: Shape, removed: int, ranks: RankSizes) -> int:
    """The same result as ``W + (W U) A``."""
    kept = 3 * (shape.layers - removed) * 2 * shape.width * shape.width * ranks.adapter
    return kept + 2 * removed * 2 * shape.ffn * shape.width * ranks.pia


def cache_bytes(shape: Shape, tokens: int, removed: int, size: int = 2) -> int:
    """Of keys and values of one row, `size` bytes a number."""
    return 2 * (shape.layers - removed) * tokens * shape.kv_width * size


def decode_bytes(shape: Shape, tokens: int, removed: int, ranks: RankSizes | None, size: int = 2) -> int:
    """What one decoding step reads: weights, adapters where `ranks` are given, and the cache of `tokens`."""
    weights = language_model_parameters(shape) - shape.vocabulary * shape.width  # one row of the embedding
    weights -= removed * attention_parameters(shape)
    if ranks is not None:
        weights += module_parameters(shape, removed, ranks)
    return size * weights + cache_bytes(shape, tokens, removed, size)


@dataclass(frozen=True)
class MeterShape:
    """METER: width, depths of its encoders (one block of CLIP's twelve is not built) and ranks."""

    width: int = 768
    text_layers: int = 12
    image_layers: int = 11
    layers: int = 6
    patch: int = 16
    ranks: RankSizes = RankSizes(96, 144)


METER = MeterShape()


def meter_macs(
    shape: MeterShape, text: int, image: int, flags: Sequence[Sequence[bool]] | None, *, folded: bool = False
) -> int:
    """One pass of METER without its head.

    Args:
        text, image: tokens of the streams, the class token's among them.
        flags: what is skipped (`eas.plan.meter_flags`); None: no adapters, as in full tuning.
        folded: adapters cost nothing.
    """
    square = shape.width**2
    total = shape.text_layers * (12 * text * square + 2 * text * text * shape.width)
    total += shape.image_layers * (12 * image * square + 2 * image * image * shape.width)
    total += (image - 1) * 3 * shape.patch**2 * shape.width + (text + image) * square
    gone = flags or [[False, False]] * (2 * shape.layers)
    for number, (own, cross) in enumerate(gone):
        here, there = (text, image) if number < shape.layers else (image, text)
        attention = 4 * here * square + 2 * here * here * shape.width
        crossing = 2 * (here + there) * square + 2 * here * there * shape.width
        total += 8 * here * square + attention * (not own) + crossing * (not cross)
        if flags is not None:
            low_rank = shape.width * here * (shape.ranks.groups + 1) // shape.ranks.groups
            adapters = 0 if folded else 1 + (not own) + (not cross)
            total += adapters * low_rank * shape.ranks.adapter + (own + cross) * low_rank * shape.ranks.pia
            total += shape.width * shape.ranks.pia * (own * here + cross * there)
    return total
