"""Official LLaVA-HR checkpoints and this package's models: names of the weights (sheet section 4.2), and configs.

    part          official                                    this package
    decoder       model.{embed_tokens,layers,norm}.           model.language_model.{embed_tokens,layers,norm}.
    head          lm_head.                                    lm_head.
    projector     model.mm_projector.{0,2}.                   model.multi_modal_projector.linear_{1,2}.
    tower         model.vision_tower.                         model.vision_tower.
      ViT           fast_vision_tower.vision_tower.vision_model.    vit.
      ConvNeXt      slow_vision_tower.vision_tower.                 convnext.
        layer scale   stages.S.blocks.N.weight                        stages.S.blocks.N.gamma
      MR-Adapters   align_stages_latent.{0,1,2}.                    adapters.{0,1,2}.
      final align   align_stages.0.                                 align.

The official files also carry what no computation uses (`UNUSED`): ConvNeXt's head, CLIP's last norm, and buffers.
Whole folders are converted by `llava_hr.checkpoints.convert`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

from huggingface_hub.errors import StrictDataclassError
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor
from transformers import CLIPVisionConfig, LlamaConfig

from llava_hr.configuration import CLIP_LARGE_336, HIGH_RES_ENCODERS, LlavaHrConfig, LlavaHrVisionConfig
from tenfold import UserError
from tenfold.runs.record import validation_error

TOWER = "model.vision_tower."
VIT = f"{TOWER}fast_vision_tower.vision_tower.vision_model."
CONVNEXT = f"{TOWER}slow_vision_tower.vision_tower."
# Official prefix -> ours. No prefix begins another one.
_PARTS = {
    f"{VIT}embeddings.": "model.vision_tower.vit.embeddings.",
    f"{VIT}pre_layrnorm.": "model.vision_tower.vit.pre_layrnorm.",
    f"{VIT}encoder.": "model.vision_tower.vit.encoder.",
    f"{CONVNEXT}stem.": "model.vision_tower.convnext.stem.",
    f"{CONVNEXT}stages.": "model.vision_tower.convnext.stages.",
    f"{TOWER}align_stages_latent.": "model.vision_tower.adapters.",
    f"{TOWER}align_stages.0.": "model.vision_tower.align.",
    "model.mm_projector.0.": "model.multi_modal_projector.linear_1.",
    "model.mm_projector.2.": "model.multi_modal_projector.linear_2.",
    "model.embed_tokens.": "model.language_model.embed_tokens.",
    "model.layers.": "model.language_model.layers.",
    "model.norm.": "model.language_model.norm.",
    "lm_head.": "lm_head.",
}
ADAPTERS = f"{TOWER}align_stages_latent."
# Official names without a place in our model: no output depends on these. The head may have any size.
UNUSED = re.compile(
    rf"{re.escape(VIT)}(post_layernorm\.|embeddings\.position_ids$)"
    rf"|{re.escape(CONVNEXT)}head\."
    r"|model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq$"
)
_LAYER_SCALE = re.compile(r"(\.stages\.\d+\.blocks\.\d+)\.(weight|gamma)$")


def to_ours(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights under official names, renamed for `LlavaHrForConditionalGeneration.load_state_dict`.

    What no computation uses (`UNUSED`) is left out; tensors are passed on, not copied.

    Raises:
        UserError: a name that LLaVA-HR does not have.
    """
    return {new: state_dict[old] for old, new in renamed(state_dict, "ours").items()}


def to_official(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of a `LlavaHrForConditionalGeneration` under official names; tensors are passed on, not copied.

    Raises:
        UserError: a name that LLaVA-HR does not have.
    """
    return {new: state_dict[old] for old, new in renamed(state_dict, "official").items()}


def renamed(names: Iterable[str], to: str, where: Path | None = None) -> dict[str, str]:
    """Old name -> new name, in the order given.

    Args:
        names: official ones for ``to`` "ours", of which `UNUSED` ones are left out; ours for "official".
        where: the file or folder that they come from, for the message.

    Raises:
        UserError: a name that LLaVA-HR does not have.
    """
    if to == "ours":
        return {name: _to_ours(name, where) for name in names if not UNUSED.match(name)}
    return {name: _to_official(name, where) for name in names}


def _to_ours(name: str, where: Path | None) -> str:
    for official, ours in _PARTS.items():
        if name.startswith(official):
            new = ours + name.removeprefix(official)
            return _LAYER_SCALE.sub(r"\1.gamma", new) if official.startswith(CONVNEXT) else new
    raise UserError(f"LLaVA-HR has no weight {name}", where, "official names, such as model.mm_projector.0.weight")


def _to_official(name: str, where: Path | None) -> str:
    for official, ours in _PARTS.items():
        if name.startswith(ours):
            new = official + name.removeprefix(ours)
            return _LAYER_SCALE.sub(r"\1.weight", new) if official.startswith(CONVNEXT) else new
    expected = "this package's names, such as model.multi_modal_projector.linear_1.weight"
    raise UserError(f"LLaVA-HR has no weight {name}", where, expected)


# Rows of the ConvNeXt's head -> the weights that its training started from (section 4.3).
HIGH_RES_WEIGHTS = {
    "convnext_large_mlp": {
        1000: "convnext_large_mlp.clip_laion2b_soup_ft_in12k_in1k_320",
        768: "convnext_large_mlp.clip_laion2b_ft_320",
    },
    "convnext_xxlarge": {
        1000: "convnext_xxlarge.clip_laion2b_soup_ft_in1k",
        1024: "convnext_xxlarge.clip_laion2b_soup",
    },
}
# What the official scripts name; their code takes the size from it and ignores the rest.
_SCRIPTED = {
    "convnext_large_mlp": "convnext_large_mlp.clip_laion2b_ft_320",
    "convnext_xxlarge": "convnext_xxlarge.clip_laion2b_soup",
}
CLIP_L_336 = "openai/clip-vit-large-patch14-336"
# For encoders of other dimensions: CLIP's config beside the release's own, in a folder that its config names.
TOWER_FOLDER = "vision_tower"
HEAD_WIDTH = 64
# transformers' own field names, spelt alike in both configs.
_SAME = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "max_position_embeddings",
    "hidden_act",
    "rms_norm_eps",
    "initializer_range",
    "tie_word_embeddings",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
)


class OfficialConfig(BaseModel):
    """`config.json` of an official stage-2 model (section 4.1): Llama's fields, and LLaVA-HR's own.

    Attributes:
        freeze_vision: decides the architecture: the MR-Adapters exist only where it is false.
        mm_vision_select_layer, mm_vision_select_feature: without effect; not read.
    """

    model_config = ConfigDict(extra="ignore")

    model_type: Literal["llava"]
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int | None = None
    max_position_embeddings: int
    hidden_act: str = "silu"
    rms_norm_eps: float
    initializer_range: float = 0.02
    rope_theta: float = 10000.0
    rope_scaling: None = None
    tie_word_embeddings: Literal[False] = False
    bos_token_id: int = 1
    eos_token_id: int = 2
    pad_token_id: int | None = None
    torch_dtype: Literal["float16", "bfloat16", "float32"] = "bfloat16"
    is_multipath_encoder: Literal[True]
    mm_vision_tower: str
    vision_tower_slow: str
    freeze_vision: bool = False
    input_image_size: int
    image_aspect_ratio: Literal["pad", "square"] = "square"
    mm_projector_type: Literal["mlp2x_gelu"]
    mm_use_im_start_end: Literal[False] = False

    @property
    def high_res_name(self) -> str | None:
        """The ConvNeXt's architecture, None where it is another encoder."""
        named = self.vision_tower_slow.rpartition("/")[2]
        return next((name for name in HIGH_RES_WEIGHTS if named.startswith(name)), None)


class TowerConfig(BaseModel):
    """What CLIP's weights do not show of it, under transformers' names.

    Attributes:
        num_attention_heads: None: heads are 64 wide, as in CLIP ViT-L.
    """

    model_config = ConfigDict(extra="ignore")

    num_attention_heads: int | None = Field(default=None, ge=1)
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5
    projection_dim: int = 768


def is_official(config: Mapping[str, Any]) -> bool:
    """Whether a config.json is an official LLaVA-HR's; transformers would take it for its own LLaVA."""
    return "vision_tower_slow" in config or bool(config.get("is_multipath_encoder"))


def config_to_ours(
    official: Mapping[str, Any],
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    where: Path | None = None,
    tower: TowerConfig | None = None,
) -> LlavaHrConfig:
    """The config of an official model as ours.

    An official config names its encoders and leaves their dimensions to the files that it names.

    Args:
        official: content of config.json.
        shapes: official name -> shape of the weights, for the encoders' dimensions; None: those of the released models.
        where: the config's file, for the message.
        tower: CLIP's own config, where there is one.

    Raises:
        UserError: not LLaVA-HR's (another projector, other encoders, ...); names the field.
    """
    # Written as null by some versions of the official code.
    given = {name: value for name, value in official.items() if value is not None}
    try:
        read = OfficialConfig.model_validate(given)
    except ValidationError as error:
        raise validation_error(error, where or "config.json", "an official LLaVA-HR config") from error
    if read.high_res_name is None:
        raise UserError(f"high-resolution encoder {read.vision_tower_slow}", where, " or ".join(HIGH_RES_WEIGHTS))
    llama: dict[str, Any] = {name: getattr(read, name) for name in _SAME}
    llama["num_key_value_heads"] = read.num_key_value_heads or read.num_attention_heads
    llama["rope_parameters"] = {"rope_type": "default", "rope_theta": read.rope_theta}
    try:
        return LlavaHrConfig(
            text_config=LlamaConfig(**llama),
            vision_config=_vision_config(read, shapes, where, tower),
            image_token_id=read.vocab_size,
            image_aspect_ratio=read.image_aspect_ratio,
            dtype=read.torch_dtype,
            architectures=["LlavaHrForConditionalGeneration"],
        )
    except (StrictDataclassError, ValueError) as error:
        raise UserError(f"unusable ({error})", where, "an official LLaVA-HR config") from error


def _vision_config(
    read: OfficialConfig,
    shapes: Mapping[str, tuple[int, ...]] | None,
    where: Path | None,
    tower: TowerConfig | None,
) -> LlavaHrVisionConfig:
    name = read.high_res_name
    given: dict[str, Any] = {
        "image_size": read.input_image_size,
        "high_res_name": name,
        "adapters": not read.freeze_vision,
    }
    if shapes is not None:
        given |= _conv_dimensions(shapes, name or "", where)
        given["low_res_config"] = CLIPVisionConfig(**_clip_dimensions(shapes, where, tower or TowerConfig()))
    return LlavaHrVisionConfig(**given)


def _conv_dimensions(shapes: Mapping[str, tuple[int, ...]], name: str, where: Path | None) -> dict[str, Any]:
    """Widths and depths of the ConvNeXt, and the weights it started from, as its weights show them."""
    block = re.compile(rf"{re.escape(CONVNEXT)}stages\.(\d+)\.blocks\.(\d+)\.conv_dw\.weight$")
    widths: dict[int, int] = {}
    depths: dict[int, int] = {}
    for key, shape in shapes.items():
        if found := block.match(key):
            stage, number = map(int, found.groups())
            widths[stage], depths[stage] = shape[0], max(depths.get(stage, 0), number + 1)
    if sorted(widths) != [0, 1, 2, 3]:
        raise UserError(f"a ConvNeXt of {len(widths)} stages", where, f"four stages, named {CONVNEXT}stages.0 to 3")
    head = shapes.get(f"{CONVNEXT}head.fc.weight", (0,))[0]
    found_weights = HIGH_RES_WEIGHTS[name].get(head)
    return {
        "high_res_dims": [widths[stage] for stage in range(4)],
        "high_res_depths": [depths[stage] for stage in range(4)],
        **({"high_res_weights": found_weights} if found_weights else {}),
    }


def _clip_dimensions(shapes: Mapping[str, tuple[int, ...]], where: Path | None, tower: TowerConfig) -> dict[str, Any]:
    """Dimensions of the ViT as its weights show them; heads and activation from its config, where there is one."""
    try:
        width, _, patch, _ = shapes[f"{VIT}embeddings.patch_embedding.weight"]
        positions = shapes[f"{VIT}embeddings.position_embedding.weight"][0]
        intermediate = shapes[f"{VIT}encoder.layers.0.mlp.fc1.weight"][0]
    except (KeyError, ValueError, IndexError) as error:
        raise UserError("no CLIP vision tower in the weights", where, f"weights named {VIT}*") from error
    prefix = f"{VIT}encoder.layers."
    layers = {key.removeprefix(prefix).partition(".")[0] for key in shapes if key.startswith(prefix)}
    heads = tower.num_attention_heads or width // HEAD_WIDTH
    if not heads or width % heads:
        expected = f"heads of {HEAD_WIDTH}, or num_attention_heads in {TOWER_FOLDER}/config.json"
        raise UserError(f"a ViT of width {width}", where, expected)
    return {
        "hidden_size": width,
        "intermediate_size": intermediate,
        "num_hidden_layers": len(layers),
        "num_attention_heads": heads,
        "image_size": math.isqrt(positions - 1) * patch,
        "patch_size": patch,
        "hidden_act": tower.hidden_act,
        "layer_norm_eps": tower.layer_norm_eps,
        "projection_dim": tower.projection_dim,
    }


def config_to_official(config: LlavaHrConfig) -> dict[str, Any]:
    """Our config as an official `config.json`; the fields of the official code that have no effect keep its defaults.

    Raises:
        UserError: a language model or an encoder that the official code does not have.
    """
    text, vision = config.text_config, config.vision_config
    if text.model_type != "llama":
        raise UserError(f"language model {text.model_type}", expected="llama: the official code has no other")
    for name, value, constant in (
        ("high_res_stride", vision.high_res_stride, 32),
        ("min_low_size", vision.min_low_size, 336),
        ("num_groups", vision.num_groups, 4),
        ("high_res_eps", vision.high_res_eps, HIGH_RES_ENCODERS[vision.high_res_name]["high_res_eps"]),
        ("projector_hidden_act", config.projector_hidden_act, "gelu"),
    ):
        if value != constant:
            raise UserError(f"{name} is {value}", None, f"{constant}, which is a constant of the official code")
    dtype = str(config.dtype or "bfloat16").removeprefix("torch.")
    return {name: getattr(text, name) for name in _SAME} | {
        "architectures": ["LlavaLlamaForCausalLM"],
        "model_type": "llava",
        "num_key_value_heads": text.num_key_value_heads,
        "rope_theta": text.rope_parameters["rope_theta"],
        "rope_scaling": None,
        "torch_dtype": dtype,
        "use_cache": True,
        "is_multipath_encoder": True,
        "freeze_vision": not vision.adapters,
        "input_image_size": vision.image_size,
        "image_aspect_ratio": config.image_aspect_ratio,
        "image_grid_pinpoints": None,
        "mm_vision_tower": CLIP_L_336 if is_clip_l(vision) else TOWER_FOLDER,
        "vision_tower_slow": _SCRIPTED[vision.high_res_name],
        "mm_projector_type": "mlp2x_gelu",
        "mm_hidden_size": vision.hidden_size,
        "mm_vision_select_layer": -2,
        "mm_vision_select_feature": "patch",
        "mm_use_im_start_end": False,
        "mm_use_im_patch_token": False,
        "tune_mm_mlp_adapter": False,
        "freeze_mm_mlp_adapter": False,
        "use_mm_proj": True,
        "delay_load": False,
    }


def is_clip_l(vision: LlavaHrVisionConfig) -> bool:
    """Whether the low-resolution encoder has the dimensions of CLIP ViT-L/14-336."""
    return all(getattr(vision.low_res_config, name) == value for name, value in CLIP_LARGE_336.items())


def unused_shapes(config: LlavaHrConfig, classes: int = 1000) -> dict[str, tuple[int, ...]]:
    """Official name -> shape of the parameters that official files carry and nothing uses (`UNUSED`).

    Args:
        classes: rows of the ConvNeXt's head.
    """
    width, channels = config.vision_config.hidden_size, config.vision_config.high_res_dims[-1]
    shapes: dict[str, tuple[int, ...]] = {f"{VIT}post_layernorm.{name}": (width,) for name in ("weight", "bias")}
    shapes |= {f"{CONVNEXT}head.norm.{name}": (channels,) for name in ("weight", "bias")}
    if config.vision_config.high_res_name == "convnext_large_mlp":
        shapes[f"{CONVNEXT}head.pre_logits.fc.weight"] = (channels, channels)
        shapes[f"{CONVNEXT}head.pre_logits.fc.bias"] = (channels,)
    return shapes | {f"{CONVNEXT}head.fc.weight": (classes, channels), f"{CONVNEXT}head.fc.bias": (classes,)}
