"""Every answer under every exit: from these tables all arms of the miniature are read, on the same questions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dyvte.branches import IGNORED, LabelRule, run_branches
from dyvte.exits import VisualExit
from dyvte.gates import GateConfig
from dyvte.miniature.world import Asked

BATCH = 32


@dataclass(frozen=True)
class Table:
    """What a host answers to some questions, wherever the image leaves.

    Attributes:
        kinds: of every question.
        x: ``[questions, layers, inputs]``, the gates' inputs.
        right: ``[questions, layers + 1]`` bool: is the answer right without the image, with an exit after layer 0, 1,
            ...; the last one is the dense model's, as leaving after the last layer changes nothing.
        same: ``[questions, layers + 1]`` bool: is it the dense model's.
        labels: slack -> ``[questions, layers]`` int64.
    """

    kinds: tuple[str, ...]
    x: Tensor
    right: Tensor
    same: Tensor
    labels: dict[float, Tensor]

    @property
    def layers(self) -> int:
        return self.x.shape[1]


def host_config(model: Any) -> GateConfig:
    """The miniature's gates for a host: of width 128."""
    text = model.config.get_text_config()
    return GateConfig(text.num_hidden_layers, text.hidden_size, 128)


@torch.no_grad()
def make_table(model: Any, processor: Any, questions: Sequence[Asked], slacks: Sequence[float] = (0.0,)) -> Table:
    """Run a host on questions: once dense, from every layer on without the image, and once without it altogether.

    Args:
        model, processor: the mini host.
        questions: one-word answers.
        slacks: of the label rule.
    """
    parts: list[Any] = [
        _part(model, processor, questions[start : start + BATCH], slacks) for start in range(0, len(questions), BATCH)
    ]
    x, right, same = (torch.cat([part[i] for part in parts]) for i in range(3))
    labels = {slack: torch.cat([part[3][slack] for part in parts]) for slack in slacks}
    return Table(tuple(one.kind for one in questions), x, right, same, labels)


def _part(
    model: Any, processor: Any, questions: Sequence[Asked], slacks: Sequence[float]
) -> tuple[Tensor, Tensor, Tensor, dict[float, Tensor]]:
    texts = [f"{one.prompt} {one.answer}" for one in questions]
    images = [one.image for one in questions]
    inputs = dict(processor(images=images, text=texts, return_tensors="pt", padding=True, padding_side="left"))
    labels = torch.full_like(inputs["input_ids"], IGNORED)
    labels[:, -1] = inputs["input_ids"][:, -1]  # the answer is one word
    layers = range(model.config.get_text_config().num_hidden_layers)
    branches = run_branches(model, inputs, labels, layers, host_config(model))
    found: dict[float, Tensor] = {}
    for slack in slacks:
        rule = LabelRule(slack=slack)
        judged = [rule.judge(branches.dense, exited, branches.targets).labels for exited in branches.exited]
        found[slack] = torch.stack(judged, dim=1)
    with VisualExit(exit_at=-1)(model):
        blind = model(**inputs, use_cache=False).logits[:, -2]  # predicts the last token, the answer
    said = torch.stack([blind.argmax(-1), *(exited[:, 0].argmax(-1) for exited in branches.exited)], dim=1)
    dense = branches.dense[:, 0].argmax(-1)
    return branches.x.transpose(0, 1), said == branches.targets, said == dense[:, None], found
