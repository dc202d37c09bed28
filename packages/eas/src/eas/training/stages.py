"""One stage of a training: steps on the adapters of a frozen host, resumable to the bit.

Every batch is a function of seed, epoch and place; dropout and subnets draw from generators seeded by the step. Ranks
share a batch and sum their gradients, so that their number moves nothing but rounding.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors.torch import save_file
from torch import Tensor, distributed, nn

from eas.checkpoints import keys
from eas.search import RULES, Search
from eas.skipper import Skipper
from eas.training.plan import StagePlan
from eas.training.settings import SearchSettings
from tenfold import UserError
from tenfold.pickled import load_pickled
from tenfold.runs import checkpoint_step, last_complete_checkpoint, read_json, sample_generator, write_checkpoint
from tenfold.runs.ranks import Ranks
from tenfold.weights import read_weights

WEIGHTS, OPTIMIZER, STATE = "weights.safetensors", "optimizer.pt", "state.json"
ORDER, DROPOUT, SUBNETS, SCORED = 0, 1, 2, 3  # streams of one seed


class Samples(Protocol):
    """What a stage learns from: encoded samples by number, and how they become a batch."""

    def __len__(self) -> int: ...

    def batch(self, numbers: Sequence[int]) -> dict[str, Tensor]: ...


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
        model: the frozen host, with `skipper` attached.
        search: the search's settings; None: a tuning.
    """

    def __init__(
        self,
        model: nn.Module,
        skipper: Skipper,
        samples: Samples,
        plan: StagePlan,
        *,
        seed: int,
        group: Ranks | None = None,
        search: SearchSettings | None = None,
        removed: int = 0,
        kept: Kept | None = None,
        log: Log = lambda step, values: None,
    ) -> None:
        self.model, self.skipper, self.samples, self.plan = model, skipper, samples, plan
        self.seed, self.group, self.settings, self.kept, self.log = seed, group or Ranks(), search, kept, log
        model.requires_grad_(False)
        self.parameters = {**keys.named(skipper.adapters, skipper.pias), **self._projector()}
        for parameter in self.parameters.values():
            parameter.requires_grad_(True)
        self.optimizer = torch.optim.AdamW(self.parameters.values(), lr=0.0, weight_decay=plan.settings.weight_decay)
        self.search: Search | None = None
        if search is not None:
            layers = skipper.plan.layers
            self.search = Search(RULES[search.rule], layers, removed, warmup=search.idle, ramp=search.ramp)
        self.step = 0
        if kept is not None and (checkpoint := last_complete_checkpoint(kept.folder)) is not None:
            self._read(checkpoint)

    def _projector(self) -> dict[str, nn.Parameter]:
        return {keys.PROJECTOR + name: parameter for name, parameter in self.skipper.projector.items()}

    def run(self, progress: Callable[[Iterator[int]], Iterator[int]] = iter) -> None:
        """All steps that are left.

        Raises:
            UserError: a loss that is not finite: the last good checkpoint stays.
        """
        self.model.train()
        for _ in progress(iter(range(self.step, self.plan.steps))):
            loss = self._take_step()
            self.step += 1
            values = {"loss": loss, "learning_rate": self.plan.rate(self.step - 1)}
            if self.search is not None and self.search.updates:
                values["margin"] = self.search.margin()
            self.log(self.step, values)
            if self.kept is not None and (self.step % self.kept.every == 0 or self.step == self.plan.steps):
                self._write(self.kept)
        self.model.eval()

    def batch_numbers(self, step: int) -> list[int]:
        """The samples of a step: every epoch its own order; the last batch of an epoch is filled from its start."""
        size, count = self.plan.settings.batch, len(self.samples)
        per_epoch = -(-count // size)
        epoch, place = divmod(step, per_epoch)
        order = torch.randperm(count, generator=sample_generator(self.seed, epoch, ORDER)).tolist()
        return [order[at % count] for at in range(place * size, (place + 1) * size)]

    def _take_step(self) -> float:
        group, step = self.group, self.step
        if self.search is not None:
            count = self.search.begin()
            self.skipper.set_skip(self.search.sample(sample_generator(self.seed, step, SUBNETS), count))
        mine = group.share(self.batch_numbers(step))
        size = self.plan.settings.per_device
        batches = [self.samples.batch(mine[at : at + size]) for at in range(0, len(mine), size)]
        tokens = self._sum(torch.tensor(float(sum(int((one["labels"][:, 1:] != -100).sum()) for one in batches))))
        self.optimizer.zero_grad(set_to_none=True)
        total = torch.zeros(())
        for number, batch in enumerate(batches):
            place = (step * len(batches) + number) * group.world + group.rank
            with torch.random.fork_rng(devices=self._devices()):
                torch.manual_seed(int(torch.randint(2**62, (), generator=sample_generator(self.seed, place, DROPOUT))))
                loss = self._loss(batch) / tokens.to(self._device())
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

    def _loss(self, batch: dict[str, Tensor]) -> Tensor:
        """The sum of the cross entropy over the answers' tokens."""
        device = self._device()
        given = {name: value.to(device) for name, value in batch.items()}
        if "pixel_values" in given:
            given["pixel_values"] = given["pixel_values"].to(next(self.model.parameters()).dtype)
        logits = self.model(**given, use_cache=False).logits[:, :-1].float()
        labels = given["labels"][:, 1:]
        return nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100, reduction="sum")

    def _move(self) -> None:
        # A layer whose module was not at work in this step has no gradient and does not move.
        used = [parameter for parameter in self.parameters.values() if parameter.grad is not None]
        for parameter in used:
            if self.group.world > 1:
                assert parameter.grad is not None
                distributed.all_reduce(parameter.grad)
        if self.plan.settings.clip is not None:
            nn.utils.clip_grad_norm_(used, self.plan.settings.clip)
        for part in self.optimizer.param_groups:
            part["lr"] = self.plan.rate(self.step)
        self.optimizer.step()

    def _score(self, batches: Sequence[dict[str, Tensor]]) -> None:
        """Score S subnets on the batch of this step, as the authors do, and move the preferences."""
        assert self.search is not None and self.settings is not None
        count = min(self.search.removed, self.search.sites - 1)
        subnets = self.search.distinct(sample_generator(self.seed, self.step, SCORED), count)
        attachment = self.skipper.attachment
        self.model.eval()
        before, attachment.means = attachment.means, self.settings.scored
        losses = []
        with torch.no_grad():
            for subnet in subnets:
                self.skipper.set_skip(subnet)
                tokens = sum(int((one["labels"][:, 1:] != -100).sum()) for one in batches)
                losses.append(sum(float(self._loss(one)) for one in batches) / max(1, tokens))
        attachment.means = before
        self.model.train()
        self.search.update(subnets, torch.tensor(self.group.gather(losses), dtype=torch.float64))

    def _sum(self, value: Tensor) -> Tensor:
        if self.group.world > 1:
            value = value.to(self.group.device)
            distributed.all_reduce(value)
        return value.cpu()

    def _device(self) -> torch.device:
        return next(self.model.parameters()).device

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
