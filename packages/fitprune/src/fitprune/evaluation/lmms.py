"""FitPrune as a model of lmms-eval (0.7): any transformers vision-language model, pruned by a recipe, on its tasks.

    lmms-eval --model fitprune --model_args pretrained=llava-hf/llava-1.5-7b-hf,recipe=llava-1.5-7b:60 --tasks pope

Installing FitPrune beside lmms-eval is enough: it finds the model by the entry point `lmms_eval.models`. This is the
only module that imports lmms-eval.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from contextlib import nullcontext

from lmms_eval.api.instance import GenerationResult, Instance, TokenCounts
from lmms_eval.api.model import lmms
from lmms_eval.models.registry_v2 import ModelManifest
from lmms_eval.protocol import ChatMessages

from fitprune.checkpoints.load import load_host
from fitprune.evaluation.answers import Prompt, conversation, cut, generate, sampling
from fitprune.evaluation.run import choose_protocol, choose_recipe, find_rule
from fitprune.evaluation.settings import EvalSettings
from fitprune.pruner import Pruner
from tenfold.cli.settings import MINI, checked
from tenfold.runs import track

NOT_OFFERED = "FitPrune's model for lmms-eval answers generate_until tasks; {name} is not offered"


def manifest() -> ModelManifest:
    """What lmms-eval registers."""
    return ModelManifest(model_id="fitprune", chat_class_path=f"{__name__}.FitPrune")


class FitPrune(lmms):
    """A pruned host.

    Args:
        pretrained: a folder, a hub id, or "mini".
        recipe: as for `fitprune eval`: a file, NAME:PERCENT, "none", for the mini host a ratio; None: the released 60 %
            recipe of the model.
        rule, protocol: as for `fitprune eval`.
        dtype, attn_implementation: how the model is loaded.
        device: "auto", "cpu", "cuda" or "cuda:N"; under accelerate or torchrun each rank takes its own.
        batch_size: prompts at a time.
        max_batch_size: taken because lmms-eval hands it over; batches never grow by themselves.
        seed: of the rule "random".

    Raises:
        UserError: an argument that cannot be used, or all that `fitprune.checkpoints.load.load_host` refuses.
    """

    is_simple = False

    def __init__(
        self,
        pretrained: str = MINI,
        recipe: str | float | None = None,
        rule: str = "product",
        protocol: str = "auto",
        dtype: str = "auto",
        attn_implementation: str = "sdpa",
        device: str = "auto",
        batch_size: int | str = 1,
        max_batch_size: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if int(os.environ.get("WORLD_SIZE", 1)) > 1:
            from accelerate import Accelerator

            self.accelerator = Accelerator(cpu=device == "cpu")
            self._rank, self._world_size = self.accelerator.process_index, self.accelerator.num_processes
            device = str(self.accelerator.device) if self.accelerator.device.index is not None else device
        given = {
            "model": pretrained,
            "recipe": None if recipe is None else str(recipe),
            "rule": rule,
            "protocol": protocol,
            "dtype": dtype,
            "attention": attn_implementation,
            "device": device,
            "batch": batch_size,
        }
        settings = checked(EvalSettings, given, "--model_args")
        self._rule = find_rule(settings.rule, seed)
        host = load_host(settings)
        self._recipe = choose_recipe(settings, host, seed, track)
        self._protocol = choose_protocol(settings, host)
        # lmms-eval frees the memory of attributes that are modules.
        self._model, self._processor = host.model, host.processor
        self.device = host.model.device
        self.batch_size = settings.batch

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
        prompts = [self._prompt(request) for request in requests]
        wanted = requests[0].args[2] or {}
        options, until = sampling(wanted)
        with nullcontext() if self._recipe is None else Pruner(self._recipe, self._rule)(self._model):
            answers = generate(self._model, self._processor, prompts, **options)
        results = []
        for prompt, answer in zip(prompts, answers, strict=True):
            text = cut(answer.text, until)
            self.cache_hook.add_partial("generate_until", (prompt.text, wanted), text)
            counts = TokenCounts(answer.visual_tokens + answer.text_tokens, answer.new_tokens)
            results.append(GenerationResult(text, counts))
        return results

    def _prompt(self, request: Instance) -> Prompt:
        _, messages_of, _, number, task, split = request.args
        messages = ChatMessages(messages=messages_of(self.task_dict[task][split][number]))
        return self._protocol.chat(self._processor, *conversation(messages.model_dump()["messages"]))

    def loglikelihood(self, requests: Sequence[Instance]) -> list[tuple[float, bool]]:
        """Not offered: the continuation's tokens would take part in choosing which visual tokens stay."""
        raise NotImplementedError(NOT_OFFERED.format(name="loglikelihood"))

    def generate_until_multi_round(self, requests: Sequence[Instance]) -> list[str]:
        """Not offered."""
        raise NotImplementedError(NOT_OFFERED.format(name="generate_until_multi_round"))
