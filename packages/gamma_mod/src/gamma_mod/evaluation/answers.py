"""Answers of a host, dense or converted, with what was skipped for each: batches give what single prompts give."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from gamma_mod.checkpoints.load import find_folder, load
from gamma_mod.conversion import convert
from gamma_mod.data.prompts import batch_prompts
from gamma_mod.evaluation.settings import ConvertedHostSettings
from gamma_mod.report import calibrate, measure_skips
from tenfold import UserError
from tenfold.hosts import structure
from tenfold.hosts.answers import generate_tokens
from tenfold.runs import fingerprint


@dataclass(frozen=True)
class Host:
    """A host that answers.

    Attributes:
        model: in evaluation mode, on its device. processor: its own.
        fingerprint: of its folder, or of its hub id and commit.
    """

    model: Any
    processor: Any
    fingerprint: str

    @property
    def conversion(self) -> Any:
        """The model's `gamma_mod.Conversion`; None for a dense one."""
        return getattr(structure.unwrap(self.model), "gamma_mod", None)


@dataclass(frozen=True)
class Answer:
    """What a host wrote.

    Attributes:
        text: without special tokens, ends stripped.
        tokens: of the prompt. new_tokens: generated, the end token included.
        kept: of the prompt, tokens that each converted layer computed; empty for a dense host.
        decoded: of the generated tokens that went through the model, those that each converted layer computed.
    """

    text: str
    tokens: int
    new_tokens: int
    kept: tuple[int, ...] = ()
    decoded: tuple[int, ...] = ()


def open_host(settings: ConvertedHostSettings, device: str, seed: int) -> Host:
    """Load a host, and convert it where the settings say so.

    Raises:
        UserError: as `gamma_mod.load` and `gamma_mod.convert`; thresholds for a dense host.
    """
    model, processor = load(
        settings.model, settings.dtype, device, attention=settings.attention, imports=settings.imports
    )
    host = structure.unwrap(model)
    if settings.layers is not None and not hasattr(host, "gamma_mod"):
        convert(model, settings.layers, seed=seed)
    conversion = getattr(host, "gamma_mod", None)
    wanted = (settings.threshold, settings.skip, settings.decode_skip)
    if conversion is None and any(value is not None for value in wanted):
        raise UserError("thresholds for a dense model", settings.model, "a converted model, or --layers arank_mod")
    if conversion is not None:
        given = {"prefill_threshold": settings.threshold, "decode_skip": settings.decode_skip}
        conversion.configure(**{name: value for name, value in given.items() if value is not None})
    folder = find_folder(settings.model)
    pinned: Any = folder or {"hub": settings.model, "commit": getattr(host.config, "_commit_hash", None)}
    return Host(model.eval(), processor, fingerprint(pinned))


def calibrate_on(host: Host, prompts: Sequence[tuple[Image.Image | None, str]], skip: float, protocol: str) -> float:
    """Set the prompt's threshold on some questions; the realised skip."""
    samples = [on_device(host.model, batch_prompts(host.processor, [i], [q], protocol)) for i, q in prompts]
    return calibrate(host.model, samples, skip).skip


@torch.inference_mode()
def answer(
    host: Host,
    images: Sequence[Image.Image | None],
    questions: Sequence[str],
    *,
    protocol: str = "template",
    max_new_tokens: int = 64,
) -> list[Answer]:
    """Greedy answers, one a question, as a batch."""
    inputs = on_device(host.model, batch_prompts(host.processor, images, questions, protocol))
    given = {"pad_token_id": host.processor.tokenizer.pad_token_id, "temperature": None, "top_p": None}
    with measure_skips() as skips:
        output = generate_tokens(host.model, inputs, max_new_tokens=max_new_tokens, **given)
    ends = _ends(host.model)
    found = []
    for row, ids in enumerate(output.tolist()):
        new = next((place + 1 for place, token in enumerate(ids) if token in ends), len(ids))
        text = host.processor.tokenizer.decode(ids[:new], skip_special_tokens=True).strip()
        kept = tuple(skips.counts["prefill", layer][0][row] for layer in skips.layers)
        # The last generated token is not fed back; what a row generates after its end is padding.
        decoded = tuple(sum(step[row] for step in skips.counts["decode", layer][: new - 1]) for layer in skips.layers)
        found.append(Answer(text, int(inputs["attention_mask"][row].sum()), new, kept, decoded))
    return found


def on_device(model: Any, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Inputs on the model's device, pixels in its dtype."""
    device, dtype = model.device, model.dtype
    return {name: tensor.to(device, dtype if tensor.is_floating_point() else None) for name, tensor in inputs.items()}


def _ends(model: Any) -> set[int]:
    ends = model.generation_config.eos_token_id
    return set() if ends is None else {ends} if isinstance(ends, int) else set(ends)
