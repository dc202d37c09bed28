"""Dimensions of a DIT model, the variants of the paper, and SAM's three sizes.

    config = DITConfig()                                   # L-DIT on SAM ViT-B at 512 px, as released
    config = sized("vit_h", variant="layer_wise_vith")     # L-DIT on SAM ViT-H

How text enters the image encoder is the `variant` (section 3; the ablation of the injection):

    layer_wise         L-DIT: before every block the text slots are a fresh projection of the same text
    e2e                E-DIT: the slots travel through the blocks, projected again before each
    e2e_token          the slots travel; learned tokens are added before every block but the first
    token_layer_wise   the text plus learned tokens of each layer
    cross_attention    each layer re-reads the slots that the last block left, by cross attention
    cross_attention_ffn  each layer reads the image, by cross attention with a feed-forward net
    layer_wise_vith    L-DIT where the encoder is wider than the text: one projection to its width first
    default            SAM with text in the mask decoder alone (the paper's baseline)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, get_args

from tenfold import UserError

Variant = Literal[
    "layer_wise",
    "e2e",
    "e2e_token",
    "token_layer_wise",
    "cross_attention",
    "cross_attention_ffn",
    "layer_wise_vith",
    "default",
]
VARIANTS: tuple[Variant, ...] = get_args(Variant)
# The slots of these depend on the sentence alone: text queries are never read, and keys and values can be kept.
TEXT_ALONE: frozenset[str] = frozenset({"layer_wise", "layer_wise_vith", "token_layer_wise"})
# These leave the text's width as it is before the first block, so it must be the encoder's.
_SAME_WIDTH: frozenset[str] = frozenset(set(VARIANTS) - {"layer_wise_vith", "default"})


# Beyond every model: sizes that would take all memory, or a day to build, before a weight is compared.
LARGEST, DEEPEST = 2**17, 2**10


@dataclass(frozen=True)
class DITConfig:
    """Every number of a model; the released L-DIT on SAM ViT-B by default.

    Attributes:
        variant: how text enters the image encoder.
        width, depth, heads, mlp_ratio, patch_size: of SAM's ViT.
        native_size: edge in pixels for which its positions were learned.
        window_size, global_blocks: of the upstream encoder. No block has a window here; they set the sizes of the
            tables of relative positions.
        input_size: edge of the padded square picture, in pixels.
        prompt_width, mask_channels: of SAM's prompt encoder.
        decoder_depth, decoder_heads, decoder_mlp, decoder_downsample, mask_outputs, iou_depth, iou_width: of SAM's
            mask decoder.
        words, text_width, text_depth, text_heads, text_mlp, text_positions, text_norm_eps: of BERT.
        text_layer: the BERT layer whose output is the text, counted from 1. The released models use the first.
        text_length: slots that a sentence is padded to. Padding takes part in attention: another length is another
            prediction.
        cross_width, cross_heads, cross_mlp: of the variants with cross attention.
        reproject: False: E-DIT as its text reads, projected once before the first block. No released model does that.
        dropout: on what is put into the encoder, and in BERT, while training.
        threshold: of the foreground's probability.

    Raises:
        UserError: an unknown variant, or dimensions that do not fit each other.
    """

    variant: Variant = "layer_wise"
    width: int = 768
    depth: int = 12
    heads: int = 12
    mlp_ratio: float = 4.0
    patch_size: int = 16
    native_size: int = 1024
    window_size: int = 14
    global_blocks: tuple[int, ...] = (2, 5, 8, 11)
    input_size: int = 512
    prompt_width: int = 256
    mask_channels: int = 16
    decoder_depth: int = 2
    decoder_heads: int = 8
    decoder_mlp: int = 2048
    decoder_downsample: int = 2
    mask_outputs: int = 3
    iou_depth: int = 3
    iou_width: int = 256
    words: int = 30522
    text_width: int = 768
    text_depth: int = 12
    text_heads: int = 12
    text_mlp: int = 3072
    text_positions: int = 512
    text_norm_eps: float = 1e-12
    text_layer: int = 1
    text_length: int = 20
    cross_width: int = 512
    cross_heads: int = 8
    cross_mlp: int = 2048
    reproject: bool = True
    dropout: float = 0.1
    threshold: float = 0.35

    def __post_init__(self) -> None:
        if self.variant not in VARIANTS:
            raise UserError(f"unknown variant {self.variant!r}", "variant", ", ".join(VARIANTS))
        counts = [f.name for f in fields(self) if f.type == "int"]
        for name in counts:
            most = DEEPEST if name.endswith("depth") else LARGEST
            if not 1 <= getattr(self, name) <= most:
                raise UserError(f"{name} is {getattr(self, name)!r:.40}", "config", f"1 to {most:,}")
        # In this order: NaN fails the first.
        if not 0 < self.mlp_ratio <= LARGEST or int(self.width * self.mlp_ratio) < 1:
            raise UserError(f"mlp_ratio is {self.mlp_ratio}", "config", "a hidden layer of at least one channel")
        for name, whole, part in (
            ("width", self.width, self.heads),
            ("text_width", self.text_width, self.text_heads),
            ("native_size", self.native_size, self.patch_size),
            ("input_size", self.input_size, self.patch_size),
            ("prompt_width", self.prompt_width, 8),
            ("cross_width", self.cross_width, self.cross_heads),
        ):
            if whole % part:
                raise UserError(f"{name} is {whole}", "config", f"a multiple of {part}")
        if self.variant in _SAME_WIDTH and self.text_width != self.width:
            what = f"text of width {self.text_width} for an encoder of width {self.width}"
            raise UserError(what, f"variant {self.variant}", "equal widths, or the variant layer_wise_vith")
        if self.text_layer > self.text_depth:
            raise UserError(f"text_layer is {self.text_layer}", "config", f"1 to {self.text_depth}")
        if not 0 <= self.dropout < 1 or not 0 < self.threshold < 1:
            raise UserError("dropout or threshold out of range", "config", "dropout in [0, 1), threshold in (0, 1)")

    @property
    def grid(self) -> int:
        """Image tokens along an edge of the input."""
        return self.input_size // self.patch_size

    @property
    def text_alone(self) -> bool:
        """Whether the text slots depend on the sentence alone, so that they can be kept for it."""
        return self.variant in TEXT_ALONE

    def changed(self, **changes: Any) -> DITConfig:
        """A copy with other values. Raises UserError as the constructor."""
        return replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        """As JSON takes it."""
        return asdict(self) | {"global_blocks": list(self.global_blocks)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], where: str | Path = "config.json") -> DITConfig:
        """From what `to_dict` gave.

        Raises:
            UserError: an unknown name, a value of another type, or dimensions that do not fit.
        """
        if not isinstance(values, Mapping):
            raise UserError(f"{type(values).__name__} instead of a config", where, "an object of names and numbers")
        known = {f.name: f for f in fields(cls)}
        given: dict[str, Any] = {}
        for name, value in values.items():
            if name not in known:
                raise UserError(f"unknown setting {name!r}", where, "those of DITConfig")
            given[name] = _typed(name, value, known[name].default, where)
        return cls(**given)


def _typed(name: str, value: Any, default: Any, where: str | Path) -> Any:
    """A value of the default's type; JSON has no tuples, and may write a float without a point."""
    if isinstance(default, tuple):
        if isinstance(value, list | tuple) and all(isinstance(one, int) and one >= 0 for one in value):
            return tuple(value)
    elif isinstance(default, float) and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    elif type(value) is type(default):
        return value
    raise UserError(f"{name} is {value!r}", where, f"a {type(default).__name__}, such as {default!r}")


# SAM's image encoders, as its builders name them.
SIZES: dict[str, dict[str, Any]] = {
    "vit_b": {"width": 768, "depth": 12, "heads": 12, "global_blocks": (2, 5, 8, 11)},
    "vit_l": {"width": 1024, "depth": 24, "heads": 16, "global_blocks": (5, 11, 17, 23)},
    "vit_h": {"width": 1280, "depth": 32, "heads": 16, "global_blocks": (7, 15, 23, 31)},
}


def sized(size: str, variant: Variant | None = None, **changes: Any) -> DITConfig:
    """A config by the name of SAM's encoder; `variant` defaults to L-DIT.

    Raises:
        UserError: no such size, or a variant that does not fit it.
    """
    if size not in SIZES:
        raise UserError(f"unknown size {size!r}", "SAM's image encoder", ", ".join(SIZES))
    chosen = variant or ("layer_wise" if size == "vit_b" else "layer_wise_vith")
    return DITConfig(**SIZES[size], variant=chosen, **changes)
