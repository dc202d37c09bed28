"""One stage of a training: steps on what moves of a frozen host, resumable to the bit.

Every batch is a function of seed, epoch and place; dropout and subnets draw from generators seeded by the step. Ranks
share a batch, and what an update of the search is scored on, and sum: their number moves nothing but rounding.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors.torch import save_file
from torch import Tensor, distributed, nn

from eas.search import RULES, Search
from eas.training.plan import StagePlan
from eas.training.settings import SearchSettings, StageSettings
from tenfold import UserError
from tenfold.pickled import load_pickled
from tenfold.runs import checkpoint_step, last_complete_checkpoint, read_json, sample_generator, write_checkpoint
from tenfold.runs.ranks import Ranks
from tenfold.weights import read_weights, require_finite

WEIGHTS, OPTIMIZER, STATE = "weights.safetensors", "optimizer.pt", "state.json"
ORDER, DROPOUT, SUBNETS, SCORED, HELD_OUT = 0, 1, 2, 3, 4  # streams of one seed


class Samples(Protocol):
    """What a stage learns from, or scores on: samples by number, and how they become a batch of its host."""

    def __len__(self) -> int: ...

    def batch(self, numbers: Sequence[int], epoch: int) -> Any:
        """These samples; what is drawn for one is a function of its number and the epoch."""
        ...


class Trainee(Protocol):
    """A model in training: what a stage asks of LLaVA, METER and LaVIN alike.

    Attributes:
        parameters: what moves, by the names of its checkpoints. sites: attentions that can be skipped.
    """

    parameters: dict[str, nn.Parameter]
    sites: int

    @property
    def model(self) -> nn.Module: ...

    def factor(self, name: str, settings: StageSettings) -> float:
        """Of the learning rate of a parameter."""
        ...

    def set_skip(self, skip: tuple[int, ...]) -> None:
        """Skip these from the next forward on."""
        ...

    def count(self, batch: Any) -> int:
        """What the loss of a batch is a mean over: tokens of answers, or samples."""
        ...

    def loss(self, batch: Any) -> Tensor:
        """The sum of the loss over these, a scalar."""
        ...

    def scoring(self, means: str) -> AbstractContextManager[None]:
        """Inside, means run over the "prompt" or over "all" positions."""
        ...

    def close(self) -> None:
        """The stage is done, and another one may begin."""
        ...


@dataclass(frozen=True)
class Kept:
    """Where a stage's checkpoints lie, and how often one is written."""

    folder: Path
    every: int
    keep: int


Log = Callable[[int, dict[str, float]], None]


class Stage:
    """A stage in progress.

    Args:
        search: the search's settings, and `removed` its K; None: a tuning.
        held_out: what subnets are scored on; None: the batch of the step.
    """

    def __init__(
        self,
        trainee: Trainee,
        samples: Samples,
        plan: StagePlan,
        *,
        seed: int,
        group: Ranks | None = None,
        search: SearchSettings | None = None,
        removed: int = 0,
        held_out: Samples | None = None,
        kept: Kept | None = None,
        log: Log = lambda step, values: None,
    ) -> None:
        self.trainee, self.samples, self.plan, self.held_out = trainee, samples, plan, held_out
        self.seed, self.group, self.settings, self.kept, self.log = seed, group or Ranks(), search, kept, log
        trainee.model.requires_grad_(False)
        self.parameters = trainee.parameters
        for parameter in self.parameters.values():
            parameter.requires_grad_(True)
        self.optimizer = torch.optim.AdamW(self._groups(), lr=0.0, betas=plan.settings.betas)
        self.search: Search | None = None
        if search is not None:
            self.search = Search(RULES[search.rule], trainee.sites, removed, warmup=search.idle, ramp=search.ramp)
        self.step = 0
        if kept is not None and (checkpoint := last_complete_checkpoint(kept.folder)) is not None:
            self._read(checkpoint)

    def _groups(self) -> list[dict[str, Any]]:
        """Parameters by their factor of the learning rate and their decay: matrices alone decay."""
        settings, groups = self.plan.settings, dict[tuple[float, float], list[nn.Parameter]]()
        for name, parameter in self.parameters.items():
            decay = settings.weight_decay if parameter.ndim > 1 else 0.0
            groups.setdefault((self.trainee.factor(name, settings), decay), []).append(parameter)
        return [{"params": some, "factor": factor, "weight_decay": decay} for (factor, decay), some in groups.items()]

    def run(self, progress: Callable[[Iterator[int]], Iterator[int]] = iter) -> None:
        """All steps that are left.

        Raises:
            UserError: a loss that is not finite: the last good checkpoint stays.
        """
        self.trainee.model.train()
        for _ in progress(iter(range(self.step, self.plan.steps))):
            loss = self._take_step()
            self.step += 1
            values = {"loss": loss, "learning_rate": self.plan.rate(self.step - 1)}
            if self.search is not None and self.search.updates:
                values["margin"] = self.search.margin()
            self.log(self.step, values)
            if self.kept is not None and (self.step % self.kept.every == 0 or self.step == self.plan.steps):
                self._write(self.kept)
        require_finite(self.trainee.parameters, f"{self.plan.name}, step {self.step}")
        self.trainee.model.eval()

    def batch_numbers(self, step: int) -> list[int]:
        """The samples of a step: every epoch its own order; the last batch of an epoch is filled from its start."""
        size, count = self.plan.settings.batch, len(self.samples)
        epoch, place = divmod(step, self._per_epoch())
        order = torch.randperm(count, generator=sample_generator(self.seed, epoch, ORDER)).tolist()
        return [order[at % count] for at in range(place * size, (place + 1) * size)]

    def _per_epoch(self) -> int:
        return -(-len(self.samples) // self.plan.settings.batch)

    def _batches(self, samples: Samples, numbers: Sequence[int], epoch: int) -> list[Any]:
        """This rank's share of some samples, as many at a time as a device takes."""
        mine, size = self.group.share(numbers), self.plan.settings.per_device
        return [samples.batch(mine[at : at + size], epoch) for at in range(0, len(mine), size)]

    def _take_step(self) -> float:
        group, step, trainee = self.group, self.step, self.trainee
        if self.search is not None:
            count = self.search.begin()
            trainee.set_skip(self.search.sample(sample_generator(self.seed, step, SUBNETS), count))
        batches = self._batches(self.samples, self.batch_numbers(step), step // self._per_epoch())
        counted = self._sum(torch.tensor(float(sum(map(trainee.count, batches))))).clamp_min(1)
        self.optimizer.zero_grad(set_to_none=True)
        total = torch.zeros(())
        for number, batch in enumerate(batches):
            place = (step * len(batches) + number) * group.world + group.rank
            with torch.random.fork_rng(devices=self._devices()):
                torch.manual_seed(int(torch.randint(2**62, (), generator=sample_generator(self.seed, place, DROPOUT))))
                loss = trainee.loss(batch) / counted.to(self._device())
                loss.backward()
            total = total + loss.detach().float().cpu()
        loss_value = float(self._sum(total))
        if loss_value != loss_value or abs(loss_value) == float("inf"):
            raise UserError(
                f"the loss is {loss_value} at step {step + 1}",
                self.plan.name,
                f"{self.plan.name}.learning_rate below {self.plan.settings.learning_rate:g}",
            )
        self._move()
        if self.search is not None and self.search.due():
            self._score(batches)
        return loss_value

    def _move(self) -> None:
        # A module that was not at work in this step, on no rank, has no gradient and does not move.
        used = self._used()
        if self.group.world > 1:
            for parameter in used:
                if parameter.grad is None:  # at work on another rank alone, such as a projector without pictures here
                    parameter.grad = torch.zeros_like(parameter)
                distributed.all_reduce(parameter.grad)
        if self.plan.settings.clip is not None:
            nn.utils.clip_grad_norm_(used, self.plan.settings.clip)
        for part in self.optimizer.param_groups:
            part["lr"] = self.plan.rate(self.step) * part["factor"]
        self.optimizer.step()

    def _used(self) -> list[nn.Parameter]:
        every = list(self.parameters.values())
        worked = self._sum(torch.tensor([float(parameter.grad is not None) for parameter in every]))
        return [parameter for parameter, ranks in zip(every, worked.tolist(), strict=True) if ranks]

    def _score(self, batches: Sequence[Any]) -> None:
        """Score S subnets, without dropout, on held-out samples or the batch of this step; move the preferences."""
        assert self.search is not None and self.settings is not None
        count = min(self.search.removed, self.search.sites - 1)
        subnets = self.search.distinct(sample_generator(self.seed, self.step, SCORED), count)
        if self.held_out is not None:
            batches = self._held_out(self.held_out)
        trainee, losses = self.trainee, []
        trainee.model.eval()
        with torch.no_grad(), trainee.scoring(self.settings.scored):
            for subnet in subnets:
                trainee.set_skip(subnet)
                losses.append(sum(float(trainee.loss(one)) for one in batches))
        trainee.model.train()
        counted = float(self._sum(torch.tensor(float(sum(map(trainee.count, batches))))))
        self.search.update(subnets, self._sum(torch.tensor(losses, dtype=torch.float64)) / max(1.0, counted))

    def _held_out(self, samples: Samples) -> list[Any]:
        assert self.settings is not None
        order = torch.randperm(len(samples), generator=sample_generator(self.seed, self.step, HELD_OUT)).tolist()
        return self._batches(samples, order[: self.settings.scored_samples or self.settings.batch], self.step)

    def _sum(self, value: Tensor) -> Tensor:
        if self.group.world > 1:
            value = value.to(self.group.device)
            distributed.all_reduce(value)
        return value.cpu()

    def _device(self) -> torch.device:
        return next(iter(self.parameters.values())).device

    def _devices(self) -> list[torch.device]:
        return [self._device()] if self._device().type == "cuda" else []

    def _write(self, kept: Kept) -> None:
        def write(folder: Path) -> None:
            weights = {name: value.detach().cpu().contiguous() for name, value in self.parameters.items()}
            save_file(weights, folder / WEIGHTS)
            torch.save(self.optimizer.state_dict(), folder / OPTIMIZER)
            state: dict[str, Any] = {"step": self.step}
            if self.search is not None:
                state |= {"calls": self.search.calls, "updates": self.search.updates, "last": self.search._last}
                state["preferences"] = self.search.preferences.double().tolist()
            (folder / STATE).write_text(json.dumps(state))

        if self.group.leads:
            write_checkpoint(kept.folder, self.step, write, kept.keep)
        self.group.meet()

    def _read(self, checkpoint: Path) -> None:
        weights, state = read_weights(checkpoint / WEIGHTS), read_json(checkpoint / STATE)
        if set(weights) != set(self.parameters):
            raise UserError("a checkpoint of other modules", checkpoint, "that of this training")
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(weights[name])
        self.optimizer.load_state_dict(load_pickled(checkpoint / OPTIMIZER, "the optimizer of a complete checkpoint"))
        if self.search is not None:
            self.search.calls, self.search.updates, self.search._last = (state[k] for k in ("calls", "updates", "last"))
            self.search.preferences = torch.tensor(state["preferences"], dtype=torch.float64).float()
        self.step = checkpoint_step(checkpoint)
