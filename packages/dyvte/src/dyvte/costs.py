"""What an exit saves, counted (tables 1 and 2): FLOPs of the prefill, bytes of the KV cache, parameters of the gates.

One decoder layer on m tokens, 2 FLOPs a multiply-add, full attention matrices as the paper counts them:

    F(m) = 2 m (2 d^2 + 2 d d_kv + 3 d f) + 4 m^2 d

and a prompt of n tokens whose V visual ones leave after layer e (counted from 0):

    FLOPs(e) = encoder + (e + 1) F(n) + (L - e - 1) F(n - V) + (e + 1) gate

The vision encoder is in, the language-model head is not. The paper states no prompt lengths: those below are fitted to
its dense columns, so only the rows with an exit are evidence. Its "exit layer" is e, not e + 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dyvte.gates import GateConfig


@dataclass(frozen=True)
class DecoderShape:
    """Dimensions of a text decoder.

    Attributes:
        layers: L.
        hidden: d.
        intermediate: f, width of the gated MLP.
        key_width: d_kv, all key heads together; ``hidden`` without grouped heads.
        query_width: all query heads together, usually ``hidden``.
    """

    layers: int
    hidden: int
    intermediate: int
    key_width: int
    query_width: int

    @classmethod
    def of(cls, config: Any) -> DecoderShape:
        """Read them from a transformers configuration, of a vision-language model or of its decoder."""
        text = config.get_text_config()
        heads = text.num_attention_heads
        head = getattr(text, "head_dim", None) or text.hidden_size // heads
        keys = (getattr(text, "num_key_value_heads", None) or heads) * head
        return cls(text.num_hidden_layers, text.hidden_size, text.intermediate_size, keys, heads * head)


LLAMA_7B = DecoderShape(32, 4096, 11008, 4096, 4096)
LLAMA_13B = DecoderShape(40, 5120, 13824, 5120, 5120)
# CLIP ViT-L/14-336 on 577 tokens, 24 layers of width 1024 with a plain MLP of 4096, and its patch embedding.
CLIP_L_336 = 24 * (2 * 577 * (4 * 1024**2 + 2 * 1024 * 4096) + 4 * 577**2 * 1024) + 2 * 576 * 1024 * 3 * 14**2
VISUAL_TOKENS = 576
# Mean tokens of a prompt, fitted to the dense columns of tables 1 and 2 (7B and 13B agree).
PROMPT_TOKENS = {
    "gqa": 633,
    "vqav2": 633,
    "pope": 633,
    "mmvet": 628,
    "mme": 638,
    "seed": 662,
    "textvqa": 682,
    "mmbench": 690,
    "scienceqa": 703,
}


def layer_flops(tokens: int, shape: DecoderShape) -> int:
    """F(m): one decoder layer on ``tokens`` tokens in the prefill."""
    d, f = shape.hidden, shape.intermediate
    projections = 2 * d * shape.query_width + 2 * d * shape.key_width + 3 * d * f
    return 2 * tokens * projections + 4 * tokens**2 * shape.query_width


def projector_flops(visual: int, hidden: int, features: int = 1024) -> int:
    """LLaVA-1.5's two-layer projector on ``visual`` tokens."""
    return 2 * visual * (features * hidden + hidden**2)


def gate_flops(config: GateConfig) -> int:
    """One gate on one prompt."""
    first = config.rank * (config.inputs + config.width) if config.rank else config.inputs * config.width
    return 2 * (first + 2 * config.width)


def gate_parameters(config: GateConfig) -> int:
    """Parameters of all gates together."""
    return config.layers * gate_flops(config) // 2


def prefill_flops(
    tokens: int, visual: int, exit_layer: int | None, shape: DecoderShape, gates: GateConfig | None = None
) -> int:
    """The decoder's layers on one prompt.

    Args:
        tokens: n, of the whole prompt.
        visual: V of them.
        exit_layer: e, counted from 0; -1 before layer 0; None where they stay.
        gates: whose cost is added, one for each layer up to the exit.
    """
    full = shape.layers if exit_layer is None else exit_layer + 1
    gated = full * gate_flops(gates) if gates is not None else 0
    return full * layer_flops(tokens, shape) + (shape.layers - full) * layer_flops(tokens - visual, shape) + gated


def mean_exit_tflops(
    benchmark: str, mean_exit: float | None, shape: DecoderShape, visual: int = VISUAL_TOKENS
) -> float:
    """TFLOPs a sample on a benchmark of the paper, encoder included, from a mean exit layer; None: dense.

    Linear in e at one prompt length; where lengths vary, a mean e leaves out their covariance with e.
    """
    n = PROMPT_TOKENS[benchmark]
    full = shape.layers if mean_exit is None else mean_exit + 1
    gates = 0 if mean_exit is None else full * gate_flops(GateConfig(shape.layers, shape.hidden))
    decoder = full * layer_flops(n, shape) + (shape.layers - full) * layer_flops(n - visual, shape)
    return (CLIP_L_336 + projector_flops(VISUAL_TOKENS, shape.hidden) + decoder + gates) / 1e12


def implied_full_layers(benchmark: str, tflops: float, shape: DecoderShape) -> float:
    """Mean number of layers on all tokens, e + 1, that a published number of TFLOPs says."""
    n = PROMPT_TOKENS[benchmark]
    base = CLIP_L_336 + projector_flops(VISUAL_TOKENS, shape.hidden)
    base += shape.layers * layer_flops(n - VISUAL_TOKENS, shape)
    saved = layer_flops(n, shape) - layer_flops(n - VISUAL_TOKENS, shape)
    return (tflops * 1e12 - base) / (saved + gate_flops(GateConfig(shape.layers, shape.hidden)))


def fastv_tflops(benchmark: str, shape: DecoderShape, layer: int = 1, ratio: float = 0.5) -> float:
    """TFLOPs a sample under FastV alone."""
    n = PROMPT_TOKENS[benchmark]
    left = n - VISUAL_TOKENS + int(VISUAL_TOKENS * (1 - ratio))
    decoder = (layer + 1) * layer_flops(n, shape) + (shape.layers - layer - 1) * layer_flops(left, shape)
    return (CLIP_L_336 + projector_flops(VISUAL_TOKENS, shape.hidden) + decoder) / 1e12


def kv_bytes(tokens: int, visual: int, exit_layer: int | None, shape: DecoderShape, element: int = 2) -> int:
    """KV cache of one prompt: layers up to the exit hold all tokens, the others the text."""
    full = shape.layers if exit_layer is None else exit_layer + 1
    held = full * tokens + (shape.layers - full) * (tokens - visual)
    return 2 * shape.key_width * element * held


def delay_flops(tokens: int, visual: int, compact_every: int, shape: DecoderShape) -> float:
    """What `compact_every` costs: (g - 1) / 2 more layers on all tokens, on average, for an exit in a random layer."""
    return (compact_every - 1) / 2 * (layer_flops(tokens, shape) - layer_flops(tokens - visual, shape))


def decode_bytes(
    prompt: int, visual: int, exit_layers: Sequence[int | None], shape: DecoderShape, element: int = 2
) -> int:
    """Bytes that one decoding step reads: the decoder's weights once, and the KV cache of every row."""
    d, f = shape.hidden, shape.intermediate
    weights = shape.layers * (2 * d * shape.query_width + 2 * d * shape.key_width + 3 * d * f) * element
    return weights + sum(kv_bytes(prompt, visual, e, shape, element) for e in exit_layers)
