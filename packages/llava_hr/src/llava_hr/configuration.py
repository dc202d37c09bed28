"""Configurations of LLaVA-HR (sheet sections 3.1, 4.1), and its published sizes by name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from transformers import CONFIG_MAPPING, AutoConfig, CLIPVisionConfig, PreTrainedConfig

from tenfold import UserError

# The low-resolution encoder of every release: openai/clip-vit-large-patch14-336.
CLIP_LARGE_336: dict[str, Any] = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 336,
    "patch_size": 14,
    "projection_dim": 768,
}

# High-resolution encoders (section 3.2). `high_res_weights` is what the official code loads: the tag
# given in its scripts is ignored, and the architecture's default one comes (section 4.3).
HIGH_RES_ENCODERS: dict[str, dict[str, Any]] = {
    "convnext_large_mlp": {
        "high_res_dims": [192, 384, 768, 1536],
        "high_res_depths": [3, 3, 27, 3],
        "high_res_eps": 1e-6,
        "high_res_weights": "convnext_large_mlp.clip_laion2b_soup_ft_in12k_in1k_320",
    },
    "convnext_xxlarge": {
        "high_res_dims": [384, 768, 1536, 3072],
        "high_res_depths": [3, 4, 30, 3],
        "high_res_eps": 1e-5,
        "high_res_weights": "convnext_xxlarge.clip_laion2b_soup_ft_in1k",
    },
}

VICUNA_7B: dict[str, Any] = {
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "rms_norm_eps": 1e-5,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    "max_position_embeddings": 4096,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
VICUNA_13B = VICUNA_7B | {
    "hidden_size": 5120,
    "intermediate_size": 13824,
    "num_hidden_layers": 40,
    "num_attention_heads": 40,
    "num_key_value_heads": 40,
}

# The published models (section 4.1): language model and high-resolution encoder.
NAMED: dict[str, tuple[dict[str, Any], str]] = {
    "7b": (VICUNA_7B, "convnext_large_mlp"),
    "13b": (VICUNA_13B, "convnext_large_mlp"),
    "x-13b": (VICUNA_13B, "convnext_xxlarge"),
}


class LlavaHrVisionConfig(PreTrainedConfig):
    """The dual-pathway vision tower.

    Args:
        low_res_config: the CLIP vision transformer of the low-resolution pathway.
        image_size: R, side of the square image that comes in, in pixels; a multiple of 32.
        high_res_stride: pixels of the image per cell of the grid that sets the low-resolution size: that is
            ``max(int(R / high_res_stride * patch), min_low_size)``.
        min_low_size: smallest side of the low-resolution image, in pixels.
        high_res_name: timm architecture of the high-resolution pathway; fills the four fields below where they are
            left out.
        high_res_dims: channels of the four ConvNeXt stages.
        high_res_depths: blocks of the four ConvNeXt stages.
        high_res_eps: epsilon of the ConvNeXt's layer norms.
        high_res_weights: timm name (architecture.tag) of the weights that training starts from.
        adapters: whether there are MR-Adapters. This is the official ``not freeze_vision``: a stage-1 model has none.
        num_groups: groups of ViT layers; an adapter stands between each two.

    Raises:
        UserError: sizes that do not fit each other.
    """

    model_type = "llava_hr_vision"
    base_config_key = "vision_config"
    sub_configs: ClassVar = {"low_res_config": CLIPVisionConfig}

    if TYPE_CHECKING:  # a config once it is made
        low_res_config: Any = None
    else:
        low_res_config: dict | PreTrainedConfig | None = None
    image_size: int = 1024
    high_res_stride: int = 32
    min_low_size: int = 336
    high_res_name: str = "convnext_large_mlp"
    high_res_dims: list[int] | tuple[int, ...] | None = None
    high_res_depths: list[int] | tuple[int, ...] | None = None
    high_res_eps: float | None = None
    high_res_weights: str | None = None
    adapters: bool = True
    num_groups: int = 4

    def __post_init__(self, **kwargs: Any) -> None:
        if self.low_res_config is None:
            self.low_res_config = CLIPVisionConfig(**CLIP_LARGE_336)
        elif isinstance(self.low_res_config, dict):
            self.low_res_config = CLIPVisionConfig(**self.low_res_config)
        if self.high_res_name not in HIGH_RES_ENCODERS:
            raise UserError("unknown high_res_name", self.high_res_name, " or ".join(HIGH_RES_ENCODERS))
        for name, value in HIGH_RES_ENCODERS[self.high_res_name].items():
            if getattr(self, name) is None:
                setattr(self, name, value)
        self.high_res_dims, self.high_res_depths = list(self.high_res_dims or ()), list(self.high_res_depths or ())
        super().__post_init__(**kwargs)
        self._check_sizes()

    def _check_sizes(self) -> None:
        layers, groups = self.low_res_config.num_hidden_layers, self.num_groups
        if layers % groups:
            raise UserError("ViT layers do not split into groups", "num_groups", f"a divisor of {layers}, not {groups}")
        if self.image_size % 32:
            raise UserError("image_size does not fit the ConvNeXt", self.image_size, "a multiple of 32")
        if self.low_size(self.image_size) % self.low_res_config.patch_size:
            size, patch = self.low_size(self.image_size), self.low_res_config.patch_size
            raise UserError("the low-resolution size does not fit the ViT", size, f"a multiple of {patch}")
        low, high = self.num_tokens, (self.image_size // 32) ** 2
        if low % high and high % low:
            raise UserError("the two grids do not fit", f"{low} and {high} cells", "one a multiple of the other")

    def low_size(self, side: int) -> int:
        """Side of the low-resolution image in pixels for a high-resolution side (section 3.1)."""
        return max(int(side / self.high_res_stride * self.low_res_config.patch_size), self.min_low_size)

    @property
    def num_tokens(self) -> int:
        """Visual tokens N of an image of ``image_size``: 576, 576, 1024, 2304 at 384, 768, 1024, 1536 px."""
        return (self.low_size(self.image_size) // self.low_res_config.patch_size) ** 2

    @property
    def hidden_size(self) -> int:
        """Width d of the visual features."""
        return self.low_res_config.hidden_size


class LlavaHrConfig(PreTrainedConfig):
    """LLaVA-HR: a dual-pathway vision tower, a two-layer projector and a language model. Defaults: LLaVA-HR-7B.

    Args:
        text_config: configuration of the language model (Llama unless ``model_type`` says otherwise).
        vision_config: configuration of the tower.
        image_token_id: stands for a visual token in the input ids. The default lies one beyond the Vicuna vocabulary:
            it is taken out before the embedding look-up, so the embeddings keep their official rows.
        projector_hidden_act: activation between the projector's two layers.
        image_aspect_ratio: ``pad`` to a square, or ``square`` (resize the short side and crop, stage 1).
        conversation: name of the prompt template.
        allow_missing_images: let placeholders stand for nothing where no image is given, as transformers' LLaVA does;
            by default that is refused.

    Raises:
        UserError: a language model that transformers does not have.
    """

    model_type = "llava_hr"
    sub_configs: ClassVar = {"text_config": AutoConfig, "vision_config": LlavaHrVisionConfig}

    if TYPE_CHECKING:  # configs once they are made
        text_config: Any = None
        vision_config: Any = None
    else:
        text_config: dict | PreTrainedConfig | None = None
        vision_config: dict | PreTrainedConfig | None = None
    image_token_id: int = 32000
    projector_hidden_act: str = "gelu"
    image_aspect_ratio: str = "pad"
    conversation: str = "vicuna_v1"
    allow_missing_images: bool = False
    tie_word_embeddings: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        if self.text_config is None:
            self.text_config = CONFIG_MAPPING["llama"](**VICUNA_7B)
        elif isinstance(self.text_config, dict):
            text_type = self.text_config.get("model_type", "llama")
            if text_type not in CONFIG_MAPPING:
                raise UserError("unknown model_type of the language model", text_type, "one that transformers has")
            self.text_config = CONFIG_MAPPING[text_type](**self.text_config)
        if self.vision_config is None:
            self.vision_config = LlavaHrVisionConfig()
        elif isinstance(self.vision_config, dict):
            self.vision_config = LlavaHrVisionConfig(**self.vision_config)
        super().__post_init__(**kwargs)

    @property
    def num_image_tokens(self) -> int:
        """Visual tokens of one image."""
        return self.vision_config.num_tokens

    @classmethod
    def named(cls, name: str, image_size: int = 1024, adapters: bool = True) -> LlavaHrConfig:
        """A published model: ``7b``, ``13b`` or ``x-13b``.

        Args:
            name: the size.
            image_size: R in pixels: 384 in stage 1, else 768, 1024 or 1536.
            adapters: False for stage 1.

        Raises:
            UserError: no such name.
        """
        if name not in NAMED:
            raise UserError("unknown model size", name, ", ".join(NAMED))
        text, encoder = NAMED[name]
        vision = LlavaHrVisionConfig(high_res_name=encoder, image_size=image_size, adapters=adapters)
        return cls(text_config=CONFIG_MAPPING["llama"](**text), vision_config=vision)


AutoConfig.register(LlavaHrVisionConfig.model_type, LlavaHrVisionConfig, exist_ok=True)
AutoConfig.register(LlavaHrConfig.model_type, LlavaHrConfig, exist_ok=True)
