"""What a prompt costs: FLOPs, tokens, parameters, bytes (sheet section 9), from closed formulas.

FLOPs are two a multiply-accumulate, of matrix products alone. `counted` runs the real modules on the meta device under
torch's counter; the formulas equal it part by part.

    >>> prefill(Sizes.of(FlashSlothConfig()), question=7).total / 1e12
    1.364...
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flashsloth.configuration import FlashSlothConfig

PROMPT = 32  # tokens of the system prompt and " USER: "
ROLE = 4  # " ASSISTANT:"


@dataclass(frozen=True)
class Sizes:
    """Widths and counts that decide a cost.

    Attributes:
        width, layers, inner, vocabulary, heads: of the language model (d, its feed-forward's width).
        vision, vision_layers, vision_inner, patch: of the tower (dv; pixels of a patch's edge).
        patches: of a view. views: of an image. visual_tokens: Nv of an image.
        queries, compare: K and dd of EmbQ; no queries, no EmbQ.
        pooled: whether SAP pools.
    """

    width: int
    layers: int
    inner: int
    vocabulary: int
    heads: int
    vision: int
    vision_layers: int
    vision_inner: int
    patch: int
    patches: int
    views: int
    visual_tokens: int
    queries: int
    compare: int
    pooled: bool = True

    @classmethod
    def of(cls, config: FlashSlothConfig, compressed: bool = True) -> Sizes:
        """Of a model, or of the same without compression: all patches, no SAP, no queries."""
        text: Any = config.text_config
        vision: Any = config.vision_config
        return cls(
            text.hidden_size,
            text.num_hidden_layers,
            text.intermediate_size,
            text.vocab_size,
            text.num_attention_heads,
            vision.hidden_size,
            vision.num_hidden_layers,
            vision.intermediate_size,
            vision.patch_size,
            config.grid**2,
            config.views,
            config.num_image_tokens if compressed else config.patches_per_image,
            config.query_count if compressed else 0,
            config.embq_width or 0,
            compressed,
        )


@dataclass(frozen=True)
class Costs:
    """FLOPs of a prompt with one image."""

    vision: int
    sap: int
    projector: int
    embq: int
    language: int

    @property
    def total(self) -> int:
        return sum(getattr(self, one.name) for one in fields(self))


def length(sizes: Sizes, question: int, system: int = PROMPT) -> int:
    """Tokens L of a prompt for an answer: system, image and newline, question, queries, " ASSISTANT:"."""
    return system + sizes.visual_tokens + 1 + question + sizes.queries + ROLE


def prefill(sizes: Sizes, question: int, logits: int | None = None, late_values: bool = False) -> Costs:
    """FLOPs of a prompt.

    Args:
        question: tokens t of the question.
        logits: positions with logits; None: all, as the official code has it.
        late_values: EmbQ's values projected behind its attention, as this package does for up to three rounds; the
            official order projects all patches.
    """
    tokens = length(sizes, question)
    return Costs(
        vision=sizes.views * _tower(sizes),
        sap=2 * sizes.views * sizes.patches * (sizes.vision**2 + sizes.vision) if sizes.pooled else 0,
        projector=2 * sizes.visual_tokens * (sizes.vision * sizes.width + sizes.width**2),
        embq=embq(sizes, question, late_values) if sizes.queries else 0,
        language=language(sizes, tokens, tokens if logits is None else logits),
    )


def _tower(sizes: Sizes) -> int:
    n, dv, inner = sizes.patches, sizes.vision, sizes.vision_inner
    embed = n * 3 * sizes.patch**2 * dv
    layer = (4 * dv**2 + 2 * dv * inner) * n + 2 * n**2 * dv
    return 2 * (embed + sizes.vision_layers * layer)


def embq(sizes: Sizes, question: int, late_values: bool = False) -> int:
    """FLOPs of one round."""
    n, t, k = sizes.views * sizes.patches, question, sizes.queries
    d, dv, dd = sizes.width, sizes.vision, sizes.compare
    down = (k + t) * d * dd + n * dv * dd
    text = k * dd**2 + 2 * t * dd**2 + 2 * t * k * dd
    keys = k * dd**2 + n * dd**2 + k * n * dd
    values = k * n * dv * sizes.heads + k * dv**2 if late_values else n * dv**2 + k * n * dv
    return 2 * (down + text + keys + values + k * dv * d)


def language(sizes: Sizes, tokens: int, logits: int) -> int:
    """FLOPs of a prefill of so many tokens, the last ``logits`` of which are scored."""
    d = sizes.width
    layer = (4 * d**2 + 2 * d * sizes.inner) * tokens + 2 * tokens**2 * d
    return 2 * (sizes.layers * layer + sizes.vocabulary * d * logits)


def decode_bytes(sizes: Sizes, past: int, bytes_each: int = 2) -> int:
    """Bytes read for one token: the language model's matrices, and the cache of ``past`` tokens."""
    d = sizes.width
    weights = sizes.layers * (4 * d**2 + 2 * d * sizes.inner) + sizes.vocabulary * d
    return bytes_each * weights + past * cache_bytes(sizes, bytes_each)


def cache_bytes(sizes: Sizes, bytes_each: int = 2) -> int:
    """Bytes of the KV cache a token: 320 KiB at full size in float16."""
    return 2 * sizes.layers * sizes.width * bytes_each


def counted(config: FlashSlothConfig, question: int, compressed: bool = True) -> Costs:
    """The same as torch's FLOP counter sees it, on real modules on the meta device, part by part.

    Values are projected before the attention, as in the official order.
    """
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from flashsloth.backbones import VisionTower
    from flashsloth.embq import LATE_VALUES
    from flashsloth.modeling import FlashSlothForConditionalGeneration

    sizes = Sizes.of(config, compressed)
    with torch.device("meta"):
        model = FlashSlothForConditionalGeneration(config).eval()
        tower = VisionTower._from_config(config.vision_config)
        side = config.vision_config.image_size
        pixels = torch.zeros(config.views, 3, side, side)
        patches = torch.zeros(config.views, sizes.patches, sizes.vision)
        pooled = torch.zeros(1, sizes.visual_tokens, sizes.vision)
        embeds = torch.zeros(1, length(sizes, question), sizes.width)
        queries = torch.zeros(1, 1, max(1, sizes.queries), sizes.width)
        words = torch.zeros(1, 1, question, sizes.width)
        asked = torch.ones(1, 1, question, dtype=torch.bool)

    def flops(run: Any) -> int:
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            run()
        return counter.get_total_flops()

    def look() -> None:
        step, everything = model.model.embq, patches.view(1, -1, sizes.vision)
        read = step.text_step(queries[0], words[0], asked[0])
        step.up_projector(step.image_step(read, everything, None, LATE_VALUES + 1))

    return Costs(
        vision=flops(lambda: tower(pixels)),
        sap=flops(lambda: model.model.pooling(patches)) - _weighing(sizes) if compressed else 0,
        projector=flops(lambda: model.model.multi_modal_projector(pooled)),
        embq=flops(look) if compressed else 0,
        language=flops(lambda: model.lm_head(model.model.language_model(inputs_embeds=embeds).last_hidden_state)),
    )


def _weighing(sizes: Sizes) -> int:
    """SAP's weighted means themselves, which the paper's count leaves out: one product a patch."""
    blocks = sizes.visual_tokens // sizes.views
    return 2 * sizes.views * blocks * round(sizes.patches / blocks) * sizes.vision
