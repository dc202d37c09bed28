"""DyVTE as a model of lmms-eval (0.7): any transformers vision-language model with its gates, on its tasks.

    lmms-eval --model dyvte --model_args pretrained=llava-hf/llava-1.5-7b-hf,gates=runs/7b/gates --tasks pope

Installing this package beside lmms-eval is enough: it finds the model by the entry point `lmms_eval.models`. Beside
`tenfold.hosts.lmms` this is the only module that imports lmms-eval.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext

from lmms_eval.api.instance import GenerationResult, Instance
from lmms_eval.api.model import lmms
from lmms_eval.models.registry_v2 import ModelManifest

from dyvte.evaluation.model import open_exiting
from dyvte.evaluation.settings import SHIPPED, EvalSettings
from tenfold.cli.settings import MINI, checked
from tenfold.hosts import lmms as lmms_frame
from tenfold.hosts.answers import Prompt, conversation, generate


def manifest() -> ModelManifest:
    """What lmms-eval registers."""
    return ModelManifest(model_id="dyvte", chat_class_path=f"{__name__}.DyVTE")


class DyVTE(lmms):
    """A host whose visual tokens leave by its gates.

    Args:
        pretrained: a folder, a hub id, or "mini".
        gates, threshold, protocol: as for `dyvte eval`.
        dtype, attn_implementation: how the model is loaded.
        device: "auto", "cpu", "cuda" or "cuda:N"; under accelerate or torchrun each rank takes its own.
        batch_size: prompts at a time.
        max_batch_size: taken because lmms-eval hands it over; batches never grow by themselves.

    Raises:
        UserError: an argument that cannot be used, or all that `dyvte eval` refuses.
    """

    is_simple = False

    def __init__(
        self,
        pretrained: str = MINI,
        gates: str = SHIPPED,
        threshold: float = 0.0,
        protocol: str = "auto",
        dtype: str = "auto",
        attn_implementation: str = "sdpa",
        device: str = "auto",
        batch_size: int | str = 1,
        max_batch_size: int | None = None,
    ) -> None:
        super().__init__()
        given = {
            "model": pretrained,
            "gates": gates,
            "threshold": threshold,
            "protocol": protocol,
            "dtype": dtype,
            "attention": attn_implementation,
            "device": lmms_frame.own_device(self, device),
            "batch": batch_size,
        }
        settings = checked(EvalSettings, given, "--model_args")
        opened = open_exiting(settings, settings.protocol)
        self._exit, self._protocol = opened.exit, opened.protocol
        # lmms-eval frees the memory of attributes that are modules.
        self._model, self._processor = opened.host.model, opened.host.processor
        self.device = opened.host.model.device
        self.batch_size = settings.batch

    def generate_until(self, requests: Sequence[Instance]) -> list[GenerationResult]:
        """An answer to every request, in their order; requests with equal settings share batches."""
        return lmms_frame.in_batches(self, requests, self._answers)

    def _answers(self, requests: Sequence[Instance]) -> list[GenerationResult]:
        prompts = [self._prompt(request) for request in requests]
        options, until = lmms_frame.wanted(requests)
        with nullcontext() if self._exit is None else self._exit(self._model):
            answers = generate(self._model, self._processor, prompts, **options)
        return [
            lmms_frame.result(self, request, prompt.text, answer, until)
            for request, prompt, answer in zip(requests, prompts, answers, strict=True)
        ]

    def _prompt(self, request: Instance) -> Prompt:
        return self._protocol.chat(self._processor, *conversation(lmms_frame.messages(self, request)))

    def loglikelihood(self, requests: Sequence[Instance]) -> list[tuple[float, bool]]:
        """Not offered: the continuation's tokens would be read by the gates."""
        lmms_frame.not_offered("DyVTE", "loglikelihood")

    def generate_until_multi_round(self, requests: Sequence[Instance]) -> list[str]:
        """Not offered."""
        lmms_frame.not_offered("DyVTE", "generate_until_multi_round")
