"""Mixture-of-resolution adaptation (Luo et al., ICLR 2025, arXiv 2403.03003): the vision tower of LLaVA-HR.

One image is seen twice: at R pixels by a ConvNeXt of stride 32, and resized by CLIP's ViT. Three MR-Adapters write
the ConvNeXt's features into the ViT between its quarters, each under a tanh gate that depends on the image; a final
linear combination joins both. 1024 pixels thus make 32 x 32 visual tokens.

    tower = LlavaHrVisionTower(LlavaHrVisionConfig())
    features = tower(pixel_values)  # [images, 3, 1024, 1024] -> [images, 1024, 1024]

The comments name sections of the method as this package was specified: 3.1 two pathways of one input, 3.2 high
resolution, 3.3 low resolution, 3.4 MR-Adapter, 3.5 grid alignment, 3.6 final combination. Where the paper's text and
its published weights differ, the weights decide: one gate per image instead of one per channel, pooled after the
residual, and learned projections in the final sum.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar, TypeVar

import torch
import torch.nn.functional as F
from timm.models.convnext import ConvNeXt, ConvNeXtBlock
from torch import Tensor, nn
from transformers import CLIPVisionModel, PreTrainedModel
from transformers import initialization as init
from transformers.models.clip.modeling_clip import CLIPVisionEmbeddings

from llava_hr.configuration import LlavaHrVisionConfig

Grid = tuple[int, int]  # rows and columns of a token map
Layer = TypeVar("Layer", bound=nn.Module)
LAYER_SCALE = 1e-6  # where a ConvNeXt block's layer scale starts without pretrained weights, timm's value


def to_grid(features: Tensor, grid: Grid) -> Tensor:
    """Bring a high-resolution map onto the ViT's grid, as tokens (section 3.5).

    Fewer cells than tokens: bilinear with aligned corners, in float32. More: averages over equal windows.

    Args:
        features: ``[batch, channels, height, width]``.
        grid: rows and columns wanted.

    Returns:
        ``[batch, rows * columns, channels]``, row by row, of the input's dtype.
    """
    height, width = features.shape[-2:]
    if height * width > grid[0] * grid[1]:
        features = F.avg_pool2d(features, kernel_size=(height // grid[0], width // grid[1]))
    elif (height, width) != grid:
        resized = F.interpolate(features.float(), size=grid, mode="bilinear", align_corners=True)
        features = resized.to(features.dtype)
    return features.flatten(2).transpose(1, 2)  # [batch, tokens, channels]


class MRAdapter(nn.Module):
    """Writes high-resolution features into the ViT's tokens, under one gate per image (section 3.4).

    Args:
        low_dim: width d of the ViT's tokens.
        high_dim: channels c of the ConvNeXt's last stage.
    """

    def __init__(self, low_dim: int, high_dim: int) -> None:
        super().__init__()
        # An identity at first: both projections are zero, so only they receive a gradient in the first step.
        self.slow_conv = initialised(nn.Conv2d(high_dim, high_dim, kernel_size=1), xavier_uniform)
        self.slow_proj = initialised(nn.Conv2d(high_dim, low_dim, kernel_size=1), zero)
        self.fast_conv = initialised(nn.Conv2d(low_dim, low_dim, 7, padding=3, groups=low_dim), xavier_uniform)
        self.fast_proj = initialised(nn.Conv2d(low_dim, low_dim, kernel_size=1), zero)
        self.gate = nn.Sequential(
            initialised(nn.Linear(2 * low_dim, low_dim // 2), fan_in_uniform),
            nn.GELU(),
            initialised(nn.Linear(low_dim // 2, 1), fan_in_uniform),
        )

    def reset_parameters(self) -> None:
        """Initialise again, drawing from torch's global generator."""
        for layer in (self.slow_conv, self.slow_proj, self.fast_conv, self.fast_proj, self.gate[0], self.gate[2]):
            layer.init_rule(layer)

    def forward(self, low: Tensor, high: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
        """
        Args:
            low: tokens y of the ViT, ``[batch, rows * columns, d]``.
            high: H, ``[batch, c, height, width]``.
            grid: rows and columns of the tokens.

        Returns:
            The fused tokens, of the shape of ``low``, and the gate ``[batch, 1]`` in (-1, 1).
        """
        s = self.high_branch(high, grid)
        y1 = self.low_branch(low, grid)
        v = torch.cat((y1.mean(dim=1), s.mean(dim=1)), dim=-1)  # [batch, 2d], low resolution first
        gate = torch.tanh(self.gate(v))  # [batch, 1]
        return y1 + gate[:, None] * s, gate

    def high_branch(self, high: Tensor, grid: Grid) -> Tensor:
        """``s = to_grid(slow_proj(GELU(slow_conv(H))))``, ``[batch, tokens, d]``: aligned after the convolutions."""
        return to_grid(self.slow_proj(F.gelu(self.slow_conv(high))), grid)

    def low_branch(self, low: Tensor, grid: Grid) -> Tensor:
        """``y1 = y + fast_proj(GELU(fast_conv(y)))``, ``[batch, tokens, d]``."""
        y = low.unflatten(1, grid).permute(0, 3, 1, 2)  # [batch, d, rows, columns]
        return low + self.fast_proj(F.gelu(self.fast_conv(y))).flatten(2).transpose(1, 2)


class FinalAlign(nn.Module):
    """``fast_proj(y) + slow_proj(to_grid(H))``: no gate, no norm, no residual (section 3.6).

    Args:
        low_dim: width d of the ViT's tokens.
        high_dim: channels c of the ConvNeXt's last stage.
    """

    def __init__(self, low_dim: int, high_dim: int) -> None:
        super().__init__()
        self.fast_proj = initialised(nn.Linear(low_dim, low_dim), fan_in_uniform)
        self.slow_proj = initialised(nn.Linear(high_dim, low_dim), fan_in_uniform)

    def forward(self, low: Tensor, high: Tensor, grid: Grid) -> Tensor:
        """``[batch, tokens, d]`` of tokens ``[batch, tokens, d]`` and H ``[batch, c, height, width]``."""
        return self.fast_proj(low) + self.slow_proj(to_grid(high, grid))


class LowResEmbedding(CLIPVisionEmbeddings):
    """CLIP's patch and position embedding at any grid, without the class token (section 3.3, steps 1 to 3)."""

    def forward(self, pixel_values: Tensor) -> Tensor:
        """``[batch, rows * columns, d]`` of ``[batch, 3, rows * patch, columns * patch]``."""
        patches = self.patch_embedding(pixel_values)  # [batch, d, rows, columns]
        grid = (patches.shape[2], patches.shape[3])
        tokens = patches.flatten(2).transpose(1, 2)
        tokens = torch.cat((self.class_embedding.expand(len(tokens), 1, -1), tokens), dim=1)
        tokens = tokens + self.positions(grid)
        return tokens[:, 1:]  # the class token takes no part in any attention

    def positions(self, grid: Grid) -> Tensor:
        """The position embedding for a grid, ``[1, 1 + rows * columns, d]``, class row first."""
        positions = self.position_embedding(self.position_ids)  # [1, 1 + native * native, d]
        native = math.isqrt(positions.shape[1] - 1)
        if grid == (native, native):
            return positions
        cells = positions[:, 1:].unflatten(1, (native, native)).permute(0, 3, 1, 2)  # [1, d, native, native]
        cells = F.interpolate(cells.float(), size=grid, mode="bicubic", antialias=True, align_corners=False)
        cells = cells.flatten(2).transpose(1, 2).to(positions.dtype)
        return torch.cat((positions[:, :1], cells), dim=1)


class LlavaHrVisionTower(PreTrainedModel):
    """The dual-pathway tower: one image in, visual features out (sections 3.1 to 3.6).

    Setting ``gradient_checkpointing`` (transformers does, with the model's) recomputes the ConvNeXt block by block in
    the backward pass; the ViT's layers have their own switch. Its attention, that of the ViT, is chosen as any model's.

    Args:
        config: sizes of both encoders.
    """

    config_class = LlavaHrVisionConfig
    config: LlavaHrVisionConfig
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True
    _no_split_modules: ClassVar = ["LlavaHrVisionTower"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    def __init__(self, config: LlavaHrVisionConfig) -> None:
        super().__init__(config)
        low_dim, high_dim = config.low_res_config.hidden_size, config.high_res_dims[-1]
        self.hidden_size = low_dim
        self.num_tokens = config.num_tokens
        self.vit = CLIPVisionModel(config.low_res_config)
        self.vit.embeddings = LowResEmbedding(config.low_res_config)
        self.vit.post_layernorm = nn.Identity()  # never applied to the tokens
        self.convnext = ConvNeXt(
            num_classes=0, depths=config.high_res_depths, dims=config.high_res_dims, norm_eps=config.high_res_eps
        )
        self.convnext.head = nn.Identity()
        self.adapters = nn.ModuleList(
            MRAdapter(low_dim, high_dim) for _ in range(config.num_groups - 1 if config.adapters else 0)
        )
        self.align = FinalAlign(low_dim, high_dim)
        self.gradient_checkpointing = False
        self.post_init()

    def init_weights(self) -> None:
        """Nothing here: a layer has drawn its weights when it was made, and a whole model draws in its own order."""

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        init_by_rule(module)

    def forward(self, pixel_values: Tensor, output_gates: bool = False) -> Tensor | tuple[Tensor, Tensor]:
        """
        Args:
            pixel_values: normalised images, ``[images, 3, R, R]``.
            output_gates: also return the gates.

        Returns:
            Visual features ``[images, N, d]``; with ``output_gates`` also the gates ``[images, adapters]``.
        """
        pixel_values = pixel_values.to(self.convnext.stem[0].weight.dtype)
        high = self.high_res(pixel_values)
        low_image = self.low_res_image(pixel_values)
        patch = self.config.low_res_config.patch_size
        grid = (low_image.shape[2] // patch, low_image.shape[3] // patch)
        tokens = self.vit.pre_layrnorm(self.vit.embeddings(low_image))  # [images, N, d]

        # 3.3, 3.4: the ViT's layers in equal groups, an adapter before each group but the first; every adapter sees
        # the same H. The outputs of all layers are used: no layer is left out at the end.
        layers = self.vit.encoder.layers
        per_group = len(layers) // self.config.num_groups
        gates = []
        for index, layer in enumerate(layers):
            group, position = divmod(index, per_group)
            if self.adapters and group > 0 and position == 0:
                tokens, gate = self.adapters[group - 1](tokens, high, grid)
                gates.append(gate)
            tokens = layer(tokens, None)

        features = self.align(tokens, high, grid)
        if output_gates:
            return features, torch.cat(gates, dim=1) if gates else features.new_zeros(len(features), 0)
        return features

    def high_res(self, pixel_values: Tensor) -> Tensor:
        """H ``[images, c, R / 32, R / 32]``: the ConvNeXt's stem and four stages, without its final norm (3.2)."""
        high = self.convnext.stem(pixel_values)
        for stage in self.convnext.stages:
            high = stage.downsample(high)
            for block in stage.blocks:
                if self.gradient_checkpointing and self.training:
                    high = self._gradient_checkpointing_func(block, high)
                else:
                    high = block(high)
        return high

    def low_res_image(self, pixel_values: Tensor) -> Tensor:
        """The image at the ViT's size, ``[images, 3, low, low]``: bilinear in float32 with aligned corners, without
        anti-aliasing (section 3.1)."""
        size = [self.config.low_size(side) for side in pixel_values.shape[-2:]]
        resized = F.interpolate(pixel_values.float(), size=size, mode="bilinear", align_corners=True)
        return resized.to(pixel_values.dtype)


@contextmanager
def recorded(tower: nn.Module, hidden_states: bool, attentions: bool) -> Iterator[tuple[list[Tensor], list[Tensor]]]:
    """Keep what a tower's ViT layers say while it runs: the first one's input, each one's output, and attention where
    the layers' implementation gives it. A tower that was put in the place of this one has nothing to keep."""
    states: list[Tensor] = []
    weights: list[Tensor] = []
    layers: Any = tower.vit.encoder.layers if isinstance(tower, LlavaHrVisionTower) else []

    def attended(_module: nn.Module, _inputs: Any, output: tuple[Tensor, Tensor | None]) -> None:
        if output[1] is not None:
            weights.append(output[1])

    hooks = []
    if hidden_states and len(layers):
        hooks.append(layers[0].register_forward_pre_hook(lambda _module, inputs: states.append(inputs[0])))
        hooks += [layer.register_forward_hook(lambda _module, _inputs, out: states.append(out)) for layer in layers]
    if attentions:
        hooks += [layer.self_attn.register_forward_hook(attended) for layer in layers]
    try:
        yield states, weights
    finally:
        for hook in hooks:
            hook.remove()


def init_by_rule(module: nn.Module) -> None:
    """What this model's layers start from where transformers has no rule, or another one."""
    if (rule := getattr(module, "init_rule", None)) is not None:
        rule(module)
    elif isinstance(module, ConvNeXtBlock):
        init.constant_(module.gamma, LAYER_SCALE)


def initialised(layer: Layer, rule: Callable[[Any], None]) -> Layer:
    """Initialise a layer by a rule, and leave the rule with it: transformers initialises by rules of its own after
    building a model, and what a checkpoint lacks after loading it, on whatever device."""
    layer.init_rule = rule
    rule(layer)
    return layer


def xavier_uniform(conv: nn.Conv2d) -> None:
    """Xavier-uniform weight, zero bias. The fans are spelled out, as a weight that DeepSpeed has partitioned shows no
    shape."""
    area = conv.kernel_size[0] * conv.kernel_size[1]
    fan_in, fan_out = area * conv.in_channels // conv.groups, area * conv.out_channels
    bound = math.sqrt(6 / (fan_in + fan_out))
    init.uniform_(conv.weight, -bound, bound)
    init.zeros_(conv.bias)


def fan_in_uniform(linear: nn.Linear) -> None:
    """PyTorch's default: U(+-1 / sqrt(fan_in)) for weight and bias."""
    bound = 1 / math.sqrt(linear.in_features)
    init.uniform_(linear.weight, -bound, bound)
    init.uniform_(linear.bias, -bound, bound)


def zero(conv: nn.Conv2d) -> None:
    """Zero weight and bias."""
    init.zeros_(conv.weight)
    init.zeros_(conv.bias)
