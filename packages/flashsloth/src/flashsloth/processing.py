"""Text and images to model inputs (sheet sections 3.4, 3.8 and 6).

    >>> processor = FlashSlothProcessor.from_pretrained("flashsloth-3.2b")
    >>> inputs = processor(
    ...     images=["shelf.jpg", "street.png"],
    ...     text=[processor.prompt("What does the sign say?"), processor.prompt("How many cars are there?")],
    ...     return_tensors="pt",
    ... )
    >>> model.generate(**inputs, max_new_tokens=64)

`<image>` becomes as many placeholder ids as an image has visual tokens, `<learnable>` as many as there are queries.
The text between images is tokenised piece by piece, with nothing in front; shorter prompts are padded on the left.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypedDict, Unpack

import torch
from torch import Tensor
from transformers import BatchFeature, PreTrainedTokenizerBase, ProcessorMixin

from flashsloth.configuration import FlashSlothConfig
from flashsloth.image_processing import FlashSlothImageProcessor
from flashsloth.prompts import CHAT_TEMPLATE, QUERY, question_prompt, template
from flashsloth.questions import with_placeholders
from tenfold import UserError
from tenfold.data.conversation import (
    IGNORE,
    IMAGE,
    IMAGE_MARKER,
    Encoded,
    Prompt,
    encode,
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
REACH = "the model was trained"


class CallOptions(TypedDict, total=False):
    """How `FlashSlothProcessor` is called.

    Args:
        padding: True or "longest", False, or "max_length": rows are at least `max_length` long. By default as the
            tokenizer was made, otherwise True.
        padding_side: "left" (for generation; default) or "right".
        max_length: see padding; by default the one that the tokenizer was made with, otherwise None.
        truncation: True refuses a row beyond `max_length` (default False): nothing is ever cut.
        add_special_tokens: without effect; the models have no BOS.
        image_aspect_ratio: "square", "pad" or "crop", instead of the image processor's.
        num_images: instead of `images`, how many the prompts are about: for features that are known already.
        return_tensors: "pt", "np", or None for lists.
    """

    padding: bool | str
    padding_side: str
    max_length: int | None
    truncation: bool | str
    add_special_tokens: bool
    image_aspect_ratio: str | None
    num_images: int | None
    return_tensors: str | None
    text_kwargs: dict[str, Any]
    images_kwargs: dict[str, Any]
    common_kwargs: dict[str, Any]


class FlashSlothProcessor(ProcessorMixin):
    """Image processor, tokenizer and prompts of a model.

    Args:
        image_processor: with the model's size and views.
        tokenizer: Phi-2's with `<learnable>` and `</s>`; gets `<image>` as a special token if it has none (50297).
        chat_template: instead of FlashSloth's.
        num_image_tokens: visual tokens Nv of an image: `config.num_image_tokens`.
        num_queries: query tokens K of a question: `config.query_count`.
        image_token, query_token: must be "<image>" and "<learnable>", by which templates and data know them.
        max_positions: longest sequence that the model is trained for, visual tokens included; None does not check.

    Attributes:
        image_token_id, query_token_id: the model's `config.image_token_id` and `config.query_token_id`.

    Raises:
        UserError: a tokenizer without `<learnable>`.
    """

    def __init__(
        self,
        image_processor: FlashSlothImageProcessor,
        tokenizer: PreTrainedTokenizerBase,
        chat_template: str | None = None,
        num_image_tokens: int = 81,
        num_queries: int = 9,
        image_token: str = IMAGE,
        query_token: str = QUERY,
        max_positions: int | None = None,
    ) -> None:
        if (image_token, query_token) != (IMAGE, QUERY):
            raise UserError(f"tokens {image_token!r} and {query_token!r}", None, f"{IMAGE} and {QUERY}")
        if query_token not in tokenizer.get_vocab():
            raise UserError(f"a tokenizer without {QUERY}", None, "the release's, or `flashsloth tokenizer`'s")
        self.num_image_tokens, self.num_queries = num_image_tokens, num_queries
        self.image_token, self.query_token = image_token, query_token
        self.max_positions = max_positions
        self.image_token_id = prepare_tokenizer(tokenizer, image_token)
        self.query_token_id: int = tokenizer.get_vocab()[query_token]
        super().__init__(image_processor, tokenizer, chat_template=chat_template or CHAT_TEMPLATE)

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
            `input_ids` and `attention_mask` `[batch, tokens]`, `pixel_values` `[images, 3, R, R]`, in HD
            `[images, 5, 3, R, R]` (absent without images).

        Raises:
            UserError: another number of images than of `<image>`, a broken image, a row beyond `max_positions`, an
                option that it does not know.
        """
        options = self._options(kwargs)
        return model_inputs(self, images, text, options, self.ids, reach=REACH, of_images=("image_aspect_ratio",))

    def _options(self, given: Mapping[str, Any]) -> dict[str, Any]:
        defaults: dict[str, Any] = {
            **own_padding(self.tokenizer),
            "truncation": False,
            "add_special_tokens": True,
            "image_aspect_ratio": None,
            "num_images": None,
            "return_tensors": None,
        }
        return call_options(given, defaults, "FlashSlothProcessor")

    def prompt(self, question: str | Sequence[Exchange], image: bool | int = True) -> str:
        """A generation prompt.

        Args:
            question: a question, or turns `(question, answer)`, the last one without an answer.
            image: how many images the first question is about; `<image>` in a question counts, too, and is moved to
                the front of it.

        Raises:
            UserError: an answer is missing before the last question, or the last one has one.
        """
        questions, answers = questions_and_answers(question)
        marked = any(IMAGE in one for one in questions)
        return question_prompt(questions, answers, images=(0 if marked else int(image),))

    def encode_conversation(
        self,
        conversations: Sequence[Mapping[str, str] | Turn],
        images: Any = None,
        *,
        conversation: str = "phi2",
        max_length: int | None = None,
        where: str | None = None,
    ) -> dict[str, Tensor]:
        """A training sample: ids and labels, and pixels if there are images.

        Args:
            conversations: turns of "human" and "gpt", as LLaVA's json has them.
            images: an image, a list, or None: then `<image>` is words.
            conversation: "phi2", or "plain" for captions (stage 1).
            max_length: text tokens that are kept, an image and a marker counting as one (section 5: 3072).
            where: file and record, for messages.

        Returns:
            `input_ids` and `labels` `[tokens]`, int64, and `pixel_values` `[images, 3, R, R]`, in HD
            `[images, 5, 3, R, R]`.

        Raises:
            UserError: another number of images than of `<image>`, speakers out of turn, no answer, a broken image.
        """
        pictures = flat_images(images)
        encoded = self.encode_turns(conversations, len(pictures), conversation=conversation, where=where)
        encoded = encoded.truncated(max_length) if max_length else encoded
        kept = pictures[: encoded.input_ids.count(IMAGE_MARKER)]
        ids, labels = self.expanded(encoded)
        sample = {"input_ids": torch.tensor(ids), "labels": torch.tensor(labels)}
        if kept:
            sample |= self.image_processor(kept, return_tensors="pt")
        return sample

    def encode_turns(
        self,
        conversations: Sequence[Mapping[str, str] | Turn],
        num_images: int,
        *,
        conversation: str = "phi2",
        where: str | None = None,
    ) -> Encoded:
        """The text of `encode_conversation`, with one marker for each image and each query group: the official form."""
        prompt = rendered(conversations, num_images, template(conversation), where)
        encoded = encode(self.tokenizer, prompt, bos=False)
        pairs = zip(encoded.input_ids, encoded.labels, strict=True)
        return Encoded(encoded.input_ids, [IGNORE if token == self.query_token_id else label for token, label in pairs])

    def expanded(self, encoded: Encoded) -> tuple[list[int], list[int]]:
        """Ids and labels with the placeholders of visual and query tokens instead of one marker each."""
        new = {IMAGE_MARKER: (self.image_token_id, self.num_image_tokens)}
        new[self.query_token_id] = (self.query_token_id, self.num_queries)
        return with_placeholders(encoded.input_ids, encoded.labels, new)

    @property
    def model_input_names(self) -> list[str]:
        """What the model is given."""
        return ["input_ids", "attention_mask", "pixel_values"]

    def ids(self, text: str) -> list[int]:
        """The ids of a prompt, with placeholders."""
        encoded = encode(self.tokenizer, Prompt(text, images=tuple(image_places(text))), bos=False)
        return self.expanded(encoded)[0]


register_image_processor(FlashSlothConfig, FlashSlothImageProcessor)
