"""FitPrune as a model of lmms-eval (0.7): any transformers vision-language model, pruned by a recipe, on its tasks.

    lmms-eval --model fitprune --model_args pretrained=llava-hf/llava-1.5-7b-hf,recipe=llava-1.5-7b:60 --tasks pope

Installing FitPrune beside lmms-eval is enough: it finds the model by the entry point `lmms_eval.models`. Beside
`tenfold.hosts.lmms` this is the only module that imports lmms-eval.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext

from lmms_eval.api.instance import GenerationResult, Instance
from lmms_eval.api.model import lmms
from lmms_eval.models.registry_v2 import ModelManifest

from fitprune.evaluation.run import choose_protocol, choose_recipe, find_rule
from fitprune.evaluation.settings import EvalSettings
from fitprune.pruner import Pruner
from tenfold.cli.settings import MINI, checked
from tenfold.hosts import lmms as lmms_frame
from tenfold.hosts.answers import Prompt, conversation, generate
from tenfold.hosts.loading import load_host
from tenfold.runs import track


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
        UserError: an argument that cannot be used, or all that `tenfold.hosts.loading.load_host` refuses.
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
        device = lmms_frame.own_device(self, device)
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
        return lmms_frame.in_batches(self, requests, self._answers)

    def _answers(self, requests: Sequence[Instance]) -> list[GenerationResult]:
        prompts = [self._prompt(request) for request in requests]
        options, until = lmms_frame.wanted(requests)
        with nullcontext() if self._recipe is None else Pruner(self._recipe, self._rule)(self._model):
            answers = generate(self._model, self._processor, prompts, **options)
        return [
            lmms_frame.result(self, request, prompt.text, answer, until)
            for request, prompt, answer in zip(requests, prompts, answers, strict=True)
        ]

    def _prompt(self, request: Instance) -> Prompt:
        return self._protocol.chat(self._processor, *conversation(lmms_frame.messages(self, request)))

    def loglikelihood(self, requests: Sequence[Instance]) -> list[tuple[float, bool]]:
        """Not offered: the continuation's tokens would take part in choosing which visual tokens stay."""
        lmms_frame.not_offered("FitPrune", "loglikelihood")

    def generate_until_multi_round(self, requests: Sequence[Instance]) -> list[str]:
        """Not offered."""
        lmms_frame.not_offered("FitPrune", "generate_until_multi_round")
