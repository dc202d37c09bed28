"""What LLaVA-HR costs, counted (sheet sections 3.1, 4.4 and 9): visual tokens, parameters, multiply-accumulates.

MACs are those of matrix products and convolutions of one image and its prompt. Attention is counted whole, not
halved for causality; embeddings, norms, activations, interpolation and the language-model head are left out.
FLOPs are 2 x MACs. `counted` sees the same numbers in torch's FLOP counter on real modules.

    flops.prefill(flops.NAMED["7b"], 1024).tflops  # 16.89
    flops.prefill(flops.LLAVA_7B, 1022).tflops  # 91.27
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

# The prompt of the sheet's table: text tokens besides the visual ones.
TEXT_TOKENS = 60
HEAD_CLASSES = 1000
# Of ConvNeXt: pixels for a cell of its last stage.
STRIDE = 32


@dataclass(frozen=True)
class Decoder:
    """Dimensions of the language model.

    Attributes:
        layers: L. width: D. intermediate: I, of the gated MLP. vocabulary: V.
        key_width: width of all key/value heads; D without grouping.
    """

    layers: int
    width: int
    intermediate: int
    vocabulary: int = 32000
    key_width: int | None = None

    @property
    def kv(self) -> int:
        return self.key_width or self.width


@dataclass(frozen=True)
class Vit:
    """Dimensions of the low-resolution encoder.

    Attributes:
        native: image size that its position embeddings are made for, in pixels.
        class_token: whether a class token runs through the layers; LLaVA-HR drops it before them.
    """

    layers: int = 24
    width: int = 1024
    intermediate: int = 4096
    patch: int = 14
    native: int = 336
    class_token: bool = False


@dataclass(frozen=True)
class ConvNext:
    """Dimensions of the high-resolution encoder: widths and numbers of blocks of its stages.

    Attributes:
        pre_logits: the unused head has a hidden layer (ConvNeXt-L's has, XXL's has not).
    """

    widths: tuple[int, ...]
    depths: tuple[int, ...]
    pre_logits: bool = True


@dataclass(frozen=True)
class Shape:
    """Dimensions of a LLaVA-HR, or with ``conv=None`` of a LLaVA-1.5, whose ViT reads the image at full size.

    Attributes:
        adapters: number of MR-Adapters: 3, or 0 (stage 1).
        min_low: least size of the low-resolution image, in pixels.
        high_stride: pixels of the image for each patch of the low-resolution one.
    """

    decoder: Decoder
    conv: ConvNext | None
    vit: Vit = Vit()
    adapters: int = 3
    min_low: int = 336
    high_stride: int = STRIDE

    @classmethod
    def of(cls, config: PreTrainedConfig) -> Shape:
        """The dimensions of a `LlavaHrConfig`."""
        text, vision, low = config.text_config, config.vision_config, config.vision_config.low_res_config
        head_width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
        keys = head_width * (text.num_key_value_heads or text.num_attention_heads)
        return cls(
            decoder=Decoder(
                text.num_hidden_layers,
                text.hidden_size,
                text.intermediate_size,
                text.vocab_size,
                None if keys == text.hidden_size else keys,
            ),
            conv=ConvNext(
                tuple(vision.high_res_dims),
                tuple(vision.high_res_depths),
                pre_logits="xxlarge" not in vision.high_res_name,
            ),
            vit=Vit(low.num_hidden_layers, low.hidden_size, low.intermediate_size, low.patch_size, low.image_size),
            adapters=vision.num_groups - 1 if vision.adapters else 0,
            min_low=vision.min_low_size,
            high_stride=vision.high_res_stride,
        )


VICUNA_7B, VICUNA_13B = Decoder(32, 4096, 11008), Decoder(40, 5120, 13824)
CONVNEXT_L = ConvNext((192, 384, 768, 1536), (3, 3, 27, 3))
CONVNEXT_XXL = ConvNext((384, 768, 1536, 3072), (3, 4, 30, 3), pre_logits=False)
NAMED = {
    "7b": Shape(VICUNA_7B, CONVNEXT_L),
    "13b": Shape(VICUNA_13B, CONVNEXT_L),
    "x-13b": Shape(VICUNA_13B, CONVNEXT_XXL),
}
LLAVA_7B = Shape(VICUNA_7B, None, Vit(class_token=True), adapters=0)


@dataclass(frozen=True)
class Costs:
    """MACs, or parameters, by part.

    Attributes:
        conv: ConvNeXt up to its last stage. vit: the ViT. adapters: all MR-Adapters. align: the final combination.
        projector: into the language model. llm: its layers (and for parameters everything else of it).
    """

    conv: int
    vit: int
    adapters: int
    align: int
    projector: int
    llm: int

    @property
    def vision(self) -> int:
        """Everything that runs once an image, whatever the prompt."""
        return self.total - self.llm

    @property
    def total(self) -> int:
        return sum(getattr(self, field.name) for field in fields(self))

    @property
    def tflops(self) -> float:
        return 2 * self.total / 1e12

    @property
    def vision_share(self) -> float:
        return self.vision / self.total


def low_size(shape: Shape, image_size: int) -> int:
    """Side of the image that the ViT sees, in pixels (section 3.1)."""
    if shape.conv is None:
        return image_size
    return max(int(image_size / shape.high_stride * shape.vit.patch), shape.min_low)


def visual_tokens(shape: Shape, image_size: int) -> int:
    """N, the visual tokens that an image gives the language model (section 3.1)."""
    return (low_size(shape, image_size) // shape.vit.patch) ** 2


def prefill(shape: Shape, image_size: int, text_tokens: int = TEXT_TOKENS) -> Costs:
    """MACs of one image and its prompt, up to the first token's hidden state (section 9).

    Args:
        image_size: R, in pixels.
        text_tokens: T, the tokens of the prompt that are not visual.
    """
    tokens = visual_tokens(shape, image_size)
    cells = 0 if shape.conv is None else (image_size // STRIDE) ** 2
    return Costs(
        conv=0 if shape.conv is None else conv_macs(shape.conv, image_size),
        vit=vit_macs(shape.vit, tokens),
        adapters=shape.adapters * adapter_macs(shape, tokens, cells),
        align=align_macs(shape, tokens),
        projector=tokens * (shape.vit.width * shape.decoder.width + shape.decoder.width**2),
        llm=llm_macs(shape.decoder, tokens + text_tokens),
    )


def conv_macs(conv: ConvNext, image_size: int) -> int:
    """ConvNeXt's trunk: the stem's 4x4 convolution, then of each stage the 2x2 convolution and the blocks."""
    side = image_size // 4
    macs, before = 48 * conv.widths[0] * side**2, 0
    for width, depth in zip(conv.widths, conv.depths, strict=True):
        if before:
            side //= 2
            macs += 4 * before * width * side**2
        macs += depth * (49 * width + 8 * width**2) * side**2
        before = width
    return macs


def vit_macs(vit: Vit, tokens: int) -> int:
    """Patch embedding and all layers; a class token takes part in the layers only."""
    d, n = vit.width, tokens + vit.class_token
    layer = 4 * n * d**2 + 2 * n * d * vit.intermediate + 2 * n**2 * d
    return 3 * vit.patch**2 * d * tokens + vit.layers * layer


def adapter_macs(shape: Shape, tokens: int, cells: int) -> int:
    """One MR-Adapter: both 1x1 convolutions on the high-resolution grid, depthwise and 1x1 on the low one, the gate.

    Args:
        tokens: N. cells: of the high-resolution grid, (R / 32)^2.
    """
    if shape.conv is None:
        return 0
    d, c = shape.vit.width, shape.conv.widths[-1]
    return cells * (c**2 + c * d) + tokens * (49 * d + d**2) + d**2 + d // 2


def align_macs(shape: Shape, tokens: int) -> int:
    """The final combination: a linear layer on either pathway's features, both on the low-resolution grid."""
    if shape.conv is None:
        return 0
    d, c = shape.vit.width, shape.conv.widths[-1]
    return tokens * (d**2 + c * d)


def llm_macs(decoder: Decoder, tokens: int) -> int:
    """All layers on a prompt of so many tokens."""
    d, kv = decoder.width, decoder.kv
    return decoder.layers * (tokens * (2 * d**2 + 2 * d * kv + 3 * d * decoder.intermediate) + 2 * tokens**2 * d)


def decode_macs(decoder: Decoder, cached: int) -> int:
    """One generated token through all layers, with so many tokens in the cache, itself included."""
    return llm_macs(decoder, 1) + decoder.layers * 2 * (cached - 1) * decoder.width


def kv_bytes(decoder: Decoder, tokens: int, bytes_per_value: int = 2) -> int:
    """Memory of the KV cache of one row."""
    return 2 * decoder.layers * tokens * decoder.kv * bytes_per_value


def parameters(shape: Shape) -> Costs:
    """Parameters by part (section 4.4), without ConvNeXt's head (`head_parameters`), with CLIP's last norm."""
    d, width, vit = shape.vit.width, shape.decoder.width, shape.vit
    layer = 4 * (d**2 + d) + 2 * d * vit.intermediate + vit.intermediate + d + 4 * d
    positions = (vit.native // vit.patch) ** 2 + 1
    embeddings = d + 3 * vit.patch**2 * d + positions * d
    llm = shape.decoder
    llm_layer = 2 * width**2 + 2 * width * llm.kv + 3 * width * llm.intermediate + 2 * width
    adapter = align = 0
    if shape.conv is not None:
        c = shape.conv.widths[-1]
        high, low, gate = c**2 + c + c * d + d, 50 * d + d**2 + d, d**2 + d // 2 + d // 2 + 1
        adapter, align = high + low + gate, d**2 + c * d + 2 * d
    return Costs(
        conv=0 if shape.conv is None else conv_parameters(shape.conv),
        vit=embeddings + 2 * d + vit.layers * layer + 2 * d,
        adapters=shape.adapters * adapter,
        align=align,
        projector=d * width + width + width**2 + width,
        llm=2 * llm.vocabulary * width + llm.layers * llm_layer + width,
    )


def conv_parameters(conv: ConvNext) -> int:
    """ConvNeXt's trunk, without its head."""
    total, before = 48 * conv.widths[0] + 3 * conv.widths[0], 0
    for width, depth in zip(conv.widths, conv.depths, strict=True):
        if before:
            total += 2 * before + 4 * before * width + width
        # Depthwise, norm, two linear layers, layer scale.
        total += depth * (50 * width + 2 * width + 8 * width**2 + 5 * width + width)
        before = width
    return total


def head_parameters(conv: ConvNext, classes: int = HEAD_CLASSES) -> int:
    """ConvNeXt's head, which official files carry and nothing uses."""
    c = conv.widths[-1]
    return 2 * c + (c**2 + c if conv.pre_logits else 0) + classes * (c + 1)


def stage1_parameters(shape: Shape) -> int:
    """What stage 1 trains: the projector and the final combination."""
    sizes = parameters(shape)
    return sizes.projector + sizes.align


def reduced(shape: Shape, *, decoder: int, vit: int, conv: tuple[int, ...]) -> Shape:
    """The same widths with other depths: layers of the decoder and of the ViT, blocks of ConvNeXt's stages."""
    return replace(
        shape,
        decoder=replace(shape.decoder, layers=decoder),
        vit=replace(shape.vit, layers=vit),
        conv=None if shape.conv is None else replace(shape.conv, depths=conv),
    )


def counted(model: Any, image_size: int, text_tokens: int = TEXT_TOKENS) -> Costs:
    """The MACs of `prefill`, as torch's FLOP counter sees them on real modules.

    Args:
        model: a `LlavaHrForConditionalGeneration` on any device; on "meta" seconds at full size, and no memory.
    """
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    tower, projector, decoder = (
        model.model.vision_tower,
        model.model.multi_modal_projector,
        model.model.language_model,
    )
    like = {"device": next(model.parameters()).device, "dtype": model.dtype}
    # Plain products: not every torch counts the CPU's fused attention.
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        visual = projector(tower(torch.zeros(1, 3, image_size, image_size, **like)))
        embeds = torch.zeros(1, visual.shape[1] + text_tokens, visual.shape[2], **like)
        # A mask that is ready: making one looks at values, which the meta device does not have.
        mask = torch.ones(1, 1, embeds.shape[1], embeds.shape[1], dtype=torch.bool, device=embeds.device).tril()
        decoder(inputs_embeds=embeds, attention_mask=mask, use_cache=False)
    seen = {name: sum(flops.values()) for name, flops in counter.get_flop_counts().items()}

    def macs(module: Any, *path: str) -> int:
        inside = ".".join((type(module).__name__, *path))
        names = [name for name in seen if name == inside or name.startswith(f"{inside}.")]
        # A module's count has its submodules' inside.
        outermost = [name for name in names if not any(name.startswith(f"{other}.") for other in names)]
        return sum(seen[name] for name in outermost) // 2

    return Costs(
        conv=macs(tower, "convnext"),
        vit=macs(tower, "vit"),
        adapters=macs(tower, "adapters"),
        align=macs(tower, "align"),
        projector=macs(projector),
        # Not all of it: Llama's rotary angles are a tiny matrix product, too.
        llm=macs(decoder, "layers"),
    )
