"""What a package's model for lmms-eval (0.7) needs: ranks, batches of alike requests, messages, results.

Only these modules import lmms-eval: a package's plug-in, which it finds by the entry point `lmms_eval.models`, and this
one.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from lmms_eval.api.instance import GenerationResult, Instance, TokenCounts
from lmms_eval.protocol import ChatMessages

from tenfold.hosts.answers import Answer, cut, sampling
from tenfold.runs.progress import track


def own_device(model: Any, device: str) -> str:
    """Under accelerate or torchrun: make ``model`` a rank of lmms-eval's; the device that this rank takes."""
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        from accelerate import Accelerator

        model.accelerator = Accelerator(cpu=device == "cpu")
        model._rank, model._world_size = model.accelerator.process_index, model.accelerator.num_processes
        device = str(model.accelerator.device) if model.accelerator.device.index is not None else device
    return device


def in_batches(
    model: Any, requests: Sequence[Instance], answer: Callable[[list[Instance]], list[GenerationResult]]
) -> list[GenerationResult]:
    """An answer to every request, in their order; requests with equal settings share batches of `model.batch_size`."""
    alike: dict[str, list[int]] = {}
    for number, request in enumerate(requests):
        alike.setdefault(json.dumps(request.args[2], sort_keys=True, default=str), []).append(number)
    batches = [
        numbers[start : start + model.batch_size]
        for numbers in alike.values()
        for start in range(0, len(numbers), model.batch_size)
    ]
    found: dict[int, GenerationResult] = {}
    for batch in track(batches, "answers") if model.rank == 0 else batches:
        found |= zip(batch, answer([requests[number] for number in batch]), strict=True)
    return [found[number] for number in range(len(requests))]


def wanted(requests: Sequence[Instance]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Options of `generate`, and the texts at which an answer ends, of requests with equal settings."""
    return sampling(requests[0].args[2] or {})


def messages(model: Any, request: Instance) -> list[dict[str, Any]]:
    """A request's conversation: roles and content of text and PIL images."""
    _, messages_of, _, number, task, split = request.args
    return ChatMessages(messages=messages_of(model.task_dict[task][split][number])).model_dump()["messages"]


def result(model: Any, request: Instance, prompt: str, answer: Answer, until: Sequence[str]) -> GenerationResult:
    """What lmms-eval is told, kept in its cache too."""
    text = cut(answer.text, until)
    model.cache_hook.add_partial("generate_until", (prompt, request.args[2] or {}), text)
    return GenerationResult(text, TokenCounts(answer.visual_tokens + answer.text_tokens, answer.new_tokens))


def not_offered(model: str, name: str) -> NoReturn:
    """Refuse another kind of request.

    Raises:
        NotImplementedError: names it.
    """
    raise NotImplementedError(f"{model}'s model for lmms-eval answers generate_until tasks; {name} is not offered")
