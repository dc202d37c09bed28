"""Text and images to model inputs (sheet sections 3.7 and 6).

    >>> processor = LlavaHrProcessor.from_pretrained("llava-hr-7b")
    >>> inputs = processor(
    ...     images=["shelf.jpg", "street.png"],
    ...     text=[processor.prompt("What does the sign say?"), processor.prompt("How many cars are there?")],
    ...     return_tensors="pt",
    ... )
    >>> model.generate(**inputs, max_new_tokens=64)

`<image>` becomes as many placeholder ids as an image has visual tokens. The pieces of text around it are tokenised
apart, with one BOS in front of all, and shorter prompts are padded on the left.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypedDict, Unpack

import torch
from torch import Tensor
from transformers import BatchFeature, PreTrainedTokenizerBase, ProcessorMixin
from transformers.processing_utils import MultiModalData

from llava_hr.configuration import LlavaHrConfig
from llava_hr.image_processing import LlavaHrImageProcessor, edge_of
from tenfold import InputError, UserError
from tenfold.data.conversation import (
    IMAGE,
    IMAGE_MARKER,
    Encoded,
    Prompt,
    encode,
    get_conversation,
    image_in_front,
    image_places,
)
from tenfold.data.formats import Turn
from tenfold.hosts.processing import (
    Exchange,
    call_options,
    flat_images,
    model_inputs,
    own_padding,
    prepare_tokenizer,
    questions_and_answers,
    register_image_processor,
    rendered,
)

# For messages: which prompts are too long.
REACH = "the model can read"


class CallOptions(TypedDict, total=False):
    """How `LlavaHrProcessor` is called.

    Args:
        padding: True or "longest", False, or "max_length": rows are at least `max_length` long. By default as the
            tokenizer was made, otherwise True.
        padding_side: "left" (for generation; default) or "right".
        max_length: see padding; by default the one that the tokenizer was made with, otherwise None.
        truncation: True refuses a row beyond `max_length` (default False): nothing is ever cut.
        add_special_tokens: BOS in front (default True).
        image_aspect_ratio: "pad" or "square", instead of the image processor's.
        size: R in pixels, instead of the image processor's; with text, the model's own: placeholders are as many as
            that has visual tokens.
        do_rescale, rescale_factor, do_normalize: instead of the image processor's.
        num_images: instead of `images`, how many the prompts are about: for visual tokens that are known already.
        return_offsets_mapping: also `offset_mapping`, of each id the characters of the prompt that it stands for; all
            of an image's stand for its `<image>`. By it `apply_chat_template` marks what the assistant has said.
        return_text_replacement_offsets: also `text_replacement_offsets`, where in each prompt an `<image>` stands and
            where its placeholders do in the text that has them; `offset_mapping` is then that text's.
        return_mm_token_type_ids: also `mm_token_type_ids`, 1 at the placeholders of images.
        return_tensors: "pt", "np", or None for lists.
    """

    padding: bool | str
    padding_side: str
    max_length: int | None
    truncation: bool | str
    add_special_tokens: bool
    image_aspect_ratio: str | None
    size: int | None
    do_rescale: bool | None
    rescale_factor: float | None
    do_normalize: bool | None
    num_images: int | None
    return_offsets_mapping: bool
    return_text_replacement_offsets: bool
    return_mm_token_type_ids: bool
    return_tensors: str | None
    text_kwargs: dict[str, Any]
    images_kwargs: dict[str, Any]
    common_kwargs: dict[str, Any]


class LlavaHrProcessor(ProcessorMixin):
    """Image processor, tokenizer and conversation template of a model.

    Args:
        image_processor: of the high resolution.
        tokenizer: gets `<image>` as a special token if it has none, one beyond its vocabulary (32000 with Vicuna's),
            pads with the unknown token if it has no padding token (as in training), and pads on the left.
        chat_template: instead of the one that belongs to `conversation`.
        conversation: name of the template of `prompt` and `encode_conversation`.
        num_image_tokens: visual tokens N of an image: `config.num_image_tokens`.
        image_token: must be "<image>", by which templates and data know it.
        max_positions: longest sequence that the model can read, visual tokens included; None does not check.

    Attributes:
        image_token_id: goes into the model's `config.image_token_id`.

    Raises:
        UserError: an unknown template.
    """

    def __init__(
        self,
        image_processor: LlavaHrImageProcessor,
        tokenizer: PreTrainedTokenizerBase,
        chat_template: str | None = None,
        conversation: str = "vicuna_v1",
        num_image_tokens: int = 1024,
        image_token: str = IMAGE,
        max_positions: int | None = None,
    ) -> None:
        if image_token != IMAGE:
            raise UserError(f"image token {image_token!r}", None, IMAGE)
        self.conversation = conversation
        self.num_image_tokens = num_image_tokens
        self.image_token = image_token
        self.max_positions = max_positions
        self.image_token_id = prepare_tokenizer(tokenizer, image_token)
        chat_template = chat_template or get_conversation(conversation).chat_template()
        super().__init__(image_processor, tokenizer, chat_template=chat_template)

    def __call__(
        self, images: Any = None, text: str | Sequence[str] | None = None, **kwargs: Unpack[CallOptions]
    ) -> BatchFeature:
        """Model inputs of one prompt or of a batch.

        Args:
            images: None, an image, a list (in the order of the `<image>` of all prompts), or a list for each prompt.
                An image is a path, a PIL image, or an array `[height, width, 3]` of uint8.
            text: a prompt or several, with one `<image>` for each image; None gives pixels only.
            kwargs: see `CallOptions`; `text_kwargs` and `images_kwargs` hold the same, as transformers sorts them.

        Returns:
            `input_ids` and `attention_mask` `[batch, tokens]`, `pixel_values` `[images, 3, R, R]` (absent without
            images).

        Raises:
            UserError: another number of images than of `<image>`, a broken image, a row beyond `max_positions`, an
                option that it does not know.
        """
        options = self._options(kwargs)
        bos = options["add_special_tokens"]
        size, edge = options["size"], self.image_processor.image_size
        if size is not None and text is not None and edge_of(size) != edge:
            what = f"size {edge_of(size)} with placeholders for images of {edge} pixels"
            raise InputError(what, "LlavaHrProcessor", f"{edge}, a model of that size, or images without text")
        of_images = ("image_aspect_ratio", "size", "do_rescale", "rescale_factor", "do_normalize")
        return model_inputs(
            self,
            images,
            text,
            options,
            lambda one: self._encoded(one, bos).input_ids,
            reach=REACH,
            of_images=of_images,
            spans=lambda one: self._encoded(one, bos).spans,
        )

    def _options(self, given: Mapping[str, Any]) -> dict[str, Any]:
        defaults: dict[str, Any] = {
            **own_padding(self.tokenizer),
            "truncation": False,
            "add_special_tokens": True,
            "image_aspect_ratio": None,
            "size": None,
            "do_rescale": None,
            "rescale_factor": None,
            "do_normalize": None,
            "num_images": None,
            "return_offsets_mapping": False,
            "return_text_replacement_offsets": False,
            "return_mm_token_type_ids": False,
            "return_tensors": None,
        }
        return call_options(given, defaults, "LlavaHrProcessor")

    def prompt(self, question: str | Sequence[Exchange], image: bool | int = True) -> str:
        """A generation prompt of the processor's template.

        Args:
            question: a question, or turns `(question, answer)`, the last one without an answer.
            image: how many images the first question is about; `<image>` in a question counts, too, and is moved to
                the front of it.

        Raises:
            UserError: an answer is missing before the last question, or the last one has one.
        """
        questions, answers = questions_and_answers(question)
        marks = [one.count(IMAGE) for one in questions]
        if not any(marks):
            marks[0] = int(image)
        questions = [image_in_front(one, count) if count else one for one, count in zip(questions, marks, strict=True)]
        return get_conversation(self.conversation).prompt(questions, answers, images=any(marks)).text

    def encode_conversation(
        self,
        conversations: Sequence[Mapping[str, str] | Turn],
        images: Any = None,
        *,
        conversation: str | None = None,
        max_length: int | None = None,
        where: str | None = None,
    ) -> dict[str, Tensor]:
        """A training sample: ids and labels, and pixels if there are images.

        Args:
            conversations: turns of "human" and "gpt", as LLaVA's json has them.
            images: an image, a list, or None: then `<image>` is words.
            conversation: name of a template instead of the processor's.
            max_length: text tokens that are kept, an image counting as one (section 5: 2048 and 2496).
            where: file and record, for messages.

        Returns:
            `input_ids` and `labels` `[tokens]`, int64, and `pixel_values` `[images, 3, R, R]`.

        Raises:
            UserError: another number of images than of `<image>`, speakers out of turn, no answer, a broken image.
        """
        pictures = flat_images(images)
        encoded = self.encode_turns(
            conversations, len(pictures), conversation=conversation, max_length=max_length, where=where
        )
        kept = pictures[: encoded.input_ids.count(IMAGE_MARKER)]
        expanded = encoded.expanded(self.image_token_id, self.num_image_tokens)
        sample = {"input_ids": torch.tensor(expanded.input_ids), "labels": torch.tensor(expanded.labels)}
        if kept:
            sample |= self.image_processor(kept, return_tensors="pt")
        return sample

    def encode_turns(
        self,
        conversations: Sequence[Mapping[str, str] | Turn],
        num_images: int,
        *,
        conversation: str | None = None,
        max_length: int | None = None,
        where: str | None = None,
    ) -> Encoded:
        """The text of `encode_conversation`, with one marker for each image."""
        style = get_conversation(conversation or self.conversation)
        prompt = rendered(conversations, num_images, style, where)
        encoded = encode(self.tokenizer, prompt)
        return encoded.truncated(max_length) if max_length else encoded

    @property
    def model_input_names(self) -> list[str]:
        """What the model is given."""
        return ["input_ids", "attention_mask", "pixel_values"]

    def replace_image_token(self, *_: Any, **__: Any) -> str:
        """The text of an image's placeholders, which are as many for all images."""
        return self.image_token * self.num_image_tokens

    def _encoded(self, text: str, bos: bool) -> Encoded:
        encoded = encode(self.tokenizer, Prompt(text, images=tuple(image_places(text))), bos=bos)
        return encoded.expanded(self.image_token_id, self.num_image_tokens)

    def _get_num_multimodal_tokens(self, image_sizes: Sequence[Sequence[int]] | None = None, **_: Any) -> Any:
        """What vLLM asks: visual tokens of images of these sizes `(height, width)`, which are as many for all."""
        count = len(image_sizes or ())
        return MultiModalData(num_image_tokens=[self.num_image_tokens] * count, num_image_patches=[1] * count)


register_image_processor(LlavaHrConfig, LlavaHrImageProcessor)
