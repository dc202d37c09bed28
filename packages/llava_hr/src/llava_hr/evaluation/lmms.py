"""LLaVA-HR as a model of lmms-eval (0.7).

    lmms-eval --model llava_hr --model_args pretrained=llava-hr-7b-sft-1024,dtype=float16 --tasks textvqa_val

Installing this package beside lmms-eval is enough: it finds the model by the entry point `lmms_eval.models`. This is
the only module that imports lmms-eval.
"""

from __future__ import annotations

from collections.abc import Sequence

from lmms_eval.api.instance import GenerationResult, Instance
from lmms_eval.api.model import lmms
from lmms_eval.models.registry_v2 import ModelManifest

from llava_hr.evaluation.answers import Answerer, Query
from llava_hr.evaluation.messages import read_messages
from llava_hr.evaluation.model import open_host
from tenfold import UserError
from tenfold.cli.settings import MINI, HostSettings, checked
from tenfold.hosts import lmms as lmms_frame


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
        device = lmms_frame.own_device(self, device)
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
        return lmms_frame.in_batches(self, requests, self._answers)

    def _answers(self, requests: Sequence[Instance]) -> list[GenerationResult]:
        options, until = lmms_frame.wanted(requests)
        queries = [self._query(request) for request in requests]
        answers = self._answerer.answers(queries, **options)
        return [
            lmms_frame.result(self, request, query.prompt.text, answer, until)
            for request, query, answer in zip(requests, queries, answers, strict=True)
        ]

    def _query(self, request: Instance) -> Query:
        turns, images = read_messages(lmms_frame.messages(self, request))
        _, _, _, number, task, split = request.args
        return Query.chat(self._processor, turns, images, name=f"{task}, {split} {number}")

    def loglikelihood(self, requests: Sequence[Instance]) -> list[tuple[float, bool]]:
        """Not offered."""
        lmms_frame.not_offered("LLaVA-HR", "loglikelihood")

    def generate_until_multi_round(self, requests: Sequence[Instance]) -> list[str]:
        """Not offered."""
        lmms_frame.not_offered("LLaVA-HR", "generate_until_multi_round")
