"""METER's search and tuning (section 5): AdamW in groups, linear rise and fall, a random subnet at every step.

    search = Search(RULES["meter"], sites=24, removed=10, warmup=epoch)
    run_meter(model, batches, MeterTraining.of("vqa", steps), search=search, scored=others)
    result = SearchResult.of(search, seed=0)

The authors' ranks search alone and never meet; this is one process.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from eas.meter import Meter, MeterInputs, task_loss
from eas.search import Search
from tenfold import UserError
from tenfold.runs import sample_generator

Batches = Iterator[tuple[MeterInputs, Tensor]]
RATES = {"vqa": (2.5e-5, 50.0), "nlvr2": (5e-5, 10.0), "irtr": (5e-5, 5.0)}  # base rate, factor of the head
HEADS = ("vqa_classifier", "nlvr2_classifier", "rank_output")
CROSS_FACTOR = 5.0  # of all names with cross_modal: adapters among them
SUBNETS, SCORED = 2, 3


@dataclass(frozen=True)
class MeterTraining:
    """How METER is trained.

    Attributes:
        steps: of the optimizer. warmup: share of them in which the rate rises.
        rate: base learning rate. head: factor of the task's head.
    """

    steps: int
    rate: float
    head: float
    warmup: float = 0.1
    weight_decay: float = 0.01

    @classmethod
    def of(cls, task: str, steps: int) -> MeterTraining:
        """The paper's for a task."""
        return cls(steps, *RATES[task])

    def factor(self, step: int) -> float:
        """Of all rates, at the step after `step` finished ones."""
        rise = max(1, round(self.warmup * self.steps))
        return step / rise if step < rise else max(0.0, (self.steps - step) / max(1, self.steps - rise))


def parameter_groups(model: Meter, settings: MeterTraining) -> list[dict[str, object]]:
    """What is trained, by learning rate and weight decay (none on vectors)."""
    groups: dict[tuple[float, float], list[torch.nn.Parameter]] = {}
    for name, parameter in model.trained():
        factor = settings.head if name.startswith(HEADS) else CROSS_FACTOR if "cross_modal" in name else 1.0
        decay = 0.0 if name.endswith(".bias") or parameter.ndim == 1 else settings.weight_decay
        groups.setdefault((settings.rate * factor, decay), []).append(parameter)
    return [{"params": some, "lr": rate, "weight_decay": decay} for (rate, decay), some in groups.items()]


def run_meter(
    model: Meter,
    batches: Batches,
    settings: MeterTraining,
    *,
    search: Search | None = None,
    scored: Batches | None = None,
    as_released: bool = False,
    seed: int = 0,
) -> list[float]:
    """Train what a tuning moves; with `search`, under a new random subnet at every step.

    Args:
        batches: of the training; one a step.
        scored: with `search`: other data (the authors: of the validation), a batch for each update of preferences.
        as_released: sites by the authors' map.
        seed: of the subnets.

    Returns:
        The losses, step by step; the model is in eval mode, and skips what its config says.

    Raises:
        UserError: a loss that is not finite, or a search without data to score on.
    """
    if (search is None) != (scored is None):
        raise UserError("a search without data to score on", "METER", "both, or neither")
    model.requires_grad_(False)
    for _, parameter in model.trained():
        parameter.requires_grad_(True)
    optimizer = torch.optim.AdamW(parameter_groups(model, settings), betas=(0.9, 0.98), eps=1e-8)
    rates, losses = [float(group["lr"]) for group in optimizer.param_groups], []
    model.train()
    for step in range(settings.steps):
        if search is not None:
            count = search.begin()
            sites = search.sample(sample_generator(seed, step, SUBNETS), count)
            model.set_skip(sites, as_released=as_released)
        optimizer.zero_grad(set_to_none=True)
        loss = task_loss(model, *next(batches))
        if not bool(torch.isfinite(loss)):
            raise UserError(f"the loss is {float(loss.detach())} at step {step + 1}", "METER", "a lower learning rate")
        loss.backward()
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * settings.factor(step)
        optimizer.step()
        losses.append(float(loss.detach()))
        if search is not None and scored is not None and search.due():
            _score(model, search, next(scored), as_released, seed, step)
    model.set_skip(model.config.skip, as_released=model.config.as_released)
    model.eval()
    return losses


@torch.no_grad()
def _score(
    model: Meter, search: Search, batch: tuple[MeterInputs, Tensor], as_released: bool, seed: int, step: int
) -> None:
    """Score S subnets on one batch and move the preferences; without dropout, which the authors leave on."""
    subnets = search.distinct(sample_generator(seed, step, SCORED))
    model.eval()
    losses = []
    for subnet in subnets:
        model.set_skip(subnet, as_released=as_released)
        losses.append(float(task_loss(model, *batch)))
    model.train()
    search.update(subnets, torch.tensor(losses, dtype=torch.float64))
