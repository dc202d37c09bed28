"""`dit-sam train`: the paper's recipe (section 5) on RefCOCO-style data, one's own, or the mini world.

    run_train(load_config(TrainSettings, "mini"), seed=0, output=Path("runs/mini"))

A step is the authors': forward, backward, clip, Adam, schedule, average. After every epoch the averaged weights are
scored on val by the official protocol; those with the best mIoU become `model/`, the last ones `last/`. A killed
training goes on from its last complete checkpoint with the same bits: raw weights, their average, optimiser and scaler
are kept.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dit_sam.checkpoints.load import extended, from_sam
from dit_sam.data.mini import write_mini
from dit_sam.data.samples import Sample
from dit_sam.data.sets import ReferringSet
from dit_sam.miniature.model import train_points
from dit_sam.model import DITSam, mask_loss
from dit_sam.training.batches import Batch, Batches
from dit_sam.training.data_parallel import sum_gradients
from dit_sam.training.plan import freeze, model_config, plan
from dit_sam.training.schedule import Average
from dit_sam.training.settings import TrainSettings
from dit_sam.training.validation import validate
from tenfold import UserError
from tenfold.runs import Run, fingerprint, last_complete_checkpoint, run, sample_rng, track, write_checkpoint
from tenfold.runs.ranks import Ranks, choose_device, ranks
from tenfold.runs.resumption import identity, require_new, require_same, threads
from tenfold.weights import require_finite

logger = logging.getLogger(__name__)

STATE = "state.pt"
# What may differ between a training and its continuation: it moves no bit of the weights.
FREE = ("device", "checkpoint_steps", "log_steps", "wandb", "workers", "data.folder", "data.in_memory")
# Beside the outcome, and no part of it by their names.
DATA, POINTS = "checkpoint-data", "checkpoint-points"
# Streams of random numbers besides the samples': far above any epoch.
_DROPOUT = 2**40
_PRECISIONS = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass
class Progress:
    """How far a training has come.

    Attributes:
        step: finished steps. best: the best mIoU of val so far, in per cent. best_step: where that was.
        last: the scores of val after the last epoch.
    """

    step: int = 0
    best: float = -1.0
    best_step: int = 0
    last: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Trained:
    """A finished training.

    Attributes:
        model: the folder of the best weights. metrics: as in the run's record.
        resumed: the step from which this call went on; 0: from nothing.
    """

    model: Path
    metrics: dict[str, Any]
    resumed: int


def run_train(settings: TrainSettings, seed: int, output: Path, resume: bool = False) -> Trained:
    """Train, or go on training, into a folder; under `torchrun` every rank calls this.

    Args:
        settings: of the training.
        seed: of everything that is random in it.
        output: for checkpoints, metrics, record and models; all ranks must see the same one.
        resume: go on from the last complete checkpoint in `output`; from nothing where there is none.

    Raises:
        UserError: the folder holds a finished run, or something else without `resume`; a checkpoint of other settings;
            data or weights that are missing or do not fit; a loss that is not finite; no CUDA where it is asked for.
    """
    device = choose_device(settings.device)
    with threads(settings.threads), ranks(device) as group:
        group.lead(lambda: require_new(output, resume, (DATA, POINTS)))
        folder = group.from_lead(lambda: find_data(settings, output))
        data = ReferringSet(folder, settings.data.set, settings.data.split)
        samples = data.samples("train")
        val = data.samples(settings.validation.part)[: settings.validation.limit]
        prints = group.tell({name: fingerprint(path) for name, path in data.files.items()} if group.leads else {})
        options: dict[str, Any] = {"output": None, "data": {}}
        if group.leads:
            options = {"output": output, "data": prints, "wandb_project": settings.wandb}
        with run("dit_sam", "train", config=settings.model_dump(mode="json"), seed=seed, **options) as current:
            training = Training(settings, seed, output, samples, val, prints, group, current)
            resumed = training.resume() if resume else 0
            training.run()
            current.metrics.update(training.metrics())
            if group.leads:
                training.save_models(current)
    return Trained(output / "model", current.metrics, resumed)


def find_data(settings: TrainSettings, output: Path) -> Path:
    """The folder of the data; the mini world is drawn where it is not yet.

    Raises:
        UserError: no folder named, or none there.
    """
    named = settings.data.folder
    if named is not None:
        if not Path(named).is_dir():
            raise UserError("no such folder", named, "the data set")
        return Path(named)
    if settings.data.set != "mini":
        raise UserError("no data", "data.folder", "--data FOLDER, or the config mini")
    if not (output / DATA).exists():
        write_mini(output / DATA, settings.data.mini)
    return output / DATA


class Training:
    """A training in progress: model, optimiser, average, and how far it is.

    Args:
        settings, seed, output: as for `run_train`.
        samples, val: of the data. fingerprints: name -> SHA-256 of its files.
        group: this process among its peers. current: where metrics are logged.
    """

    def __init__(
        self,
        settings: TrainSettings,
        seed: int,
        output: Path,
        samples: list[Sample],
        val: list[Sample],
        fingerprints: Mapping[str, str],
        group: Ranks,
        current: Run,
    ) -> None:
        self.settings, self.seed, self.output = settings, seed, output
        self.val, self.group, self.current = val, group, current
        self.plan = plan(settings, len(samples))
        if settings.batch < group.world:
            raise UserError(f"batch {settings.batch} for {group.world} ranks", "batch", "one sentence a rank or more")
        self.model = start_model(settings, seed, output, group).to(group.device)
        freeze(self.model, settings.freeze, settings.freeze_text)
        self.identity = identity(settings.model_dump(mode="json"), seed, group.world, fingerprints, FREE)
        trained = [weight for weight in self.model.parameters() if weight.requires_grad]
        rule: dict[str, Any] = {"betas": settings.betas, "eps": settings.epsilon, "fused": True}
        self.optimizer = torch.optim.Adam(trained, lr=settings.rate, **rule)
        self.average = None if settings.average is None else Average(self.model, settings.average)
        self.scaler = torch.amp.GradScaler(group.device.type, enabled=settings.precision == "fp16")
        self.batches = Batches(samples, self.model, settings, seed, self.plan.per_epoch)
        self.progress = Progress()
        self.best: dict[str, Tensor] = {}

    def run(self) -> None:
        """All epochs, from where the training stands."""
        per_epoch = self.plan.per_epoch
        for epoch in range(self.progress.step // per_epoch, self.settings.epochs):
            first = self.progress.step - epoch * per_epoch
            batches: Iterator[Batch] = self.batches.epoch(epoch, first, self.group)
            if self.group.leads:
                batches = track(batches, f"epoch {epoch + 1} of {self.settings.epochs}", per_epoch - first)
            self.model.train()
            for batch in batches:
                self._step(batch, epoch)
                left = (epoch + 1) * per_epoch - self.progress.step
                if self.progress.step % self.settings.checkpoint_steps == 0 and left:
                    self._save()
            self._validate()
            self._save()

    def _step(self, batch: Batch, epoch: int) -> None:
        step, its = self.progress.step, self.settings
        self.optimizer.param_groups[0]["lr"] = rate = self.plan.rate(step)
        torch.manual_seed(
            int(sample_rng(self.seed, _DROPOUT, step * self.group.world + self.group.rank).integers(2**63))
        )
        device, precision = self.group.device, _PRECISIONS.get(its.precision)
        images, masks, ids, seen = (part.to(device, non_blocking=True) for part in batch)
        with torch.autocast(device.type, precision, enabled=precision is not None):
            output = self.model(images, ids, seen)
        # This rank's part of the mean over the whole batch.
        loss = mask_loss(output.logits, masks) * (len(images) / its.batch)
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()
        total = sum_gradients(self.model, loss.detach(), self.group).item()
        if not torch.isfinite(torch.tensor(total)):
            what = f"loss {total} in step {step} (epoch {epoch})"
            raise UserError(
                what, self.output, "a lower rate or more warm-up; --resume goes on from the last checkpoint"
            )
        self.scaler.unscale_(self.optimizer)
        if its.clip is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), its.clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.average is not None:
            self.average.update()
        self.progress.step += 1
        if self.progress.step % its.log_steps == 0:
            self.current.log(self.progress.step, epoch=epoch, loss=total, learning_rate=rate)

    def _validate(self) -> None:
        """Score val with the averaged weights; keep them if they are the best, or as good as the best, so far."""
        raw = self._take_average()
        batch = self.settings.validation.batch or self.settings.batch
        scores = validate(self.model, self.val, batch, self.group)
        self.progress.last = scores
        if scores["mIoU"] >= self.progress.best:
            self.progress.best, self.progress.best_step = scores["mIoU"], self.progress.step
            self.best = {name: value.detach().cpu().clone() for name, value in self.model.state_dict().items()}
        self._give_back(raw)
        self.current.log(self.progress.step, **{f"val_{name}": value for name, value in scores.items()})
        if self.group.leads:
            best = f"the best is {self.progress.best:.2f} after step {self.progress.best_step}"
            logger.info(
                "step %d: mIoU of %d sentences %.2f, %s", self.progress.step, len(self.val), scores["mIoU"], best
            )

    def _take_average(self) -> dict[str, Tensor] | None:
        """Put the averaged weights into the model; returns the raw ones."""
        if self.average is None:
            return None
        raw = {name: value.clone() for name, value in self.model.state_dict().items()}
        self.model.load_state_dict(self.average.shadow)
        return raw

    def _give_back(self, raw: dict[str, Tensor] | None) -> None:
        if raw is not None:
            self.model.load_state_dict(raw)

    def _save(self) -> None:
        """Write a checkpoint; the other ranks, whose weights are the same, wait for it."""
        state = {
            "model": self.model.state_dict(),
            "average": {} if self.average is None else self.average.shadow,
            "average_steps": 0 if self.average is None else self.average.steps,
            "best": self.best,
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "progress": asdict(self.progress),
            "identity": self.identity,
        }
        if self.group.leads:
            write_checkpoint(self.output, self.progress.step, lambda folder: torch.save(state, folder / STATE))
        self.group.meet()

    def resume(self) -> int:
        """Take up the last complete checkpoint; returns its step, 0 where there is none.

        Raises:
            UserError: it was made with other settings, seed, ranks or data (names them).
        """
        checkpoint = last_complete_checkpoint(self.output)
        if checkpoint is None:
            return 0
        state = torch.load(checkpoint / STATE, map_location=self.group.device, weights_only=True)
        require_same(self.identity, state["identity"], checkpoint)
        self.model.load_state_dict(state["model"])
        if self.average is not None:
            self.average.load(state["average"], state["average_steps"])
        self.best = {name: value.cpu() for name, value in state["best"].items()}
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        self.progress = Progress(**state["progress"])
        if self.group.leads:
            logger.info("going on after step %d of %d", self.progress.step, self.plan.steps)
        return self.progress.step

    def metrics(self) -> dict[str, Any]:
        """For the run's record: the best mIoU of val and its step, and all scores after the last epoch."""
        last = {f"val_{name}": value for name, value in self.progress.last.items()}
        return {"best_mIoU": self.progress.best, "best_step": self.progress.best_step, "steps": self.plan.steps, **last}

    def save_models(self, current: Run) -> None:
        """The best and the last weights, each as `DITSam.from_pretrained` reads them."""
        trained = f"{self.settings.data.set}, {self.plan.samples} objects, {self.plan.steps} steps"
        self._take_average()
        require_finite(self.model.state_dict(), "the trained weights")
        self.model.save_pretrained(current.file("last"), trained=trained, run=current.id)
        self.model.load_state_dict(self.best)
        self.model.save_pretrained(current.file("model"), trained=trained, run=current.id)


def start_model(settings: TrainSettings, seed: int, output: Path, group: Ranks) -> DITSam:
    """The model before its first step.

    Raises:
        UserError: no weights named, or some that cannot be read or do not fit.
    """
    config, start = model_config(settings.model), settings.start
    if start.model is not None:
        return extended(start.model, config, seed=seed)
    if settings.model.size != "mini":
        if start.sam is None or start.bert is None:
            raise UserError("no weights to start from", "start", "start.sam and start.bert, or start.model")
        return from_sam(start.sam, start.bert, config, seed=seed)
    points = output / POINTS
    if not points.exists():

        def pre_train() -> None:
            train_points(settings.data.mini, seed, start.point_steps).save_pretrained(points, trained="points")

        group.lead(pre_train)
    return extended(points, config, seed=seed)
