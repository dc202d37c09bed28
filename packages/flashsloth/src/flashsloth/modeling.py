"""FlashSloth as a transformers model (sheet sections 3.2 to 3.8).

    model = FlashSlothForConditionalGeneration.from_pretrained(folder)
    tokens = model.generate(**processor(images=image, text=prompt, return_tensors="pt"), max_new_tokens=64)

Input ids hold ``config.image_token_id`` once a visual token and ``config.query_token_id`` once a query token; images
come in reading order over the batch. A second turn that goes on with the cache of the first needs no image: what the
tower saw is kept with the cache. An image asked about several times needs the tower only once:

    features = model.encode_images(pixel_values)
    model.generate(input_ids=first, image_features=features)
    model.generate(input_ids=second, image_features=features)
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import AutoModel, AutoModelForImageTextToText, GenerationMixin
from transformers.cache_utils import Cache
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.utils import logging
from transformers.utils.generic import can_return_tuple

from flashsloth.backbones import FlashSlothPreTrainedModel, PhiWithQueries, VisionTower, pictures
from flashsloth.configuration import FlashSlothConfig
from flashsloth.embq import EmbeddedQuery, QueryTokens
from flashsloth.looking import ImageFeatures, KeptImages, embed_queries, look_up
from flashsloth.pooling import Projector, SpatialAttentionPooling
from tenfold import UserError
from tenfold.hosts.ragged import kv_cache
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

logger = logging.get_logger(__name__)


@dataclass
class FlashSlothModelOutput(BaseModelOutputWithPast):
    """Hidden states of the language model, and the visual tokens that went in.

    Attributes:
        image_hidden_states: ``[images, Nv, d]``, or None without images.
    """

    image_hidden_states: Tensor | None = None


@dataclass
class FlashSlothOutput(CausalLMOutputWithPast):
    """Loss (mean cross entropy over the tokens whose label is not -100) and logits ``[batch, kept tokens,
    vocabulary]``; the rest as in :class:`FlashSlothModelOutput`."""

    image_hidden_states: Tensor | None = None


class FlashSlothModel(FlashSlothPreTrainedModel):
    """Tower, SAP, projector, query tokens, EmbQ and language model, without the language modelling head.

    Attributes:
        dummy_image: what a batch without images does while training. "image" or True: it sends a zero image through all
            that reads images and adds nothing of it, so that all ranks run the same modules. "weights": it gives their
            weights a gradient of zero without a pass, for one process. False: nothing.
    """

    def __init__(self, config: FlashSlothConfig) -> None:
        super().__init__(config)
        text, vision = config.text_config, config.vision_config
        self.vision_tower = VisionTower._from_config(vision, trained=config.train_vision)
        self.pooling = SpatialAttentionPooling(vision.hidden_size, config.pool, config.sap_dropout)
        self.multi_modal_projector = Projector(vision.hidden_size, text.hidden_size, config.projector_hidden_act)
        self.query_tokens = QueryTokens(config.query_count, text.hidden_size)
        self.embq = EmbeddedQuery(text.hidden_size, vision.hidden_size, config.embq_width, text.num_attention_heads)  # type: ignore[arg-type]
        self.language_model = PhiWithQueries._from_config(text, step_layer=config.embq_layer)
        self.dummy_image: bool | str = False
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.language_model.embed_tokens

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.language_model.embed_tokens = value

    def encode_images(self, pixel_values: Tensor) -> ImageFeatures:
        """What the language model sees of images: ``[images, 3, R, R]``, in HD ``[images, 5, 3, R, R]``."""
        patches = self.vision_tower(pictures(pixel_values, self.config))  # [images * views, n, dv]
        visual = self.pooling(patches)  # pooled first, then projected
        images = len(pixel_values)
        visual = self.multi_modal_projector(visual.reshape(images, -1, visual.shape[-1]))
        return ImageFeatures(patches.reshape(images, -1, patches.shape[-1]), visual)

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        cache: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        pixel_values: Tensor | None = None,
        image_features: ImageFeatures | None = None,
        question_spans: Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> FlashSlothModelOutput:
        """Arguments as in :meth:`FlashSlothForConditionalGeneration.forward`."""
        require_one_input(input_ids, inputs_embeds, pixel_values, image_features, "image_features")
        if pixel_values is not None and len(pixel_values):
            image_features = self.encode_images(pixel_values)
        cache = past_key_values if cache is None else cache  # releases of transformers differ in its name
        past = cache.get_seq_length() if cache is not None else 0
        # DeepSpeed's ranks must run all modules in one order: tower, SAP and projector here, EmbQ before its layer.
        dummy, passes = None, bool(self.dummy_image) and self.dummy_image != "weights"
        if passes and image_features is None and not past:
            dummy = self._dummy_features((input_ids if inputs_embeds is None else inputs_embeds).device)  # type: ignore[union-attr]
        kept: KeptImages | None = getattr(cache, KeptImages.NAME, None) if past else None

        step = None
        if inputs_embeds is not None:
            if image_features is not None:
                raise UserError("images cannot be placed in inputs_embeds", "forward", "input_ids with placeholders")
        elif input_ids.shape[1] == 1 and image_features is None and past:  # type: ignore[union-attr]
            inputs_embeds = self.get_input_embeddings()(input_ids)  # decoding: nothing to place, nothing to wait for
        else:
            inputs_embeds = self._embed(input_ids, image_features)  # type: ignore[arg-type]
            if image_features is not None or kept is not None:
                plan, kept = look_up(input_ids, image_features, kept, self.config, question_spans)  # type: ignore[arg-type]
                if plan is not None:
                    step = embed_queries(self.embq, plan)
        if dummy is not None:
            inputs_embeds = inputs_embeds + 0 * dummy.visual_tokens.mean().to(inputs_embeds)
        if self.dummy_image == "weights" and step is None and not past:
            readers = (self.vision_tower, self.pooling, self.multi_modal_projector, self.query_tokens, self.embq)
            inputs_embeds = inputs_embeds + zero_of_weights(readers).to(inputs_embeds)
        if passes and step is None and not past:
            step = partial(self._dummy_step, dummy or image_features)  # type: ignore[arg-type]
        position_ids = own_positions(position_ids, attention_mask, inputs_embeds.shape[1])

        outputs = self.language_model(
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=cache,
            use_cache=use_cache,
            step=step,
            **kwargs,
        )
        cache = kv_cache(outputs)
        if cache is not None and (not past or image_features is not None):
            setattr(cache, KeptImages.NAME, kept)
        shown = None if image_features is None else image_features.visual_tokens
        return FlashSlothModelOutput(**outputs, image_hidden_states=shown)

    def _embed(self, input_ids: Tensor, features: ImageFeatures | None) -> Tensor:
        """Embeddings with visual tokens and queries in their places (section 3.4)."""
        is_image = input_ids == self.config.image_token_id
        is_query = input_ids == self.config.query_token_id
        words = input_ids.masked_fill(is_image | is_query, self.config.dot_token_id)
        embeds = self.query_tokens(self.get_input_embeddings()(words), is_query)
        available = 0 if features is None else features.visual_tokens.shape[0] * features.visual_tokens.shape[1]
        require_placeholders(int(is_image.sum()), available, self.config.num_image_tokens)
        return place_visual_tokens(embeds, is_image, None if features is None else features.visual_tokens)

    def _dummy_features(self, device: torch.device) -> ImageFeatures:
        # Pixels come as float32, on the device of the words: asking a module for its dtype or device would make
        # DeepSpeed gather a weight on this rank alone.
        side = self.config.vision_config.image_size
        views = (self.config.views,) if self.config.views > 1 else ()
        return self.encode_images(torch.zeros(1, *views, 3, side, side, device=device))

    def _dummy_step(self, features: ImageFeatures, hidden: Tensor) -> Tensor:
        queries = hidden[:1, None, :1]  # [1, 1, 1, d]
        mask = torch.ones(1, 1, 1, dtype=torch.bool, device=hidden.device)
        return hidden + 0 * self.embq(queries, queries, mask, features.patches[:1].to(hidden)).mean()


class FlashSlothForConditionalGeneration(FlashSlothPreTrainedModel, GenerationMixin):
    """FlashSloth with its language modelling head.

    Attributes:
        dummy_image: see :class:`FlashSlothModel`.
    """

    dummy_image = forwarded("model", "dummy_image")
    _tp_plan: ClassVar = {"lm_head": "colwise_gather_output"}  # type: ignore[misc]
    _tied_weights_keys: ClassVar = {"lm_head.weight": "model.language_model.embed_tokens.weight"}  # type: ignore[misc]

    def __init__(self, config: FlashSlothConfig) -> None:
        super().__init__(config)
        self.model = FlashSlothModel(config)
        self.lm_head = nn.Linear(config.text_config.hidden_size, config.text_config.vocab_size)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.model.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head

    @torch.no_grad()
    def encode_images(self, pixel_values: Tensor) -> ImageFeatures:
        """Patches and visual tokens, to be given to ``forward`` or ``generate`` as ``image_features`` any number of
        times; without gradients, so that no activations of the tower are kept.

        Args:
            pixel_values: normalised images, ``[images, 3, R, R]``, in HD ``[images, 5, 3, R, R]``.
        """
        return self.model.encode_images(pixel_values)

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        cache: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        pixel_values: Tensor | None = None,
        image_features: ImageFeatures | None = None,
        question_spans: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs: Any,
    ) -> FlashSlothOutput:
        """
        Args:
            input_ids: ``[batch, tokens]``, with Nv copies of ``config.image_token_id`` an image and K copies of
                ``config.query_token_id`` behind a question.
            attention_mask: ``[batch, past + tokens]``, 0 at padding (either side).
            position_ids: ``[batch, tokens]``; by default 0, 1, ... over each row's tokens without its padding.
            past_key_values: KV cache of earlier tokens. What was seen of images is kept with it.
            cache: its name since transformers 5.24.
            inputs_embeds: ``[batch, tokens, d]`` instead of ``input_ids``, images and queries already inside; EmbQ does
                not run.
            pixel_values: ``[images in the batch, 3, R, R]``, in HD ``[images, 5, 3, R, R]``, in reading order; rows
                without image need none.
            image_features: of :meth:`encode_images`, instead of ``pixel_values``.
            question_spans: ``[batch, rounds, 2]``, positions ``[start, end)`` of the questions in ``input_ids``, one
                for each query group; by default they are found by the template's own ids (`questions`).
            labels: ``[batch, tokens]``, -100 where no loss is taken.
            use_cache: return a KV cache.
            logits_to_keep: how many of the last positions get logits (0: all), or their indices.

        Raises:
            UserError: placeholders and images do not fit each other, a query group that is not whole, or inputs that
                exclude each other.
        """
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values if cache is None else cache,
            inputs_embeds=inputs_embeds,
            pixel_values=pixel_values,
            image_features=image_features,
            question_spans=question_spans,
            use_cache=use_cache,
            **kwargs,
        )
        placeholders = [self.config.image_token_id, self.config.query_token_id]
        hidden = outputs.last_hidden_state
        loss, logits = head_outputs(self, hidden, labels, logits_to_keep, placeholders, **kwargs)
        rest = {name: value for name, value in outputs.items() if name != "last_hidden_state"}
        return FlashSlothOutput(loss=loss, logits=logits, **rest)

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """As transformers' own.

        Raises:
            UserError: a way of generating that splits a question from its queries, or guesses tokens ahead.
        """
        if not self.config.instruction_tuned:
            logger.warning_once(STAGE_1)
        given = kwargs.get("generation_config")
        for name, why in _REFUSED.items():
            if kwargs.get(name) is not None or getattr(given or self.generation_config, name, None) is not None:
                raise UserError(f"{name} is not supported", "generate", why)
        return super().generate(*args, **encoded_once(self, "image_features", kwargs))  # type: ignore[misc]

    def prepare_inputs_for_generation(  # type: ignore[override]
        self,
        input_ids: Tensor,
        *args: Any,
        inputs_embeds: Tensor | None = None,  # by its name here transformers knows that it may be given
        next_sequence_length: int | None = None,
        is_first_iteration: bool = False,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """As transformers' own, with images at the prefill only, and of a cache's continuation only the new ones."""
        inputs = super().prepare_inputs_for_generation(  # type: ignore[misc]
            input_ids,  # type: ignore[arg-type]
            *args,
            inputs_embeds=inputs_embeds,
            next_sequence_length=next_sequence_length,
            is_first_iteration=is_first_iteration,
            **kwargs,
        )
        if not is_first_iteration and kwargs.get("use_cache", True):
            for name in ("pixel_values", "image_features", "question_spans"):
                inputs.pop(name, None)
        elif next_sequence_length is not None and next_sequence_length < input_ids.shape[1]:
            self._drop_seen(inputs, input_ids, input_ids.shape[1] - next_sequence_length)
        return inputs

    def _drop_seen(self, inputs: dict[str, Any], input_ids: Tensor, past: int) -> None:
        """Leave out the images, and the questions, that stand in the part of ``input_ids`` that the cache holds."""
        total = self._images(input_ids)
        seen = self._images(input_ids[:, :past])
        for name in ("pixel_values", "image_features"):
            images = inputs.get(name)
            if images is None or len(images) != sum(total):
                continue  # only the new images were given
            firsts = [sum(total[:row]) for row in range(len(total))]
            new = [at for row, first in enumerate(firsts) for at in range(first + seen[row], first + total[row])]
            inputs[name] = images[torch.tensor(new, dtype=torch.long)] if new else None
        if (spans := inputs.get("question_spans")) is not None:
            counts = (input_ids[:, :past] == self.config.query_token_id).sum(dim=1) // self.config.query_count
            inputs["question_spans"] = spans[:, int(counts.min()) :] - past

    def _images(self, input_ids: Tensor) -> list[int]:
        """Images of each row."""
        placeholders = (input_ids == self.config.image_token_id).sum(dim=1)
        return (placeholders // self.config.num_image_tokens).tolist()

    def _expand_inputs_for_generation(  # type: ignore[override]
        self, expand_size: int = 1, input_ids: Tensor | None = None, **kwargs: Any
    ) -> tuple[Tensor | None, dict[str, Any]]:
        images = expanded_images(self, "image_features", expand_size, kwargs, lambda _: self._images(input_ids))  # type: ignore[arg-type]
        input_ids, kwargs = super()._expand_inputs_for_generation(  # type: ignore[misc]
            expand_size=expand_size,
            input_ids=input_ids,  # type: ignore[arg-type]
            **kwargs,
        )
        return input_ids, kwargs | images


STAGE_1 = "weights of stage 1 have not learnt to end an answer: generate() goes on to max_new_tokens"
# What `generate` refuses -> why (part two, A7).
_REFUSED = {
    "prefill_chunk_size": "a prefill in one piece: EmbQ reads a question and its queries in one pass",
    "assistant_model": "decoding without an assistant: its guesses may hold placeholders of images and queries",
    "prompt_lookup_num_tokens": "decoding without guesses: those from the prompt may hold placeholders of images",
}


AutoModel.register(FlashSlothConfig, FlashSlothModel, exist_ok=True)
AutoModelForImageTextToText.register(FlashSlothConfig, FlashSlothForConditionalGeneration, exist_ok=True)
