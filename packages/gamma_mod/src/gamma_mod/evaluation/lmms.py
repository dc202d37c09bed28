"""gamma-MoD as a model of lmms-eval (0.7): a converted host on its tasks, MMMU among them.

    lmms-eval --model gamma_mod --model_args pretrained=runs/mini/model,batch_size=8 --tasks mmmu_val

Installing gamma-mod beside lmms-eval is enough: it finds the model by the entry point `lmms_eval.models`. Beside
`tenfold.hosts.lmms` this is the only module that imports lmms-eval.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NoReturn

from lmms_eval.api.instance import GenerationResult, Instance
from lmms_eval.api.model import lmms
from lmms_eval.models.registry_v2 import ModelManifest

from gamma_mod.evaluation.answers import open_host
from gamma_mod.evaluation.settings import EvalSettings
from tenfold.cli.settings import MINI, checked
from tenfold.hosts import lmms as frame
from tenfold.hosts.answers import Prompt, Protocol, conversation, generate


def manifest() -> ModelManifest:
    """What lmms-eval registers."""
    return ModelManifest(model_id="gamma_mod", chat_class_path=f"{__name__}.GammaMod")


class GammaMod(lmms):
    """A converted host, or a dense one.

    Args:
        pretrained: a folder, a hub id, or "mini".
        layers, threshold: as for `gamma-mod eval`.
        imports: a module that makes further model types known, e.g. llava_hr.auto.
        dtype, attn_implementation: how the model is loaded.
        device: "auto", "cpu", "cuda" or "cuda:N"; under accelerate or torchrun each rank takes its own.
        batch_size: prompts at a time.
        max_batch_size: taken because lmms-eval hands it over; batches never grow by themselves.
        seed: of the router of a host that is converted now.

    Raises:
        UserError: an argument that cannot be used, or all that `gamma_mod.load` refuses.
    """

    is_simple = False

    def __init__(
        self,
        pretrained: str = MINI,
        layers: str | None = None,
        threshold: float | None = None,
        imports: str | None = None,
        dtype: str = "auto",
        attn_implementation: str = "sdpa",
        device: str = "auto",
        batch_size: int | str = 1,
        max_batch_size: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        device = frame.own_device(self, device)
        given = {
            "model": pretrained,
            "layers": layers,
            "threshold": threshold,
            "imports": None if imports is None else (imports,),
            "dtype": dtype,
            "attention": attn_implementation,
            "device": device,
            "batch": batch_size,
        }
        settings = checked(EvalSettings, given, "--model_args")
        host = open_host(settings, settings.device, seed)
        self._protocol = Protocol.of(host.model, host.processor)
        # lmms-eval frees the memory of attributes that are modules.
        self._model, self._processor = host.model, host.processor
        self.device = host.model.device
        self.batch_size = settings.batch

    def generate_until(self, requests: Sequence[Instance]) -> list[GenerationResult]:
        """An answer to every request, in their order; requests with equal settings share batches."""
        return frame.in_batches(self, requests, self._answers)

    def _answers(self, requests: Sequence[Instance]) -> list[GenerationResult]:
        prompts = [self._prompt(request) for request in requests]
        options, until = frame.wanted(requests)
        answers = generate(self._model, self._processor, prompts, **options)
        return [
            frame.result(self, request, prompt.text, answer, until)
            for request, prompt, answer in zip(requests, prompts, answers, strict=True)
        ]

    def _prompt(self, request: Instance) -> Prompt:
        return self._protocol.chat(self._processor, *conversation(frame.messages(self, request)))

    def loglikelihood(self, requests: Sequence[Instance]) -> NoReturn:
        """Not offered: a continuation's tokens would be judged as a prompt's."""
        frame.not_offered("gamma-MoD", "loglikelihood")

    def generate_until_multi_round(self, requests: Sequence[Instance]) -> NoReturn:
        """Not offered."""
        frame.not_offered("gamma-MoD", "generate_until_multi_round")
