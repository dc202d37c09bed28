"""SigLIP and Phi-2 as FlashSloth uses them (sheet sections 3.1, 3.6 and 3.7), and what transformers asks of a model.

The vision tower is SigLIP without its last layer, its final norm and its head: a feature is the raw residual stream
after 26 of 27 layers; there is no class token. The official tower never lets gradients through, in HD training neither
(section 5); `config.train_vision` does.

The language model is a Phi with a step before one of its layers. The loop over the decoder layers is written out,
because the step belongs to a call: it comes as an argument, and no hook or module holds anything of it. With
``output_hidden_states`` the entry of that layer is the updated one, as in the official code.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PhiConfig, PreTrainedModel, SiglipVisionConfig, SiglipVisionModel
from transformers import initialization as init
from transformers.cache_utils import Cache
from transformers.masking_utils import create_causal_mask
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.models.phi.modeling_phi import PhiModel
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from flashsloth.configuration import FlashSlothConfig, write_card
from flashsloth.embq import QueryTokens
from tenfold import UserError
from tenfold.hosts.ragged import cache_name

Step = Callable[[Tensor], Tensor]
_CACHE = cache_name(PhiModel.forward)


class VisionTower(SiglipVisionModel):
    """``[pictures, 3, 384, 384] -> [pictures, 729, 1152]``.

    Args:
        config: of the layers that are kept.
        trained: whether gradients reach the tower.
    """

    def __init__(self, config: SiglipVisionConfig, trained: bool = False) -> None:
        super().__init__(config)
        self.post_layernorm = nn.Identity()  # type: ignore[assignment]
        self.trained = trained

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Patches of normalised pictures, row by row."""
        with torch.set_grad_enabled(self.trained and torch.is_grad_enabled()):
            return self.encoder(inputs_embeds=self.embeddings(pixel_values)).last_hidden_state


def pictures(pixel_values: Tensor, config: FlashSlothConfig) -> Tensor:
    """Images as single pictures, view after view: ``[images * views, 3, R, R]``.

    Args:
        pixel_values: ``[images, 3, R, R]``, or in HD ``[images, views, 3, R, R]``.

    Raises:
        UserError: another shape.
    """
    side = config.vision_config.image_size
    expected: list[int] = [*([config.views] if config.views > 1 else []), 3, side, side]
    if pixel_values.ndim == 5 and config.views == 1 and pixel_values.shape[1] == 1:
        pixel_values = pixel_values[:, 0]
    if list(pixel_values.shape[1:]) != expected:
        wanted = ", ".join(map(str, expected))
        raise UserError(f"pixel_values {list(pixel_values.shape)}", "forward", f"[images, {wanted}]")
    return pixel_values.flatten(0, 1) if config.views > 1 else pixel_values


class PhiWithQueries(PhiModel):
    """A Phi whose layer ``step_layer`` is entered through a step.

    Args:
        config: of the Phi.
        step_layer: counted from 0; EmbQ's is 7, the eighth.
    """

    def __init__(self, config: PhiConfig, step_layer: int) -> None:
        super().__init__(config)
        self.step_layer = step_layer

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        inputs_embeds: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        use_cache: bool | None = None,
        step: Step | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """As PhiModel's, from embeddings alone.

        Args:
            inputs_embeds: ``[batch, tokens, d]``.
            step: hidden states ``[batch, tokens, d]`` -> the same shape, where they enter layer ``step_layer``.
        """
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)
        if position_ids is None:
            past = past_key_values.get_seq_length() if past_key_values is not None else 0
            tokens = inputs_embeds.shape[1]  # type: ignore[union-attr]
            position_ids = torch.arange(tokens, device=inputs_embeds.device).unsqueeze(0) + past  # type: ignore[union-attr]
        cached: dict[str, Any] = {_CACHE: past_key_values}
        mask = create_causal_mask(
            config=self.config,
            inputs_embeds=inputs_embeds,  # type: ignore[arg-type]
            attention_mask=attention_mask,
            position_ids=position_ids,
            **cached,
        )
        hidden = self.embed_dropout(inputs_embeds)
        rotary = self.rotary_emb(hidden, position_ids=position_ids)
        for index, layer in enumerate(self.layers[: self.config.num_hidden_layers]):
            if step is not None and index == self.step_layer:
                hidden = step(hidden)
            hidden = layer(
                hidden,
                attention_mask=mask,
                position_ids=position_ids,
                use_cache=use_cache,
                position_embeddings=rotary,
                **cached,
                **kwargs,
            )
        return BaseModelOutputWithPast(last_hidden_state=self.final_layernorm(hidden), **cached)


class FlashSlothPreTrainedModel(PreTrainedModel):
    """What transformers asks of a model: what it supports, how it begins, how it is saved."""

    config_class = FlashSlothConfig
    config: FlashSlothConfig
    base_model_prefix = "model"
    input_modalities = ("image", "text")  # type: ignore[assignment]
    supports_gradient_checkpointing = True
    _no_split_modules: ClassVar = ["PhiDecoderLayer", "SiglipEncoderLayer", "EmbeddedQuery", "SpatialAttentionPooling"]  # type: ignore[misc]
    _skip_keys_device_placement: ClassVar = ["past_key_values", "cache"]  # type: ignore[misc]
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = False  # the prefill reads its ids on the host

    @torch.no_grad()
    def _init_weights(self, module: Any) -> None:
        """Phi's and SigLIP's parts by their own rules; EmbQ by N(0, 0.02) as the official code (section 3.6)."""
        rule = getattr(module, "init_rule", None)  # of a single layer: these are visited before what holds them
        if rule == "default":  # torch's own, as the official code leaves it
            for values in (module.weight, module.bias):
                init.uniform_(values, -(module.in_features**-0.5), module.in_features**-0.5)
        elif rule == "embq":
            init.normal_(module.weight, std=self.config.embq_initializer_range or module.in_features**-0.5)
            init.zeros_(module.bias)
        else:
            super()._init_weights(module)
        if isinstance(module, QueryTokens):
            bound = module.token.shape[1] ** -0.5  # section 3.3
            init.uniform_(module.token, -bound, bound)

    def save_pretrained(self, save_directory: str | os.PathLike[str], *args: Any, **kwargs: Any) -> None:
        """As transformers' own, with a model card where there is none yet."""
        super().save_pretrained(save_directory, *args, **kwargs)
        if kwargs.get("is_main_process", True):
            write_card(save_directory, self.config)
