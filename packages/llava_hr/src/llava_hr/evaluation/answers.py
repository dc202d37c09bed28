"""Answers to questions about images: in batches, greedy, and with each image encoded once.

    answerer = Answerer(model, processor)
    answerer.answers([Query.about(processor, "What does the sign say?", picture, key="shelf.jpg")], max_new_tokens=128)

Prompts are padded on the left, so a batch gives what single prompts give. Visual tokens of the last batch's images are
kept: a question about one of them costs no pass of the vision tower (TextVQA, GQA, POPE and SEED-Bench ask several
questions about an image).
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from threading import Thread
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from llava_hr.modeling import LlavaHrForConditionalGeneration
from llava_hr.processing import LlavaHrProcessor
from tenfold import UserError
from tenfold.data.conversation import IMAGE, Prompt, encode, get_conversation
from tenfold.data.formats import Turn
from tenfold.data.instruct import pad_rows
from tenfold.hosts.answers import Answer, generate_tokens, length

Opener = Callable[[], Image.Image]
_USER, _ASSISTANT = "human", "gpt"


@dataclass(frozen=True)
class Query:
    """A prompt and its images.

    Attributes:
        prompt: text of the template, ready for an answer.
        images: in the order of their places in the text: what an image is known by, and how it is opened.
        name: of the question, for messages.
    """

    prompt: Prompt
    images: tuple[tuple[Hashable, Opener], ...] = ()
    name: str | None = None

    @classmethod
    def about(
        cls,
        processor: LlavaHrProcessor,
        question: str,
        image: Image.Image | Opener | None,
        *,
        key: Hashable | None = None,
        name: str | None = None,
    ) -> Query:
        """One question about one image, in the processor's template; None: about no image.

        Args:
            image: RGB, or what opens it: only when its visual tokens are not known already.
            key: what the image is known by; None: nothing, no other query shares its visual tokens.

        An `<image>` in the question is words.
        """
        if image is None:
            return cls.chat(processor, [Turn(_USER, question)], (), name=name)
        opener = image if callable(image) else lambda: image
        # An object of its own is a key that no other image can have, also when this one is long gone.
        known_by = object() if key is None else key
        return cls.chat(processor, [Turn(_USER, f"{IMAGE}\n{question}")], ((known_by, opener),), name=name)

    @classmethod
    def chat(
        cls,
        processor: LlavaHrProcessor,
        turns: Sequence[Turn],
        images: Sequence[tuple[Hashable, Opener]],
        *,
        name: str | None = None,
    ) -> Query:
        """The next answer of a conversation.

        Args:
            turns: "human" and "gpt" in turn, ending with a question; the first `<image>` of them stand for `images`.
            images: in their order.

        Raises:
            UserError: fewer `<image>` than images.
        """
        template = get_conversation(processor.conversation)
        prompt = template.render(turns, images=True, generate=True)
        if len(prompt.images) < len(images):
            raise UserError(f"{len(prompt.images)} {IMAGE} for {len(images)} images", name, "one for each")
        return cls(Prompt(prompt.text, (), prompt.images[: len(images)]), tuple(images), name)


class Answerer:
    """A model, ready to be asked.

    Args:
        model: in eval mode.
        processor: its processor, with the template of the prompts.

    Attributes:
        encoded: images that went through the vision tower so far.
    """

    def __init__(self, model: LlavaHrForConditionalGeneration, processor: LlavaHrProcessor) -> None:
        self.model, self.processor = model, processor
        self.encoded = 0
        self._kept: dict[Hashable, Tensor] = {}
        self._pixels: dict[Hashable, Future[Tensor]] = {}  # of images that are still to come

    def prepare(self, queries: Sequence[Query]) -> None:
        """Open and resize the images of the queries that come next, in a thread beside the one that computes."""
        todo: list[tuple[Future[Tensor], Opener]] = []
        for key, opener in (image for query in queries for image in query.images):
            if key not in self._kept and key not in self._pixels:
                self._pixels[key] = Future()
                todo.append((self._pixels[key], opener))
        Thread(target=self._open_all, args=(todo,), daemon=True, name="llava-hr pictures").start()

    def _open_all(self, todo: Sequence[tuple[Future[Tensor], Opener]]) -> None:
        for future, opener in todo:
            try:
                future.set_result(self._open(opener))
            except BaseException as error:  # handed on to whoever asks for the picture
                future.set_exception(error)

    @torch.inference_mode()
    def answers(self, queries: Sequence[Query], max_new_tokens: int, **options: Any) -> list[Answer]:
        """One answer for each query, in one batch; greedy unless `options` of `model.generate` say otherwise.

        Raises:
            UserError: a broken image, or a prompt beyond what the model can read (names the query).
        """
        rows = [self._ids(query) for query in queries]
        visual = self._visual_tokens([image for query in queries for image in query.images])
        device, tokenizer = self.model.device, self.processor.tokenizer
        fill = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0
        batch = {name: torch.tensor(ids, device=device) for name, ids in pad_rows(rows, fill, "left").items()}
        if visual is not None:
            batch["visual_tokens"] = visual
        given = {"pad_token_id": fill, **options}
        written = generate_tokens(self.model, batch, max_new_tokens=max_new_tokens, **given).tolist()
        ends = self._end_tokens()
        return [
            self._answer(query, row, new[: length(new, ends)])
            for query, row, new in zip(queries, rows, written, strict=True)
        ]

    def _ids(self, query: Query) -> list[int]:
        processor = self.processor
        encoded = encode(processor.tokenizer, query.prompt)
        ids = encoded.expanded(self.model.config.image_token_id, processor.num_image_tokens).input_ids
        if processor.max_positions is not None and len(ids) > processor.max_positions:
            what = f"a prompt of {len(ids)} tokens, visual ones included"
            raise UserError(what, query.name, f"at most {processor.max_positions}, as far as the model can read")
        return ids

    def _visual_tokens(self, images: Sequence[tuple[Hashable, Opener]]) -> Tensor | None:
        """``[images, N, D]``, each image through the tower once; those of this batch are kept for the next."""
        kept = {}
        for key, opener in images:
            if key not in kept:
                kept[key] = self._kept[key] if key in self._kept else self._encode(self._ready(key, opener))
        self._kept = kept
        return torch.cat([kept[key] for key, _ in images]) if images else None

    def _open(self, opener: Opener) -> Tensor:
        return self.processor.image_processor(opener(), return_tensors="pt")["pixel_values"]

    def _ready(self, key: Hashable, opener: Opener) -> Callable[[], Image.Image | Tensor]:
        """What opens an image, or waits for the pixels that are made of it meanwhile."""
        waiting = self._pixels.pop(key, None)
        return opener if waiting is None else waiting.result

    def _encode(self, opener: Callable[[], Image.Image | Tensor]) -> Tensor:
        # One by one: at 1,024 pixels an image fills a device, and an answer does not depend on its neighbours.
        given = opener()
        pixels = given if isinstance(given, Tensor) else self._open(lambda: given)
        self.encoded += 1
        return self.model.encode_images(pixels.to(self.model.device, self.model.dtype))

    def _answer(self, query: Query, row: Sequence[int], new: Sequence[int]) -> Answer:
        visual = len(query.images) * self.processor.num_image_tokens
        text = self.processor.tokenizer.decode(new, skip_special_tokens=True)
        return Answer(text.strip(), visual, len(row) - visual, len(new))

    def _end_tokens(self) -> set[int]:
        ends = self.model.generation_config.eos_token_id
        return set() if ends is None else {ends} if isinstance(ends, int) else set(ends)
