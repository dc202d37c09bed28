"""Questions with their answers as a host's inputs, and which of their tokens are the answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dyvte.branches import IGNORED
from dyvte.data.samples import TrainingSample
from tenfold import UserError
from tenfold.hosts.answers import Prompt, Protocol, encode_batch


def find_protocol(name: str, model: nn.Module, processor: Any) -> Protocol:
    """The protocol of that name; "auto" is the host's own."""
    return Protocol.of(model, processor) if name == "auto" else Protocol(name)


def ending(protocol: Protocol, processor: Any, prompt: Prompt, question: str, answer: str) -> str:
    """What stands behind a prompt when it is answered: the answer and its end, in the host's own template.

    Raises:
        UserError: a chat template in which the answered round does not begin with its prompt.
    """
    if protocol is Protocol.llava or not getattr(processor, "chat_template", None):
        return f" {answer}{processor.tokenizer.eos_token or ''}"
    content = [{"type": "image"}] * len(prompt.images) + [{"type": "text", "text": question}]
    turns = [
        {"role": "user", "content": content},
        {"role": "assistant", "content": [{"type": "text", "text": answer}]},
    ]
    whole = processor.apply_chat_template(turns, tokenize=False)
    if not whole.startswith(prompt.text):
        raise UserError("a chat template that changes a prompt when it is answered", type(processor).__name__)
    return whole.removeprefix(prompt.text)


def encode_answers(
    processor: Any, model: nn.Module, protocol: Protocol, samples: Sequence[TrainingSample]
) -> tuple[dict[str, Any], Tensor]:
    """Inputs of a batch of questions with their answers, padded on the left, and labels.

    Returns:
        The inputs, and ``[batch, tokens]`` int64: the answer's tokens with its end, `IGNORED` elsewhere.

    Raises:
        UserError: a broken image, or a tokenizer that joins prompt and answer, so that the answer cannot be told.
    """
    prompts = [protocol.prompt(processor, sample.image(), sample.question) for sample in samples]
    endings = [
        ending(protocol, processor, prompt, sample.question, sample.answer)
        for prompt, sample in zip(prompts, samples, strict=True)
    ]
    whole = [Prompt(prompt.text + end, prompt.images) for prompt, end in zip(prompts, endings, strict=True)]
    inputs = encode_batch(processor, model, whole)
    labels = torch.full_like(inputs["input_ids"], IGNORED)
    for row, (before, after) in enumerate(zip(prompts, whole, strict=True)):
        begun, told = (processor.tokenizer(one.text, add_special_tokens=False)["input_ids"] for one in (before, after))
        count = len(told) - len(begun)
        if told[: len(begun)] != begun or count < 1:
            raise UserError("prompt and answer share a token", type(processor).__name__, "a template that parts them")
        labels[row, -count:] = inputs["input_ids"][row, -count:]
    return inputs, labels
