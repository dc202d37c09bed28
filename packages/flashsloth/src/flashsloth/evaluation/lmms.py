"""FlashSloth as a model of lmms-eval (0.7).

    lmms-eval --model flashsloth --model_args pretrained=flashsloth-3.2b,dtype=float16 --tasks textvqa_val

Installing this package beside lmms-eval is enough: it finds the model by the entry point `lmms_eval.models`. This is
the only module that imports lmms-eval.
"""

from __future__ import annotations

from collections.abc import Sequence

from lmms_eval.api.instance import GenerationResult, Instance
from lmms_eval.api.model import lmms
from lmms_eval.models.registry_v2 import ModelManifest

from flashsloth.evaluation.model import open_host
from tenfold import UserError
from tenfold.cli.settings import MINI, HostSettings, checked
from tenfold.hosts import lmms as lmms_frame
from tenfold.hosts.answers import Prompt, generate


def manifest() -> ModelManifest:
    """What lmms-eval registers."""
    return ModelManifest(model_id="flashsloth", chat_class_path=f"{__name__}.FlashSloth")


class FlashSloth(lmms):
    """A FlashSloth model.

    Args:
        pretrained: a folder (this package's or an official release), a hub id, or "mini".
        dtype, attn_implementation: how the model is loaded; the authors evaluate in float16.
        device: "auto", "cpu", "cuda" or "cuda:N"; under accelerate or torchrun each rank takes its own.
        batch_size: prompts at a time.
        max_batch_size: taken because lmms-eval hands it over; batches never grow by themselves.

    Raises:
        UserError: an argument that cannot be used, or all that `flashsloth.evaluation.model.open_host` refuses.
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
        self.device = host.model.device
        self.batch_size = int(batch_size)

    def generate_until(self, requests: Sequence[Instance]) -> list[GenerationResult]:
        """An answer to every request, in their order; requests with equal settings share batches."""
        return lmms_frame.in_batches(self, requests, self._answers)

    def _answers(self, requests: Sequence[Instance]) -> list[GenerationResult]:
        options, until = lmms_frame.wanted(requests)
        prompts = [self._prompt(request) for request in requests]
        answers = generate(self._model, self._processor, prompts, **options)
        return [
            lmms_frame.result(self, request, prompt.text, answer, until)
            for request, prompt, answer in zip(requests, prompts, answers, strict=True)
        ]

    def _prompt(self, request: Instance) -> Prompt:
        turns, images = [], []
        for message in lmms_frame.messages(self, request):
            content = []
            for part in message["content"]:
                if part["type"] == "image":
                    images.append(part["url"].convert("RGB"))
                    content.append({"type": "image"})
                elif part["type"] == "text":
                    content.append({"type": "text", "text": part["text"].replace("<image>", "<picture>")})
                else:
                    raise UserError(f"a message with {part['type']}", "FlashSloth", "text and images")
            turns.append({"role": message["role"], "content": content})
        text = self._processor.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
        return Prompt(text, tuple(images))

    def loglikelihood(self, requests: Sequence[Instance]) -> list[tuple[float, bool]]:
        """Not offered."""
        lmms_frame.not_offered("FlashSloth", "loglikelihood")

    def generate_until_multi_round(self, requests: Sequence[Instance]) -> list[str]:
        """Not offered."""
        lmms_frame.not_offered("FlashSloth", "generate_until_multi_round")
