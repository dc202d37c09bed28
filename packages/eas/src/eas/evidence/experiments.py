"""The miniature's runs: search, sensitivity and tunings of many skip lists on a frozen host, all arms alike.

Arms of one seed share the start of their adapters, the order of the data and every batch. The host is frozen, so what
its tower and projector make of the pictures is computed once. An answer is chosen among the task's four, in training
(cross entropy over their four logits) and in the test.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import combinations
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from eas import costs
from eas.data.samples import Encoder
from eas.miniature import task
from eas.plan import Plan
from eas.search import RULES, Rule, Search
from eas.skipper import Skipper
from eas.training.llava import LlavaTrainee
from eas.training.plan import StagePlan
from eas.training.settings import SearchSettings, StageSettings
from eas.training.stages import Stage
from tenfold.data import mini_host


@dataclass(frozen=True)
class Design:
    """The sizes of the miniature's experiments, fixed before the record.

    Attributes:
        removed: K. adapter, pia: ranks.
        train, test: questions. steps, search_steps: of a tuning and of the search. batch: questions a step.
        rate: highest learning rate. randoms: lists without layer 0 a seed.
        asked: training questions that every pair of removed attentions is scored on, after the search.
        worlds: of training and test questions.
    """

    removed: int = 4
    adapter: int = 4
    pia: int = 16
    train: int = 640
    test: int = 200
    steps: int = 60
    search_steps: int = 80
    batch: int = 16
    rate: float = 1e-2
    randoms: int = 2
    asked: int = 40
    worlds: tuple[int, int] = (task.TRAIN_WORLD, task.TEST_WORLD)


class Cached:
    """Questions of one world, encoded, with the decoder's inputs computed once."""

    def __init__(self, world: int, count: int, model: Any, processor: Any) -> None:
        encoder = Encoder(processor)
        tokenizer, end = processor.tokenizer, processor.tokenizer.eos_token
        self.embeds: list[Tensor] = []
        self.labels: list[Tensor] = []
        self.answers: list[int] = []
        for picture, text, answer in task.questions(world, count):
            mark = f"{processor.image_token}\n"
            prompt = f"{encoder.system}USER: {mark}{text} ASSISTANT:"
            encoded = processor(images=[picture], text=[f"{prompt} {answer}{end}"], return_tensors="pt")
            length = len(processor(images=[picture], text=[prompt], return_tensors="pt")["input_ids"][0])
            labels = encoded["input_ids"][0].clone()
            labels[:length] = labels[length + 1 :] = -100  # the answer alone, without the end behind it
            self.embeds.append(_embedded(model, encoded))
            self.labels.append(labels)
            self.answers.append(task.ANSWERS.index(answer))
        self.options = torch.tensor([tokenizer(one, add_special_tokens=False)["input_ids"][0] for one in task.ANSWERS])

    def __len__(self) -> int:
        return len(self.embeds)

    def batch(self, numbers: Sequence[int], epoch: int = 0) -> dict[str, Tensor]:
        pad = nn.utils.rnn.pad_sequence
        embeds = pad([self.embeds[number] for number in numbers], batch_first=True)
        labels = pad([self.labels[number] for number in numbers], batch_first=True, padding_value=-100)
        lengths = torch.tensor([len(self.labels[number]) for number in numbers])
        mask = torch.arange(embeds.shape[1])[None] < lengths[:, None]
        return {"inputs_embeds": embeds, "attention_mask": mask.long(), "labels": labels}


@torch.no_grad()
def _embedded(model: Any, encoded: Mapping[str, Tensor]) -> Tensor:
    """The decoder's input ``[tokens, width]`` for one encoded question."""
    found: list[Tensor] = []

    def catch(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        found.append(kwargs["inputs_embeds"])

    handle = model.model.language_model.register_forward_pre_hook(catch, with_kwargs=True)
    try:
        model(**encoded, use_cache=False, logits_to_keep=1)
    finally:
        handle.remove()
    return found[0][0].clone()


class OptionTrainee(LlavaTrainee):
    """A host whose loss is that of the right answer among the four."""

    def __init__(self, model: nn.Module, skipper: Skipper, options: Tensor) -> None:
        super().__init__(model, skipper)
        self.options = options

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        logits, places = option_logits(self.model, batch, self.options)
        answers = batch["labels"][torch.arange(len(places)), places]
        wanted = (answers[:, None] == self.options).int().argmax(1)
        return nn.functional.cross_entropy(logits, wanted, reduction="sum")


def option_logits(model: Any, batch: Mapping[str, Tensor], options: Tensor) -> tuple[Tensor, Tensor]:
    """Logits ``[batch, 4]`` of the answers, and the places ``[batch]`` where they stand."""
    places = (batch["labels"] != -100).int().argmax(1)
    logits = model(**batch, use_cache=False).logits
    return logits[torch.arange(len(places)), places - 1][:, options].float(), places


# Section 11's numbers in the rule of the LLaVA host: preferences move faster than in 3.7, a run being so short.
MINIATURE = Rule("miniature", RULES["llava"].probability, subnets=3, every=5, step=2.0)


class Bench:
    """A frozen mini host with its questions; every arm begins here."""

    def __init__(self, design: Design, host: Path | None = None) -> None:
        self.design = design
        self.model, processor = mini_host.load(host)
        self.model.requires_grad_(False)
        self.train = Cached(design.worlds[0], design.train, self.model, processor)
        self.test = Cached(design.worlds[1], design.test, self.model, processor)
        self.layers = self.model.config.get_text_config().num_hidden_layers
        self.shape = costs.Shape.of(self.model.config)

    def plan(self, skip: Sequence[int], **changes: Any) -> Plan:
        design = self.design
        sizes: dict[str, Any] = {"adapter_rank": design.adapter, "pia_rank": design.pia, "dropout": 0.0}
        return Plan(layers=self.layers, skip=tuple(sorted(skip)), **(sizes | changes))

    def tune(self, skip: Sequence[int], seed: int, **changes: Any) -> dict[str, Any]:
        """Tune from the start without the attention of these layers; accuracy on the test questions in per cent."""
        begin = time.process_time()
        skipper = Skipper(self.plan(skip, **changes), seed=seed)
        losses: list[float] = []
        with skipper(self.model):
            stage = Stage(
                OptionTrainee(self.model, skipper, self.train.options),
                self.train,
                self._stage("tune", self.design.steps),
                seed=seed,
                log=lambda step, values: losses.append(values["loss"]),
            )
            stage.run()
            right = self.right(self.test, range(len(self.test)))
        tail = losses[-10:]
        return {
            "skip": sorted(skip),
            "accuracy": 100 * sum(right) / len(right),
            "right": "".join("1" if one else "0" for one in right),
            "loss": sum(tail) / len(tail),
            "curve": [round(one, 3) for one in losses[:: max(1, len(losses) // 20)]],
            "parameters": sum(parameter.numel() for parameter in skipper.parameters()),
            "cpu_seconds": round(time.process_time() - begin, 1),
        }

    def _stage(self, name: Any, steps: int) -> StagePlan:
        design = self.design
        settings = StageSettings(batch=design.batch, per_device=design.batch, learning_rate=design.rate)
        return StagePlan(name, settings, len(self.train), steps, max(1, steps // 10), 1)

    def search(self, seed: int) -> tuple[Search, list[float], float]:
        """The search; with its adapters, the accuracy in per cent without each pair of attentions; its CPU seconds.

        Pairs are in the order of ``itertools.combinations``.
        """
        begin = time.process_time()
        design = self.design
        settings = SearchSettings(rule="llava", idle=design.search_steps // 5, ramp=True, scored="prompt")
        skipper = Skipper(self.plan((), pia_rank=design.pia), both=True, seed=seed)
        with skipper(self.model):
            stage = Stage(
                OptionTrainee(self.model, skipper, self.train.options),
                self.train,
                self._stage("search", design.search_steps),
                seed=seed,
                search=settings,
                removed=design.removed,
            )
            assert stage.search is not None
            stage.search.rule = MINIATURE
            stage.run()
            seconds = time.process_time() - begin
            asked, pairs = range(min(design.asked, len(self.train))), []
            for pair in combinations(range(self.layers), 2):
                skipper.set_skip(pair)
                pairs.append(100 * sum(self.right(self.train, asked)) / len(asked))
        return stage.search, pairs, seconds

    @torch.no_grad()
    def right(self, samples: Cached, numbers: Sequence[int]) -> list[bool]:
        """Of these questions, whether the most likely of the four answers is the right one."""
        found: list[bool] = []
        self.model.eval()
        for at in range(0, len(numbers), 50):
            part = list(numbers)[at : at + 50]
            logits, _ = option_logits(self.model, samples.batch(part), samples.options)
            chosen = logits.argmax(-1).tolist()
            found += [answer == samples.answers[number] for answer, number in zip(chosen, part, strict=True)]
        return found

    def dense(self) -> float:
        """Accuracy of the host as it is: it does not know the names."""
        right = self.right(self.test, range(len(self.test)))
        return 100 * sum(right) / len(right)

    @torch.no_grad()
    def sensitivity(self, count: int = 100) -> list[float]:
        """The loss of the host's own words when one attention goes, nothing trained: the cheap baseline.

        Scored on the training questions against what the whole host says, so that no label is needed.
        """
        numbers = range(min(count, len(self.train)))
        whole = self._said(numbers)
        losses = []
        for layer in range(self.layers):
            plan = self.plan((layer,), adapter_rank=0, pia_rank=2, identity_start=True)
            with Skipper(plan)(self.model):
                logits = self._logits(numbers)
            losses.append(float(nn.functional.cross_entropy(logits, whole)))
        return losses

    def _said(self, numbers: Sequence[int]) -> Tensor:
        return self._logits(numbers).argmax(-1)

    def _logits(self, numbers: Sequence[int]) -> Tensor:
        self.model.eval()
        found = []
        for at in range(0, len(numbers), 50):
            batch = self.train.batch(list(numbers)[at : at + 50])
            logits = self.model(**batch, use_cache=False).logits
            first = (batch["labels"] != -100).int().argmax(1)
            found.append(logits[torch.arange(len(first)), first - 1])
        return torch.cat(found)


@lru_cache(maxsize=1)
def bench(design: Design, host: Path | None) -> Bench:
    """Made once a process and host."""
    return Bench(design, host)


def equal_rank(shape: costs.Shape, design: Design) -> int:
    """The adapter rank with which nothing skipped trains as many weights."""
    ranks = costs.RankSizes(design.adapter, design.pia)
    return costs.equal_parameter_rank(shape, design.removed, ranks, router_bias=False)


def smaller(design: Design, share: float) -> Design:
    """A design with a share of the steps and questions, for tests."""
    names = ("train", "test", "steps", "search_steps", "batch", "asked")
    return replace(design, randoms=1, **{name: max(4, round(getattr(design, name) * share)) for name in names})
