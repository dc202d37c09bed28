"""Answers of a host to prompts with images: in batches, padded on the left, the same as one prompt at a time.

    prompts = [protocol.prompt(processor, image, "What is it?\\nAnswer the question using a single word or phrase.")]
    answers = generate(model, processor, prompts, max_new_tokens=128)

Two protocols turn an image and a question into a prompt. `Protocol.processor` takes the host's chat template and image
processor as they are. `Protocol.llava` is LLaVA-1.5's own evaluation, on which published numbers rest: the template
`vicuna_v1` with its system sentence, which the template of the transformers port leaves out, and images that are not
square padded with the mean colour instead of cropped.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList

from tenfold.data.conversation import get_conversation
from tenfold.data.formats import Turn
from tenfold.errors import UserError
from tenfold.hosts.prompts import prompt_text
from tenfold.hosts.structure import unwrap, visual_mask

VICUNA = get_conversation("vicuna_v1")
SPEAKERS = {"user": "human", "assistant": "gpt"}


@dataclass(frozen=True)
class Prompt:
    """A prompt as a processor reads it: placeholders in `text` stand for `images`, RGB, in their order."""

    text: str
    images: tuple[Image.Image, ...] = ()


@dataclass(frozen=True)
class Answer:
    """What a host wrote.

    Attributes:
        text: without special tokens, ends stripped.
        visual_tokens: of the prompt.
        text_tokens: the prompt's other tokens.
        new_tokens: generated, the end token included.
    """

    text: str
    visual_tokens: int
    text_tokens: int
    new_tokens: int


class Protocol(StrEnum):
    """How an image and a question become a prompt."""

    processor = "processor"
    llava = "llava"

    @classmethod
    def of(cls, model: Any, processor: Any) -> Protocol:
        """LLaVA-1.5's own for hosts of that architecture which were trained on Vicuna's turns, else the processor's."""
        if unwrap(model).config.model_type != "llava":
            return cls.processor
        bare = prompt_text(processor, "").startswith(f"{VICUNA.roles[0]}: ")
        ids = processor.tokenizer(VICUNA.system, add_special_tokens=False)["input_ids"]
        # The mini host has no words for the system sentence: it was trained without.
        reads_it = processor.tokenizer.unk_token_id not in ids
        return cls.llava if bare and reads_it else cls.processor

    def prompt(self, processor: Any, image: Image.Image | None, text: str) -> Prompt:
        """The prompt that asks `text` about `image` (about nothing, if None)."""
        images = () if image is None else (image.convert("RGB"),)
        content = [{"type": "image"}] * len(images) + [{"type": "text", "text": text}]
        return self.chat(processor, [{"role": "user", "content": content}], images)

    def chat(self, processor: Any, turns: Sequence[Mapping[str, Any]], images: Sequence[Image.Image]) -> Prompt:
        """The prompt for the answer to a conversation.

        Args:
            turns: as a chat template takes them: ``role`` and a list of ``content``, images as ``{"type": "image"}``.
            images: RGB, in the order of their places.

        Raises:
            UserError: several turns, and a processor without a chat template.
        """
        if self is Protocol.llava:
            mean = getattr(processor.image_processor, "image_mean", None) or (0.5, 0.5, 0.5)
            return Prompt(_vicuna(processor, turns), tuple(pad_to_square(image, mean) for image in images))
        if getattr(processor, "chat_template", None):
            text = processor.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
            return Prompt(text, tuple(images))
        if len(turns) != 1:
            raise UserError("several turns", type(processor).__name__, "a processor with a chat template")
        return Prompt(prompt_text(processor, _written(turns[0]), len(images)), tuple(images))


def _written(turn: Mapping[str, Any]) -> str:
    return "".join(part["text"] for part in turn["content"] if part["type"] == "text")


def _vicuna(processor: Any, turns: Sequence[Mapping[str, Any]]) -> str:
    """Turns in the form `vicuna_v1`, images first in theirs; system turns give way to Vicuna's own sentence."""
    image = f"{getattr(processor, 'image_token', '<image>')}\n"
    said = []
    for turn in turns:
        if turn["role"] in SPEAKERS:
            pictures = sum(part["type"] == "image" for part in turn["content"]) if turn["role"] == "user" else 0
            said.append(Turn(SPEAKERS[turn["role"]], image * pictures + _written(turn)))
    template = replace(VICUNA, separators=(VICUNA.separators[0], processor.tokenizer.eos_token))
    return template.render(said, images=False, generate=True).text


def pad_to_square(image: Image.Image, mean: Sequence[float]) -> Image.Image:
    """The image in the middle of a square of the processor's mean colour (each mean times 255, rounded down)."""
    width, height = image.size
    if width == height:
        return image
    side = max(width, height)
    square = Image.new("RGB", (side, side), tuple(int(255 * part) for part in mean))
    square.paste(image, ((side - width) // 2, (side - height) // 2))
    return square


def encode_batch(processor: Any, model: Any, prompts: Sequence[Prompt]) -> dict[str, Tensor]:
    """Inputs of a batch of prompts, padded on the left, on the model's device and, for pixels, in its dtype.

    Returns:
        ``input_ids`` and ``attention_mask`` ``[batch, tokens]`` int64, ``pixel_values`` and whatever else the host's
        processor makes.

    Raises:
        UserError: several prompts, and a tokenizer that has no padding token.
    """
    tokenizer = processor.tokenizer
    if len(prompts) > 1 and tokenizer.pad_token is None:
        raise UserError("the tokenizer has no padding token", type(tokenizer).__name__, "one prompt at a time")
    # Templates write the beginning-of-sequence token where the tokenizer would add a second one.
    writes_bos = bool(tokenizer.bos_token) and prompts[0].text.startswith(tokenizer.bos_token)
    images = [list(prompt.images) for prompt in prompts]
    encoded = processor(
        images=images if any(images) else None,
        text=[prompt.text for prompt in prompts],
        return_tensors="pt",
        padding=len(prompts) > 1,
        padding_side="left",
        add_special_tokens=not writes_bos,
    )
    return {
        name: value.to(model.device, model.dtype if torch.is_floating_point(value) else None)
        for name, value in encoded.items()
        if torch.is_tensor(value)
    }


@torch.inference_mode()
def generate(
    model: Any,
    processor: Any,
    prompts: Sequence[Prompt],
    *,
    max_new_tokens: int,
    inputs: Mapping[str, Any] | None = None,
    **options: Any,
) -> list[Answer]:
    """One answer for each prompt, in one batch; greedy unless `options` of `model.generate` say otherwise.

    Args:
        inputs: of the prompts, where they were made before; None: those of `encode_batch`.

    Raises:
        UserError: as in `encode_batch` and `generate_tokens`.
    """
    inputs = encode_batch(processor, model, prompts) if inputs is None else inputs
    rows = generate_tokens(model, inputs, max_new_tokens=max_new_tokens, **options)
    visual = visual_mask(unwrap(model), inputs).sum(1).tolist()
    width = inputs["input_ids"].shape[1]
    tokens = inputs["attention_mask"].sum(1).tolist() if "attention_mask" in inputs else [width] * len(prompts)
    ends = _end_tokens(model)
    return [
        Answer(text.strip(), images, real - images, length(row.tolist(), ends))
        for text, images, real, row in zip(
            processor.batch_decode(rows, skip_special_tokens=True), visual, tokens, rows, strict=True
        )
    ]


class FiniteScores(LogitsProcessor):
    """Notes whether a model's scores are numbers. Nothing waits for the device until `require` asks, at the end."""

    def __init__(self) -> None:
        self._broken: Tensor | None = None

    def __call__(self, input_ids: Any, scores: Tensor) -> Tensor:
        # Minus infinity is what a processor before this one has ruled out.
        broken = (scores.isnan() | scores.isposinf()).any()
        self._broken = broken if self._broken is None else self._broken | broken
        return scores

    def require(self, model: Any) -> None:
        """Raise UserError if a score was not: the most likely of such words is the vocabulary's first."""
        if self._broken is not None and bool(self._broken):
            name = getattr(model.config, "_name_or_path", "") or type(model).__name__
            what = f"scores of words that are not finite in {str(model.dtype).removeprefix('torch.')}"
            raise UserError(what, name, "a model that computes in it; float32, or bfloat16, reaches further")


@torch.inference_mode()
def generate_tokens(model: Any, inputs: Mapping[str, Any], *, max_new_tokens: int, **options: Any) -> Tensor:
    """``[batch, new tokens]`` behind the prompts; greedy unless `options` of `model.generate` say otherwise.

    Raises:
        UserError: a score that is not finite, such as half precision overflows to: no word follows from it.
    """
    finite = FiniteScores()
    given = {"do_sample": False, "num_beams": 1, **options}
    rows: Tensor = model.generate(
        **inputs, max_new_tokens=max_new_tokens, logits_processor=LogitsProcessorList([finite]), **given
    )
    finite.require(model)
    return rows[:, inputs["input_ids"].shape[1] :]


def _end_tokens(model: Any) -> set[int]:
    ends = model.generation_config.eos_token_id
    return set() if ends is None else {ends} if isinstance(ends, int) else set(ends)


def length(tokens: list[int], ends: set[int]) -> int:
    """New tokens up to the first end token, that included."""
    return next((place + 1 for place, token in enumerate(tokens) if token in ends), len(tokens))


def conversation(messages: Sequence[Mapping[str, Any]]) -> tuple[list[dict[str, Any]], tuple[Image.Image, ...]]:
    """Messages as evaluation harnesses write them, ``{"type": "image", "url": image}``, for a chat template.

    Returns:
        The turns with image placeholders, and the images, RGB, in their order.

    Raises:
        UserError: a part that is neither text nor an image.
    """
    turns, images = [], []
    for message in messages:
        parts = []
        for part in message["content"]:
            if part["type"] == "text":
                parts.append({"type": "text", "text": part["text"]})
            elif part["type"] == "image":
                parts.append({"type": "image"})
                images.append(_image(part["url"]))
            else:
                raise UserError(f"a message with {part['type']}", f"role {message['role']}", "text and images")
        turns.append({"role": message["role"], "content": parts})
    return turns, tuple(images)


def _image(source: Any) -> Image.Image:
    if not isinstance(source, Image.Image):
        raise UserError(f"an image given as {type(source).__name__}", None, "a PIL image")
    return source.convert("RGB")


def sampling(wanted: Mapping[str, Any]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """A harness's generation settings as options of `generate`, and the texts at which an answer ends.

    A temperature of 0, or none, is greedy decoding, whatever `top_p` and `top_k` say; settings that `generate` does
    not take (a harness passes its tasks' own along) are left out.
    """
    options: dict[str, Any] = {"max_new_tokens": int(wanted.get("max_new_tokens", 1024))}
    if (beams := int(wanted.get("num_beams") or 1)) > 1:
        options["num_beams"] = beams
    if temperature := float(wanted.get("temperature") or 0):
        options |= {"do_sample": True, "temperature": temperature}
        options |= {name: wanted[name] for name in ("top_p", "top_k") if wanted.get(name) is not None}
    until = wanted.get("until") or ()
    return options, (until,) if isinstance(until, str) else tuple(until)


def cut(text: str, until: Sequence[str]) -> str:
    """`text` up to the first of the stop texts."""
    places = [text.find(stop) for stop in until if stop and stop in text]
    return text[: min(places)].strip() if places else text
