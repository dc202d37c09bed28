"""LLaVA-HR as a model of lmms-eval (0.7).

    lmms-eval --model llava_hr --model_args pretrained=llava-hr-7b-sft-1024,dtype=float16 --tasks textvqa_val

Installing this package beside lmms-eval is enough: it finds the model by the entry point `lmms_eval.models`. This is
the only module that imports lmms-eval.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence

from lmms_eval.api.instance import GenerationResult, Instance, TokenCounts
from lmms_eval.api.model import lmms
from lmms_eval.models.registry_v2 import ModelManifest
from lmms_eval.protocol import ChatMessages

from llava_hr.evaluation.answers import Answerer, Query, cut, sampling
from llava_hr.evaluation.messages import read_messages
from llava_hr.evaluation.model import open_host
from llava_hr.evaluation.settings import MINI, HostSettings
from tenfold import UserError
from tenfold.cli.settings import checked
from tenfold.runs import track

NOT_OFFERED = "LLaVA-HR's model for lmms-eval answers generate_until tasks; {name} is not offered"


def manifest() -> ModelManifest:
    """What lmms-eval registers."""
    return ModelManifest(model_id="llava_hr", chat_class_path=f"{__name__}.LlavaHr")


class LlavaHr(lmms):
    """A LLaVA-HR model.

    Args:
        pretrained: a folder (this package's or an official release), a hub id, or "mini".
        dtype, attn_implementation: how the model is loaded; the authors evaluate in float16.
        device: "auto", "cpu", "cuda" or "cuda:N"; under accelerate or torchrun each rank takes its own.
        batch_size: prompts at a time.
        max_batch_size: taken because lmms-eval hands it over; batches never grow by themselves.

    Raises:
        UserError: an argument that cannot be used, or all that `llava_hr.evaluation.model.open_host` refuses.
    """

    is_simple = False

    def __init__(
        self,
        pretrained: str = MINI,
        dtype: str = "auto",
        attn_implementation: str = "sdpa",
        device: str = "auto",
        batch_size: int | str = 1,
        max_batch_size: int | None = None,
    ) -> None:
        super().__init__()
        if int(os.environ.get("WORLD_SIZE", 1)) > 1:
            from accelerate import Accelerator

            self.accelerator = Accelerator(cpu=device == "cpu")
            self._rank, self._world_size = self.accelerator.process_index, self.accelerator.num_processes
            device = str(self.accelerator.device) if self.accelerator.device.index is not None else device
        if not str(batch_size).isdigit() or int(batch_size) < 1:
            raise UserError(f"batch_size: {batch_size!r}", "--model_args", "a number of prompts, 1 or more")
        given = {"model": pretrained, "dtype": dtype, "attention": attn_implementation, "device": device}
        host = open_host(checked(HostSettings, given, "--model_args"))
        # lmms-eval frees the memory of attributes that are modules.
        self._model, self._processor = host.model, host.processor
        self._answerer = Answerer(host.model, host.processor)
        self.device = host.model.device
        self.batch_size = int(batch_size)

    def generate_until(self, requests: Sequence[Instance]) -> list[GenerationResult]:
        """An answer to every request, in their order; requests with equal settings share batches."""
        alike: dict[str, list[int]] = {}
        for number, request in enumerate(requests):
            alike.setdefault(json.dumps(request.args[2], sort_keys=True, default=str), []).append(number)
        batches = [
            numbers[start : start + self.batch_size]
            for numbers in alike.values()
            for start in range(0, len(numbers), self.batch_size)
        ]
        found: dict[int, GenerationResult] = {}
        for batch in track(batches, "answers") if self.rank == 0 else batches:
            found |= zip(batch, self._answers([requests[number] for number in batch]), strict=True)
        return [found[number] for number in range(len(requests))]

    def _answers(self, requests: Sequence[Instance]) -> list[GenerationResult]:
        wanted = requests[0].args[2] or {}
        options, until = sampling(wanted)
        queries = [self._query(request) for request in requests]
        results = []
        for query, answer in zip(queries, self._answerer.answers(queries, **options), strict=True):
            text = cut(answer.text, until)
            self.cache_hook.add_partial("generate_until", (query.prompt.text, wanted), text)
            counts = TokenCounts(answer.visual_tokens + answer.text_tokens, answer.new_tokens)
            results.append(GenerationResult(text, counts))
        return results

    def _query(self, request: Instance) -> Query:
        _, messages_of, _, number, task, split = request.args
        messages = ChatMessages(messages=messages_of(self.task_dict[task][split][number]))
        turns, images = read_messages(messages.model_dump()["messages"])
        return Query.chat(self._processor, turns, images, name=f"{task}, {split} {number}")

    def loglikelihood(self, requests: Sequence[Instance]) -> list[tuple[float, bool]]:
        """Not offered."""
        raise NotImplementedError(NOT_OFFERED.format(name="loglikelihood"))

    def generate_until_multi_round(self, requests: Sequence[Instance]) -> list[str]:
        """Not offered."""
        raise NotImplementedError(NOT_OFFERED.format(name="generate_until_multi_round"))
