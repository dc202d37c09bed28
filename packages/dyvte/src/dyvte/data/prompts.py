"""From a question about an image, and for training its answer, to a host's inputs.

A host's own chat template makes the prompt. `SYSTEM` puts LLaVA-1.5's system sentence before it, which the template of
the transformers port leaves out and on which published numbers rest.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from dyvte.labels import IGNORED
from tenfold import UserError

SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions. "
)


def prompt_text(processor: Any, question: str, *, images: int = 1, answer: str | None = None, system: str = "") -> str:
    """The host's text for one round, ready for generation, or with the answer behind it and its end."""
    content = [{"type": "image"}] * images + [{"type": "text", "text": question}]
    turns: list[dict[str, Any]] = [{"role": "user", "content": content}]
    if not getattr(processor, "chat_template", None):
        mark = getattr(processor, "image_token", "<image>")
        text = f"USER: {f'{mark}{chr(10)}' * images}{question} ASSISTANT:"
        return system + text + (f" {answer}{processor.tokenizer.eos_token or ''}" if answer is not None else "")
    if answer is None:
        return system + processor.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
    turns.append({"role": "assistant", "content": [{"type": "text", "text": answer}]})
    return system + processor.apply_chat_template(turns, tokenize=False)


def encode(
    processor: Any, model: nn.Module, images: Sequence[Image.Image | None], texts: Sequence[str], side: str = "left"
) -> dict[str, Any]:
    """Inputs of a batch, on the model's device and, for pixels, in its dtype.

    Args:
        images: one a text, or None.
        texts: as `prompt_text` makes them.
        side: where shorter rows are padded.

    Returns:
        ``input_ids`` and ``attention_mask`` ``[batch, tokens]`` int64, ``pixel_values`` and whatever else the host's
        processor makes.
    """
    pictures = [[image] for image in images if image is not None]
    encoded = processor(
        images=pictures or None,
        text=list(texts),
        return_tensors="pt",
        padding=len(texts) > 1,
        padding_side=side,
        add_special_tokens=not _writes_bos(processor, texts[0]),
    )
    return {
        name: value.to(model.device, model.dtype if torch.is_floating_point(value) else None)
        for name, value in encoded.items()
        if torch.is_tensor(value)
    }


def encode_answers(
    processor: Any,
    model: nn.Module,
    images: Sequence[Image.Image],
    questions: Sequence[str],
    answers: Sequence[str],
    system: str = "",
) -> tuple[dict[str, Any], Tensor]:
    """Inputs of a batch of questions with their answers, padded on the right, and labels.

    Returns:
        The inputs, and ``[batch, tokens]`` int64: the answer's tokens with its end, `IGNORED` elsewhere.

    Raises:
        UserError: a tokenizer that joins prompt and answer, so that the answer's tokens cannot be told.
    """
    texts = [
        prompt_text(processor, question, answer=answer, system=system)
        for question, answer in zip(questions, answers, strict=True)
    ]
    prompts = [prompt_text(processor, question, system=system) for question in questions]
    inputs = encode(processor, model, images, texts, side="right")
    real = inputs["attention_mask"] if "attention_mask" in inputs else torch.ones_like(inputs["input_ids"])
    labels = torch.full_like(inputs["input_ids"], IGNORED)
    for row, (prompt, text) in enumerate(zip(prompts, texts, strict=True)):
        begun, whole = (processor.tokenizer(part, add_special_tokens=False)["input_ids"] for part in (prompt, text))
        if whole[: len(begun)] != begun or len(whole) == len(begun):
            raise UserError("prompt and answer share a token", type(processor).__name__, "a template that ends in one")
        end = int(real[row].sum())
        start = end - (len(whole) - len(begun))
        labels[row, start:end] = inputs["input_ids"][row, start:end]
    return inputs, labels


def _writes_bos(processor: Any, text: str) -> bool:
    bos = getattr(processor.tokenizer, "bos_token", None)
    return bool(bos and text.startswith(bos))
