"""Questions and conversations as a host's own chat template writes them, without a class for each host.

    encode_conversation(processor, turns, image, max_length=2048)      # ids and labels, for training
    batch_prompts(processor, [image], ["What shape is it?"])            # inputs of generate, padded on the left

LLaVA-1.5's template of transformers has no system text; official releases were trained with Vicuna's
(`PROTOCOLS`): both can be asked for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from tenfold import UserError
from tenfold.data.formats import Turn

IGNORED = -100
IMAGE = "<image>"
VICUNA = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, "
    "and polite answers to the user's questions. "
)
PROTOCOLS = ("template", "vicuna")


def render(processor: Any, turns: Sequence[Turn], images: bool, *, generate: bool, protocol: str = "template") -> str:
    """A conversation as text.

    Args:
        turns: of "human" and "gpt"; the first question's ``<image>`` stands for the image.
        images: whether there is one.
        generate: end where an answer is to follow.
        protocol: "template", the processor's own; "vicuna", the released models' (image in front of the question).
    """
    if protocol == "vicuna":
        return _vicuna(turns, images, generate)
    messages = []
    for number, turn in enumerate(turns):
        role = "user" if turn.speaker == "human" else "assistant"
        parts: list[dict[str, str]] = [{"type": "image"}] if images and number == 0 else []
        text = turn.text.replace(IMAGE, "").strip() if number == 0 else turn.text
        messages.append({"role": role, "content": [*parts, {"type": "text", "text": text}]})
    return str(processor.apply_chat_template(messages, add_generation_prompt=generate, tokenize=False))


def encode_conversation(
    processor: Any,
    turns: Sequence[Turn],
    image: Image.Image | None,
    *,
    max_length: int | None,
    protocol: str = "template",
    where: str | None = None,
) -> dict[str, Tensor]:
    """A conversation for training: the loss is over the answers and what ends them.

    Args:
        max_length: of the text, its image counting as one token; what is longer is cut, as the image may not be.
            None: nothing is cut.

    Returns:
        ``input_ids`` and ``labels [tokens]`` int64, the image's tensors under the processor's names.

    Raises:
        UserError: a tokenizer without character offsets, or a template in which an answer cannot be found.
    """
    text = render(processor, turns, image is not None, generate=False, protocol=protocol)
    options = {} if image is None else {"images": [image]}
    encoded = processor(text=[text], return_tensors="pt", **options)
    ids = encoded["input_ids"][0]
    tokenizer = processor.tokenizer
    if not tokenizer.is_fast:
        raise UserError("a tokenizer without character offsets", where, "a fast tokenizer")
    plain = tokenizer(text, return_offsets_mapping=True)
    spans = _answers(processor, turns, text, image is not None, protocol, where)
    labels = torch.full_like(ids, IGNORED)
    # The image's placeholder becomes many tokens; all answers stand behind it.
    longer = len(ids) - len(plain["input_ids"])
    for place, (start, end) in enumerate(plain["offset_mapping"]):
        if end > start and any(first <= start < last for first, last in spans):
            labels[place + longer] = ids[place + longer]
    keep = len(ids) if max_length is None else max_length + longer
    tensors = {name: value for name, value in encoded.items() if name not in ("input_ids", "attention_mask")}
    for name in ("mm_token_type_ids", "token_type_ids"):
        if name in tensors:
            tensors[name] = tensors[name][0, :keep]
    return {"input_ids": ids[:keep], "labels": labels[:keep], **tensors}


def batch_prompts(
    processor: Any, images: Sequence[Image.Image | None], questions: Sequence[str], protocol: str = "template"
) -> dict[str, Tensor]:
    """Inputs of ``generate`` for questions, one a row, padded on the left."""
    texts = [
        render(processor, (Turn("human", question),), image is not None, generate=True, protocol=protocol)
        for image, question in zip(images, questions, strict=True)
    ]
    given = [image for image in images if image is not None]
    options = {"images": given} if given else {}
    processor.tokenizer.padding_side = "left"
    return dict(processor(text=texts, padding=True, return_tensors="pt", **options))


def collate(samples: Sequence[Mapping[str, Tensor]], pad_token_id: int) -> dict[str, Tensor]:
    """Samples of `encode_conversation` to a batch, padded on the right; images of all rows in order."""
    width = max(len(sample["input_ids"]) for sample in samples)
    fill = {"input_ids": pad_token_id, "labels": IGNORED, "mm_token_type_ids": 0, "token_type_ids": 0}
    batch: dict[str, Tensor] = {}
    for name in dict.fromkeys(name for sample in samples for name in sample):
        values = [sample[name] for sample in samples if name in sample]
        if name in fill:
            rows = [torch.nn.functional.pad(row, (0, width - len(row)), value=fill[name]) for row in values]
            batch[name] = torch.stack(rows)
        else:
            batch[name] = torch.cat(values)
    lengths = torch.tensor([len(sample["input_ids"]) for sample in samples])
    batch["attention_mask"] = (torch.arange(width) < lengths[:, None]).long()
    return batch


def _vicuna(turns: Sequence[Turn], images: bool, generate: bool) -> str:
    text = VICUNA
    for number, turn in enumerate(turns):
        if turn.speaker == "human":
            asked = turn.text.replace(IMAGE, "").strip() if number == 0 else turn.text
            text += f"USER: {IMAGE}\n{asked} " if images and number == 0 else f"USER: {asked} "
        else:
            text += f"ASSISTANT: {turn.text}</s>"
    return text + "ASSISTANT:" if generate else text


def _answers(
    processor: Any, turns: Sequence[Turn], text: str, images: bool, protocol: str, where: str | None
) -> list[tuple[int, int]]:
    """Characters of every answer, with what ends it."""
    spans = []
    for number, turn in enumerate(turns):
        if turn.speaker != "gpt":
            continue
        before = render(processor, turns[:number], images, generate=True, protocol=protocol)
        through = render(processor, turns[: number + 1], images, generate=False, protocol=protocol)
        if not (text.startswith(before) and text.startswith(through)):
            raise UserError("a chat template that rewrites earlier turns", where, 'protocol "vicuna", or another one')
        spans.append((len(before), len(through)))
    return spans
