"""`dyvte train`: the gates of a frozen host, by the paper's recipe.

One exit layer a step, the same on every rank; only its gate has a gradient, the others' stay None, so that AdamW moves
nothing else, neither weights nor step counters. Gates are trained in float32: at the paper's rate a step is about one
unit in the last place of a bfloat16 weight. A killed training goes on from its last complete checkpoint with the same
bits, and ends with `gates/`, which `dyvte.load_gates` opens.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor, distributed

from dyvte.branches import gate_loss
from dyvte.checkpoints.load import load_gates, write_gates
from dyvte.data.samples import TrainingSample, mini_samples, read_samples
from dyvte.gates import Gates
from dyvte.training.batches import Labeller, Mined, exit_layers, mine, samples_of
from dyvte.training.plan import Plan, gate_config, plan
from dyvte.training.settings import TrainSettings
from tenfold import UserError
from tenfold.cli.settings import MINI
from tenfold.hosts.loading import Host, load_host, loading_from
from tenfold.runs import (
    Run,
    checkpoint_step,
    fingerprint,
    last_complete_checkpoint,
    run,
    track,
    write_checkpoint,
)
from tenfold.runs.context import require_unfinished
from tenfold.runs.ranks import Ranks, choose_device, ranks
from tenfold.runs.resumption import IDENTITY, identity, keep_identity, require_new, threads
from tenfold.weights import require_finite

logger = logging.getLogger(__name__)

MINI_SAMPLES = 256
GATES, CHECKPOINTS, LABELS = "gates", "checkpoint-gates", "checkpoint-labels"
STATE = "state.pt"
# What may differ between a training and its continuation: it moves no bit of the weights.
FREE = ("device", "checkpoint_steps", "wandb")


@dataclass(frozen=True)
class Trained:
    """A finished training.

    Attributes:
        folder: of the gates.
        metrics: as in the run's record.
        resumed: steps that were done before this call.
    """

    folder: Path
    metrics: Mapping[str, Any]
    resumed: int


def training_samples(settings: TrainSettings, seed: int) -> list[TrainingSample]:
    """The samples of a training, in the order of their file.

    Raises:
        UserError: a broken or empty file.
    """
    if settings.samples is None:
        return mini_samples(seed, settings.limit or MINI_SAMPLES)
    images = settings.image_folder or Path(settings.samples).parent
    found = read_samples(settings.samples, images, rounds=settings.rounds, share=settings.share, seed=seed)
    return found[: settings.limit]


def plan_of(settings: TrainSettings, seed: int) -> Plan:
    """What `--dry-run` shows: data are opened, the host is built without memory.

    Raises:
        UserError: data or host cannot be used.
    """
    from transformers import AutoConfig, AutoModelForImageTextToText

    from tenfold.data import mini_host

    samples = training_samples(settings, seed)
    source = mini_host.path() if settings.model == MINI else settings.model
    with loading_from(source, "a host that can be opened"), torch.device("meta"):
        config = AutoConfig.from_pretrained(source, trust_remote_code=False, local_files_only=Path(source).is_dir())
        host = AutoModelForImageTextToText.from_config(config)
    frozen = sum(parameter.numel() for parameter in host.parameters())
    return plan(settings, len(samples), gate_config(settings, config), frozen)


def run_train(settings: TrainSettings, seed: int, output: Path, host: Host | None = None) -> Trained:
    """Train gates into a folder; goes on where an earlier call was killed. Under `torchrun` every rank calls this.

    Args:
        settings: of the training.
        seed: of everything that is random in it.
        output: for checkpoints, metrics, record and gates; all ranks must see the same one.
        host: an opened one instead of `settings.model`.

    Raises:
        UserError: the folder holds a finished run or a training of other settings; data or weights that are missing,
            broken or do not fit; a loss that is not finite; no CUDA where it is asked for.
    """
    require_unfinished(output)
    device = choose_device(settings.device)
    with threads(settings.threads), ranks(device) as group:
        samples = training_samples(settings, seed)
        opened = host or load_host(settings.model_copy(update={"device": str(device)}))
        data = {"model": opened.fingerprint}
        if settings.samples is not None:
            data["samples"] = fingerprint(Path(settings.samples))
        same = identity(settings.model_dump(mode="json"), seed, group.world, data, FREE)
        group.lead(lambda: _begin(output, same))
        options: dict[str, Any] = {"output": None, "data": {}}
        if group.leads:
            options = {"output": output, "data": data, "wandb_project": settings.wandb}
        with run("dyvte", "train", config=settings.model_dump(mode="json"), seed=seed, **options) as current:
            training = Training(settings, seed, output, opened, samples, group, current)
            resumed = training.step
            training.run()
            if group.leads:
                made = {"base": settings.model, "data": settings.samples or "the mini world", "run": current.id}
                folder = current.file(GATES)
                folder.mkdir(exist_ok=True)
                require_finite(training.gates.state_dict(), "the trained weights")
                write_gates(training.gates, folder, made)
                current.metrics.update(training.metrics())
    return Trained(output / GATES, current.metrics, resumed)


class Training:
    """A training in progress.

    Args:
        settings, seed, output: as for `run_train`.
        host, samples: what it trains on.
        group: this process and its peers.
        current: where steps are logged.
    """

    def __init__(
        self,
        settings: TrainSettings,
        seed: int,
        output: Path,
        host: Host,
        samples: list[TrainingSample],
        group: Ranks,
        current: Run,
    ) -> None:
        self.settings, self.seed, self.output, self.host, self.samples = settings, seed, output, host, samples
        self.group, self.current = group, current
        self.device: Any = host.model.device
        config = gate_config(settings, host.model.config)
        self.plan = plan(settings, len(samples), config, sum(p.numel() for p in host.model.parameters()))
        self.gates = Gates(config).initialise(seed, half=True)
        if settings.start is not None:
            start = load_gates(settings.start, dtype=torch.float32)
            if start.config != config:
                raise UserError(f"gates {start.config}", settings.start, f"{config}")
            self.gates.load_state_dict(start.state_dict())
        self.gates = self.gates.to(self.device).train().requires_grad_(True)  # type: ignore[arg-type]
        self.optimizer = torch.optim.AdamW(
            self.gates.parameters(), lr=settings.rate, betas=(0.9, 0.999), eps=1e-8, weight_decay=settings.weight_decay
        )
        self.labeller = Labeller(host, settings, config)
        self.mined: Mined | None = None
        self.losses: list[float] = []
        self.exits: list[float] = []
        self.step = 0
        self._resume()

    def run(self) -> None:
        """All steps, from where the training stands."""
        if self.settings.offline:
            self.group.lead(lambda: mine(self.labeller, self.samples, self.output / LABELS, track))
            self.mined = mine(self.labeller, self.samples, self.output / LABELS, lambda todo, _: todo)
        todo = range(self.step, self.plan.steps)
        for step in track(todo, "steps") if self.group.leads else todo:
            self._train(step)
            self.step = step + 1
            if self.step % self.settings.checkpoint_steps == 0 or self.step == self.plan.steps:
                self.group.lead(lambda: write_checkpoint(self.output / CHECKPOINTS, self.step, self._save))
                self.group.meet()

    def metrics(self) -> dict[str, Any]:
        """For the run's record."""
        last = max(1, self.plan.steps // 10)
        return {
            "steps": self.plan.steps,
            "ranks": self.group.world,
            "loss": fmean(self.losses[-last:]),
            "exit_labels": fmean(self.exits),
            "updates_a_gate": self.plan.updates,
        }

    def _train(self, step: int) -> None:
        layers = exit_layers(step, self.settings, self.seed, len(self.gates))
        numbers = samples_of(step, len(self.samples), self.settings.batch, self.seed)
        own = numbers[self.group.rank :: self.group.world]
        for parameters in self.optimizer.param_groups:
            parameters["lr"] = self.settings.rate * self.plan.schedule(step)
        self.optimizer.zero_grad(set_to_none=True)
        loss = torch.zeros((), device=self.device)
        right = torch.zeros((), device=self.device)
        if own:
            x, labels = self._labelled(own, layers)
            share = len(own) / len(numbers)  # the mean over the step's samples, of this rank's part
            loss = torch.stack([gate_loss(self.gates[k](x[i]), labels[i]) for i, k in enumerate(layers)]).sum() * share
            loss.backward()
            right = labels.float().mean() * share
        told = self._summed(torch.stack((loss.detach() / len(layers), right))).tolist()
        if not all(map(_finite, told)):
            raise UserError("a loss that is not finite", f"step {step + 1}, layers {layers}", "a lower --set rate=...")
        drawn = [p for k in layers for p in self.gates[k].parameters()]
        for parameter in drawn:
            grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            parameter.grad = self._summed(grad)
        if self.settings.clip:
            torch.nn.utils.clip_grad_norm_(drawn, self.settings.clip)
        self.optimizer.step()
        self.losses.append(told[0])
        self.exits.append(told[1])
        if self.group.leads:
            rate = self.optimizer.param_groups[0]["lr"]
            layer = layers[0] if len(layers) == 1 else -1
            self.current.log(step=step + 1, loss=told[0], exit_labels=told[1], layer=layer, rate=rate)

    def _labelled(self, numbers: list[int], layers: list[int]) -> tuple[Tensor, Tensor]:
        if self.mined is not None:
            return self.mined.label(numbers, layers, self.device)
        return self.labeller.label([self.samples[number] for number in numbers], layers)

    def _summed(self, value: Tensor) -> Tensor:
        if self.group.world > 1:
            distributed.all_reduce(value)
        return value

    def _save(self, folder: Path) -> None:
        state = {
            "gates": self.gates.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "losses": self.losses,
            "exits": self.exits,
        }
        torch.save(state, folder / STATE)

    def _resume(self) -> None:
        checkpoint = last_complete_checkpoint(self.output / CHECKPOINTS)
        if checkpoint is None:
            return
        state = torch.load(checkpoint / STATE, map_location=self.device, weights_only=True)
        self.gates.load_state_dict(state["gates"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.losses, self.exits = state["losses"], state["exits"]
        self.step = checkpoint_step(checkpoint)
        logger.info("going on after step %d of %d", self.step, self.plan.steps)


def _finite(value: float) -> bool:
    return value == value and abs(value) != float("inf")


def _begin(output: Path, same: Mapping[str, Any]) -> None:
    """A new folder, or one in which the same training was begun."""
    require_new(output, resume=(output / IDENTITY).exists())
    output.mkdir(parents=True, exist_ok=True)
    keep_identity(output, same)
