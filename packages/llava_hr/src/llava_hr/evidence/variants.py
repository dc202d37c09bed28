"""The towers that the miniature compares (sheet, sections 8.2, 8.3 and 11), all with the call of `LlavaHrVisionTower`.

    vit          (a) the ViT alone, at 84 pixels: LLaVA-1.5
    convnext     (b) the ConvNeXt alone, at 192 pixels
    align        (c) both, joined by the final combination only: no adapters
    mra          (d) both, the final combination and three MR-Adapters: LLaVA-HR
    low_to_high  (e) as (d), but the ViT's output is written into the ConvNeXt
    vit_double   (f) the ViT alone, at 168 pixels and with four times as many visual tokens

    model = build("mra", seed=0)

(a) to (e) make 36 visual tokens, (f) makes 144. Of one seed, what two variants have in common starts from the same
weights.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from llava_hr.miniature import encoders
from llava_hr.miniature import model as mini
from llava_hr.vision import LlavaHrVisionTower, MRAdapter, to_grid
from tenfold import UserError

if TYPE_CHECKING:
    from llava_hr.configuration import LlavaHrConfig, LlavaHrVisionConfig
    from llava_hr.modeling import LlavaHrForConditionalGeneration

VIT, CONVNEXT, ALIGN, MRA, LOW_TO_HIGH, VIT_DOUBLE = "vit", "convnext", "align", "mra", "low_to_high", "vit_double"


class ViTTower(LlavaHrVisionTower):
    """(a), (f): the low-resolution pathway alone."""

    def __init__(self, config: LlavaHrVisionConfig) -> None:
        super().__init__(config)
        del self.convnext, self.adapters, self.align

    def forward(self, pixel_values: Tensor, output_gates: bool = False) -> Tensor | tuple[Tensor, Tensor]:
        """`[images, N, d]`; as the other towers, without gates `[images, 0]`."""
        tokens = low_tokens(self, pixel_values)
        return (tokens, tokens.new_zeros(len(tokens), 0)) if output_gates else tokens


class ConvNeXtTower(LlavaHrVisionTower):
    """(b): the high-resolution pathway alone; its map is brought onto the grid that the ViT would have."""

    def __init__(self, config: LlavaHrVisionConfig) -> None:
        super().__init__(config)
        del self.vit, self.adapters, self.align
        self.hidden_size = config.high_res_dims[-1]

    def forward(self, pixel_values: Tensor, output_gates: bool = False) -> Tensor | tuple[Tensor, Tensor]:
        """`[images, N, c]`; as the other towers, without gates `[images, 0]`."""
        edge = self.config.low_size(pixel_values.shape[-1]) // self.config.low_res_config.patch_size
        tokens = to_grid(self.high_res(pixel_values), (edge, edge))
        return (tokens, tokens.new_zeros(len(tokens), 0)) if output_gates else tokens


class LowToHighTower(LlavaHrVisionTower):
    """(e): MR-Adapters with the pathways' roles exchanged.

    The ViT runs first; before each ConvNeXt stage but the first, an adapter writes the ViT's output into the map of
    the stage before, at that map's own resolution. The final combination is the same.
    """

    def __init__(self, config: LlavaHrVisionConfig) -> None:
        super().__init__(config)
        width = config.low_res_config.hidden_size
        count = len(self.adapters)
        self.adapters = nn.ModuleList(MRAdapter(channels, width) for channels in config.high_res_dims[:count])

    def forward(self, pixel_values: Tensor, output_gates: bool = False) -> Tensor | tuple[Tensor, Tensor]:
        """`[images, N, d]`; with `output_gates` also the gates `[images, adapters]`."""
        tokens = low_tokens(self, pixel_values)
        edge = round(tokens.shape[1] ** 0.5)
        written = tokens.transpose(1, 2).unflatten(2, (edge, edge))  # [images, d, rows, columns]
        high, gates = self.convnext.stem(pixel_values), []
        for number, stage in enumerate(self.convnext.stages):
            if 0 < number <= len(self.adapters):
                grid = (high.shape[2], high.shape[3])
                fused, gate = self.adapters[number - 1](high.flatten(2).transpose(1, 2), written, grid)
                high = fused.transpose(1, 2).unflatten(2, grid)
                gates.append(gate)
            high = stage(high)
        features = self.align(tokens, high, (edge, edge))
        if not output_gates:
            return features
        return features, torch.cat(gates, dim=1) if gates else features.new_zeros(len(features), 0)


def low_tokens(tower: LlavaHrVisionTower, pixel_values: Tensor) -> Tensor:
    """The low-resolution pathway of a tower, nothing written into it: `[images, N, d]`."""
    tokens = tower.vit.pre_layrnorm(tower.vit.embeddings(tower.low_res_image(pixel_values)))
    for layer in tower.vit.encoder.layers:
        tokens = layer(tokens, None)
    return tokens


_TOWERS = {
    VIT: ViTTower,
    CONVNEXT: ConvNeXtTower,
    ALIGN: LlavaHrVisionTower,
    MRA: LlavaHrVisionTower,
    LOW_TO_HIGH: LowToHighTower,
    VIT_DOUBLE: ViTTower,
}
VARIANTS = tuple(_TOWERS)
# The letters of the sheet's section 11.
LETTERS = dict(zip(VARIANTS, "abcdef", strict=True))


def config(variant: str) -> LlavaHrConfig:
    """The miniature's configuration, changed as far as a variant needs it.

    Raises:
        UserError: an unknown variant.
    """
    if variant not in _TOWERS:
        raise UserError("unknown variant", variant, ", ".join(VARIANTS))
    chosen = mini.mini_config()
    chosen.vision_config.adapters = variant in (MRA, LOW_TO_HIGH)
    if variant == VIT_DOUBLE:
        # One token for 16 pixels instead of 32.
        chosen.vision_config.high_res_stride = mini.STRIDE // 2
    return chosen


def build(variant: str, seed: int) -> LlavaHrForConditionalGeneration:
    """A variant before its training, float32: pre-trained encoders and language model, the rest drawn from the seed.

    torch's global generator is left as it was.

    Raises:
        UserError: an unknown variant.
    """
    from llava_hr.modeling import LlavaHrForConditionalGeneration
    from llava_hr.training.start import new_parts

    chosen = config(variant)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlavaHrForConditionalGeneration(chosen)
        tower = model.model.vision_tower = _TOWERS[variant](chosen.vision_config)
    own, drawn = model.state_dict(), new_parts(chosen, seed)
    # Low to high has adapters of its own.
    shared = {name: tensor for name, tensor in drawn.items() if name in own and own[name].shape == tensor.shape}
    model.load_state_dict(shared, strict=False)
    state = encoders.weights()
    encoders.load_language_model(model, state)
    if hasattr(tower, "vit"):
        vit = {
            name.replace(f"{VIT_DOUBLE}.", "vit."): tensor for name, tensor in state.items() if f"{VIT_DOUBLE}." in name
        }
        encoders.load_part(tower.vit, vit if variant == VIT_DOUBLE else state, "vit")
    if hasattr(tower, "convnext"):
        encoders.load_part(tower.convnext, state, "convnext")
    return model
