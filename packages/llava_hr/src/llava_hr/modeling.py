"""LLaVA-HR as a transformers model: dual-pathway tower, projector, language model (sheet section 3.7).

    model = LlavaHrForConditionalGeneration.from_pretrained(folder)
    tokens = model.generate(**processor(images=image, text=prompt, return_tensors="pt"), max_new_tokens=64)

Input ids hold ``config.image_token_id`` once per visual token; images come in reading order over the batch. An image
asked about several times needs the tower only once:

    visual_tokens = model.encode_images(pixel_values)
    model.generate(input_ids=first, visual_tokens=visual_tokens)
    model.generate(input_ids=second, visual_tokens=visual_tokens)
"""

# Annotations are not deferred here: transformers' own tests read the types of forward's options.

from dataclasses import dataclass
from typing import Any, ClassVar, Unpack

import torch
from torch import Tensor, nn
from transformers import (
    AutoModel,
    AutoModelForImageTextToText,
    GenerationMixin,
    PreTrainedModel,
)
from transformers.activations import ACT2FN
from transformers.cache_utils import Cache
from transformers.modeling_outputs import (
    BaseModelOutputWithPast,
    BaseModelOutputWithPooling,
    CausalLMOutputWithPast,
)
from transformers.utils import TransformersKwargs
from transformers.utils.generic import can_return_tuple

from llava_hr.configuration import LlavaHrConfig
from llava_hr.vision import LlavaHrVisionTower, fan_in_uniform, init_by_rule, initialised, recorded
from tenfold import InputError
from tenfold.hosts.visual_tokens import (
    encoded_once,
    expanded_images,
    forwarded,
    head_outputs,
    own_positions,
    place_visual_tokens,
    require_one_input,
    require_placeholders,
    zero_of_weights,
)


@dataclass
class LlavaHrModelOutput(BaseModelOutputWithPast):
    """Hidden states of the language model, and the visual tokens that went in.

    Attributes:
        image_hidden_states: ``[images, N, D]``, or None without images.
    """

    image_hidden_states: Tensor | None = None


@dataclass
class LlavaHrOutput(CausalLMOutputWithPast):
    """Loss (mean cross entropy over the tokens whose label is not -100) and logits ``[batch, kept tokens,
    vocabulary]``; the rest as in :class:`LlavaHrModelOutput`."""

    image_hidden_states: Tensor | None = None


class LlavaHrProjector(nn.Module):
    """``Linear(d -> D), GELU, Linear(D -> D)`` (section 3.6, the official mlp2x_gelu)."""

    def __init__(self, config: LlavaHrConfig) -> None:
        super().__init__()
        width = config.text_config.hidden_size
        self.linear_1 = initialised(nn.Linear(config.vision_config.hidden_size, width), fan_in_uniform)
        self.act = ACT2FN[config.projector_hidden_act]
        self.linear_2 = initialised(nn.Linear(width, width), fan_in_uniform)

    def forward(self, features: Tensor) -> Tensor:
        """``[images, N, d] -> [images, N, D]``."""
        return self.linear_2(self.act(self.linear_1(features)))


class LlavaHrPreTrainedModel(PreTrainedModel):
    config_class = LlavaHrConfig
    config: LlavaHrConfig
    base_model_prefix = "model"
    input_modalities = ("image", "text")
    supports_gradient_checkpointing = True
    _no_split_modules: ClassVar = ["LlavaHrVisionTower"]
    _skip_keys_device_placement: ClassVar = ["past_key_values", "cache"]
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        init_by_rule(module)


class LlavaHrModel(LlavaHrPreTrainedModel):
    """Tower, projector and language model, without the language modelling head.

    Attributes:
        vision_tower: may be replaced by any module with ``forward(pixel_values [images, 3, R, R]) -> [images, N, d]``.
        dummy_image: what a batch without images does while training. "image" or True: it sends a zero image through
            tower and projector and adds nothing of it, so that all ranks run the same modules. "weights": it gives
            their weights a gradient of zero without a pass, for one process. False: nothing.
    """

    def __init__(self, config: LlavaHrConfig) -> None:
        super().__init__(config)
        self.vision_tower = LlavaHrVisionTower(config.vision_config)
        self.multi_modal_projector = LlavaHrProjector(config)
        self.language_model = AutoModel.from_config(config.text_config)
        self.dummy_image: bool | str = False
        self.post_init()

    def encode_images(self, pixel_values: Tensor) -> Tensor:
        """Visual tokens ``[images, N, D]`` of normalised images ``[images, 3, R, R]``."""
        return self.multi_modal_projector(self.vision_tower(pixel_values))

    @can_return_tuple
    def get_image_features(
        self,
        pixel_values: Tensor,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        **_: Any,
    ) -> BaseModelOutputWithPooling:
        """As transformers' models name it: the tower's features ``[images, N, d]`` as `last_hidden_state`, the visual
        tokens ``[images, N, D]`` as `pooler_output`, and where they are asked for, what goes into the ViT's first layer
        and comes out of each ``[images, N, d]``, and each layer's attention ``[images, heads, N, N]`` (eager alone)."""
        config: Any = self.config
        wanted = config.output_hidden_states if output_hidden_states is None else output_hidden_states
        attended = config.output_attentions if output_attentions is None else output_attentions
        with recorded(self.vision_tower, bool(wanted), bool(attended)) as (hidden_states, attentions):
            features = self.vision_tower(pixel_values)
        return BaseModelOutputWithPooling(
            last_hidden_state=features,
            pooler_output=self.multi_modal_projector(features),
            hidden_states=tuple(hidden_states) or None,
            attentions=tuple(attentions) or None,
        )

    @can_return_tuple
    def forward(  # type: ignore[misc]  # TransformersKwargs name position_ids, too
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        cache: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        pixel_values: Tensor | None = None,
        visual_tokens: Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> LlavaHrModelOutput:
        """Arguments as in :meth:`LlavaHrForConditionalGeneration.forward`."""
        require_one_input(input_ids, inputs_embeds, pixel_values, visual_tokens, "visual_tokens")
        if pixel_values is not None and len(pixel_values):
            visual_tokens = self.encode_images(pixel_values)
        # Releases of transformers differ in the cache's name; the language model gets it under the one it came by.
        caches = {"past_key_values": past_key_values, "cache": cache}
        caches = {name: given for name, given in caches.items() if given is not None}
        dummy = None
        if self.dummy_image and visual_tokens is None and not any(one.get_seq_length() for one in caches.values()):
            # Here, where images go through the tower: DeepSpeed's ranks must run all modules in one order.
            dummy = self._dummy_term((input_ids if inputs_embeds is None else inputs_embeds).device)

        if inputs_embeds is None:
            is_image = self.image_places(input_ids)
            words = input_ids if self._placeholder_is_a_word() else input_ids.masked_fill(is_image, 0)
            inputs_embeds = self._insert(self.get_input_embeddings()(words), is_image, visual_tokens)
        elif visual_tokens is not None:
            inputs_embeds = self._insert(inputs_embeds, self.image_places(None, inputs_embeds), visual_tokens)

        if dummy is not None:
            inputs_embeds = inputs_embeds + dummy.to(inputs_embeds.device, inputs_embeds.dtype)
        position_ids = own_positions(position_ids, attention_mask, inputs_embeds.shape[1])

        outputs = self.language_model(
            attention_mask=attention_mask,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            **caches,
            **kwargs,
        )
        return LlavaHrModelOutput(**outputs, image_hidden_states=visual_tokens)

    def image_places(self, input_ids: Tensor | None, inputs_embeds: Tensor | None = None) -> Tensor:
        """Where visual tokens go, ``[batch, tokens]`` bool: by ids, or where an embedding is the placeholder's.

        Raises:
            InputError: only embeddings are given, and the placeholder lies beyond the vocabulary.
        """
        if input_ids is not None:
            return input_ids == self.config.image_token_id
        if not self._placeholder_is_a_word():
            where = f"placeholder {self.config.image_token_id} lies beyond the vocabulary, it has no embedding"
            raise InputError("images cannot be placed in inputs_embeds", where, "input_ids with placeholders")
        assert inputs_embeds is not None
        placeholder = torch.full((1, 1), self.config.image_token_id, device=inputs_embeds.device)
        return (inputs_embeds == self.get_input_embeddings()(placeholder)).all(dim=-1)

    def _placeholder_is_a_word(self) -> bool:
        embedding: Any = self.get_input_embeddings()
        return self.config.image_token_id < embedding.num_embeddings

    def _insert(self, embeds: Tensor, is_image: Tensor, visual_tokens: Tensor | None) -> Tensor:
        """Put the visual tokens ``[images, N, D]`` where ``is_image`` ``[batch, tokens]`` says, in reading order."""
        available = 0 if visual_tokens is None else visual_tokens.shape[0] * visual_tokens.shape[1]
        # A decoding step brings no image, and counting would make the device wait.
        asked = available or (is_image.shape[1] > 1 and not self.config.allow_missing_images)
        if asked and not torch.compiler.is_compiling():
            self.check_count(int(is_image.sum()), available)
        return place_visual_tokens(embeds, is_image, visual_tokens)

    def check_count(self, wanted: int, available: int) -> None:
        """Raise an InputError unless there are as many placeholders as visual tokens."""
        require_placeholders(wanted, available, self.config.num_image_tokens)

    def _dummy_term(self, device: torch.device) -> Tensor:
        if self.dummy_image == "weights":
            return zero_of_weights((self.vision_tower, self.multi_modal_projector))
        # Pixels come as float32; asking a module for its dtype would make DeepSpeed gather a weight on this rank alone.
        side = self.config.vision_config.image_size
        return 0 * self.encode_images(torch.zeros(1, 3, side, side, device=device)).mean()


class LlavaHrForConditionalGeneration(LlavaHrPreTrainedModel, GenerationMixin):
    """LLaVA-HR with its language modelling head.

    Attributes:
        dummy_image: see :class:`LlavaHrModel`.
    """

    dummy_image = forwarded("model", "dummy_image")
    _tp_plan: ClassVar = {"lm_head": "colwise_gather_output"}
    _tied_weights_keys: ClassVar = {"lm_head.weight": "model.language_model.embed_tokens.weight"}

    def __init__(self, config: LlavaHrConfig) -> None:
        super().__init__(config)
        self.model = LlavaHrModel(config)
        self.lm_head = nn.Linear(config.text_config.hidden_size, config.text_config.vocab_size, bias=False)
        self.post_init()

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head

    @can_return_tuple
    def get_image_features(self, pixel_values: Tensor, **kwargs: Any) -> BaseModelOutputWithPooling:
        """As in :class:`LlavaHrModel`, with gradients where they are on."""
        return self.model.get_image_features(pixel_values, **kwargs)

    @torch.no_grad()
    def encode_images(self, pixel_values: Tensor) -> Tensor:
        """Visual tokens, to be given to ``forward`` or ``generate`` as ``visual_tokens`` any number of times; without
        gradients, so that no activations of the tower are kept.

        Args:
            pixel_values: normalised images, ``[images, 3, R, R]``.

        Returns:
            ``[images, N, D]``.
        """
        return self.model.encode_images(pixel_values)

    @can_return_tuple
    def forward(  # type: ignore[misc]  # TransformersKwargs name position_ids, too
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        cache: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        pixel_values: Tensor | None = None,
        visual_tokens: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs: Unpack[TransformersKwargs],
    ) -> LlavaHrOutput:
        """
        Args:
            input_ids: ``[batch, tokens]``, with N copies of ``config.image_token_id`` per image.
            attention_mask: ``[batch, past + tokens]``, 0 at padding (either side).
            position_ids: ``[batch, tokens]``; by default 0, 1, ... over each row's tokens without its padding.
            past_key_values: KV cache of earlier tokens. Images are those of the new ones only.
            cache: its name since transformers 5.24.
            inputs_embeds: ``[batch, tokens, D]`` instead of ``input_ids``, images already inside; with images where it
                is the placeholder's embedding, if the vocabulary has one.
            pixel_values: ``[images in the batch, 3, R, R]``, in reading order; rows without image need none.
            visual_tokens: ``[images in the batch, N, D]`` of :meth:`encode_images`, instead of ``pixel_values``.
            labels: ``[batch, tokens]``, -100 where no loss is taken; none is taken at placeholders.
            use_cache: return a KV cache.
            logits_to_keep: how many of the last positions get logits (0: all), or their indices.

        Raises:
            UserError: placeholders and images do not fit each other, or inputs that exclude each other.
        """
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            cache=cache,
            inputs_embeds=inputs_embeds,
            pixel_values=pixel_values,
            visual_tokens=visual_tokens,
            use_cache=use_cache,
            **kwargs,
        )
        loss, logits = head_outputs(
            self, outputs.last_hidden_state, labels, logits_to_keep, [self.config.image_token_id], **kwargs
        )
        rest = {name: value for name, value in outputs.items() if name != "last_hidden_state"}
        return LlavaHrOutput(loss=loss, logits=logits, **rest)

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """As transformers' own; without a cache, too, an image goes through the tower once."""
        return super().generate(*args, **encoded_once(self, "visual_tokens", kwargs))  # type: ignore[misc]

    def prepare_inputs_for_generation(
        self,
        input_ids: Tensor,
        *args: Any,
        inputs_embeds: Tensor | None = None,  # by its name here transformers knows that it may be given
        next_sequence_length: int | None = None,
        is_first_iteration: bool = False,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """As transformers' own, with the images wherever the whole prompt is read: at the prefill only, also an
        assistant's, which is no first iteration to transformers."""
        inputs = super().prepare_inputs_for_generation(  # type: ignore[misc]
            input_ids,  # type: ignore[arg-type]
            *args,
            inputs_embeds=inputs_embeds,
            next_sequence_length=next_sequence_length,
            is_first_iteration=is_first_iteration,
            **kwargs,
        )
        whole = inputs_embeds is None and (next_sequence_length or input_ids.shape[1]) >= input_ids.shape[1]
        for name in ("pixel_values", "visual_tokens"):
            if is_first_iteration or whole or not kwargs.get("use_cache", True):
                inputs |= {name: kwargs[name]} if kwargs.get(name) is not None else {}
            else:
                inputs.pop(name, None)
        return inputs

    def _expand_inputs_for_generation(
        self, expand_size: int = 1, input_ids: Tensor | None = None, **kwargs: Any
    ) -> tuple[Tensor | None, dict[str, Any]]:
        def images_of_rows(visual_tokens: Tensor) -> list[int]:
            given = input_ids if input_ids is not None and input_ids.shape[1] else None
            places = self.model.image_places(given, kwargs.get("inputs_embeds")).sum(dim=1)
            self.model.check_count(int(places.sum()), visual_tokens.shape[0] * visual_tokens.shape[1])
            # A row with a part of an image's placeholders is counted down, and then one image is left over.
            return (places // visual_tokens.shape[1]).tolist()

        images = expanded_images(self, "visual_tokens", expand_size, kwargs, images_of_rows)
        input_ids, kwargs = super()._expand_inputs_for_generation(
            expand_size=expand_size, input_ids=input_ids, **kwargs
        )
        return input_ids, kwargs | images


def meta_model(name: str, image_size: int = 1024, adapters: bool = True) -> LlavaHrForConditionalGeneration:
    """A published model on the meta device, without weights: for names, shapes, parameters and operations.

    Args:
        name, image_size, adapters: as in :meth:`LlavaHrConfig.named`.
    """
    with torch.device("meta"):
        return LlavaHrForConditionalGeneration(LlavaHrConfig.named(name, image_size, adapters)).eval()


AutoModel.register(LlavaHrConfig, LlavaHrModel, exist_ok=True)
AutoModelForImageTextToText.register(LlavaHrConfig, LlavaHrForConditionalGeneration, exist_ok=True)
