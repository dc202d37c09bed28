"""METER's search and tuning (section 5): AdamW in groups, linear rise and fall, a random subnet at every step.

    search = Search(RULES["meter"], sites=24, removed=10, warmup=epoch)
    run_meter(model, batches, MeterTraining.of("vqa", steps), search=search, scored=others)
    result = SearchResult.of(search, seed=0)

The authors' ranks search alone and never meet; this is one process.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from eas.checkpoints.meter import classifier_answers, open_meter, read_meter_about, write_meter
from eas.data.meter import Encoder, training_batches
from eas.meter import Meter, MeterInputs, task_loss
from eas.result import SearchResult
from eas.search import RULES, Search
from eas.training.settings import MeterTrainSettings
from tenfold import UserError
from tenfold.runs import fingerprint, run, sample_generator
from tenfold.runs.ranks import choose_device

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
    place = model.token4classifier.device
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
        loss = task_loss(model, *_moved(next(batches), place))
        if not bool(torch.isfinite(loss)):
            raise UserError(f"the loss is {float(loss.detach())} at step {step + 1}", "METER", "a lower learning rate")
        loss.backward()
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * settings.factor(step)
        optimizer.step()
        losses.append(float(loss.detach()))
        if search is not None and scored is not None and search.due():
            _score(model, search, _moved(next(scored), place), as_released, seed, step)
    model.set_skip(model.config.skip, as_released=model.config.as_released)
    model.eval()
    return losses


def _moved(batch: tuple[MeterInputs, Tensor], place: torch.device) -> tuple[MeterInputs, Tensor]:
    inputs, targets = batch
    pixels = tuple(one.to(place) for one in inputs.pixels)
    return MeterInputs(inputs.ids.to(place), inputs.mask.to(place), pixels), targets.to(place)


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


# Splits that are trained on and scored on where none are named: scoring never meets the training, as it does in the
# authors' code, whose search scores VQA, NLVR2 and retrieval on what it trains on.
USUAL = {"vqa": (("train2014",), "val2014"), "nlvr2": (("train",), "dev"), "irtr": (("train",), "val")}


def train_meter(settings: MeterTrainSettings, seed: int, output: Path) -> dict[str, Any]:
    """Search or tune a folder of METER; writes ``search.json`` or ``model/`` beside the run's record.

    Returns:
        The record's metrics.

    Raises:
        UserError: a broken folder, data that are missing, folded weights, a scored split that is trained on.
    """
    folder = Path(settings.model)
    config, about = read_meter_about(folder)
    splits, scored = settings.splits or USUAL[config.task][0], settings.scored or USUAL[config.task][1]
    if config.folded:
        raise UserError("folded weights", folder, "a folder with its adapters: eas convert without --folded")
    if scored in splits and settings.stage == "search":
        raise UserError(f"scored {scored}", f"trained on {', '.join(splits)}", "a split that is not trained on")
    if not Path(settings.data).is_dir():
        raise UserError("no such folder", settings.data, f"the official files of {config.task}")
    answers = classifier_answers(folder, config.answers) if config.task == "vqa" else []
    encoder, given = Encoder(folder, config), (config.task, settings.data)
    batches = training_batches(*given, splits, encoder, answers, settings.batch, seed, settings.false_texts)
    data = {"model": fingerprint(folder)}
    with run("eas", "train", config=settings.model_dump(), seed=seed, output=output, data=data) as current:
        model = open_meter(folder)[0].to(choose_device(settings.device))
        plan = MeterTraining.of(config.task, settings.steps)
        search, others = None, None
        if settings.stage == "search":
            search = Search(RULES["meter"], 24, settings.removed, warmup=settings.warmup)
            others = training_batches(
                *given, (scored,), encoder, answers, settings.batch, seed + 1, settings.false_texts
            )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            losses = run_meter(
                model, batches, plan, search=search, scored=others, as_released=settings.as_released, seed=seed
            )
        found: dict[str, Any] = {
            "steps": settings.steps,
            "loss": losses[-1],
            "task": config.task,
            "splits": list(splits),
        }
        if search is not None:
            result = SearchResult.of(search, seed=seed, host=data["model"], data=",".join((*splits, scored)))
            result.save(current.file("search.json"))
            found |= {"skip": list(result.skip), "margin": result.margin, "updates": result.updates}
        else:
            seen = tuple(dict.fromkeys((*about.trained_on, *splits)))
            told = replace(about, source="tuned", trained_on=seen)
            state = {name: value.cpu() for name, value in model.state_dict().items()}
            write_meter(output / "model", config, state, told, tokenizer=folder, answers=answers or None)
            found["skip"] = list(config.skip)
        current.metrics.update(found)
    return found
