"""`dtnet train`: cross entropy, then self-critical training, by the paper's recipe.

    from dtnet.train import run_train
    run_train(load_config(TrainSettings, "mini"), seed=0, output=Path("runs/mini"))

After every epoch the captions of val are scored (CIDEr-D, beam search); the best weights are kept, and self-critical
training starts from them. A killed training goes on from its last complete checkpoint with the same bits. The folder
holds `model/` in the end, which `dtnet caption` and `dtnet eval` take.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dtnet.data.caption_data import CaptionData, find_folder, open_data
from dtnet.model import DTNet
from dtnet.training.data_parallel import sum_gradients, summed
from dtnet.training.plan import StagePlan, model_config, plan
from dtnet.training.settings import TrainSettings
from dtnet.training.stages import CrossEntropy, SelfCritical, Stage, stream
from dtnet.training.validation import Validation
from tenfold import UserError
from tenfold.runs import Run, checkpoint_step, last_complete_checkpoint, run, track, write_checkpoint
from tenfold.runs.context import require_unfinished
from tenfold.runs.finite import require_finite_loss
from tenfold.runs.ranks import Ranks, choose_device
from tenfold.runs.ranks import ranks as joined
from tenfold.runs.resumption import identity, require_same, threads
from tenfold.weights import require_finite

logger = logging.getLogger(__name__)

STATE = "state.pt"
# What may differ between a training and its continuation: it moves no bit of the weights.
FREE = ("device", "checkpoint_steps", "log_steps", "wandb", "data.folder", "data.workers", "data.in_memory")
_STAGES: dict[str, Any] = {"xe": CrossEntropy, "scst": SelfCritical}


@dataclass
class Progress:
    """How far a training has come.

    Attributes:
        step: finished optimiser steps, over both stages.
        best: the best CIDEr-D of val so far, times 100. best_step: where that was.
        by_stage: stage -> its best CIDEr-D, and that after its last epoch.
    """

    step: int = 0
    best: float = 0.0
    best_step: int = 0
    by_stage: dict[str, dict[str, float]] = field(default_factory=dict)


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
        output: for checkpoints, metrics, record and model; all ranks must see the same one.
        resume: go on from the last complete checkpoint in `output`; from nothing where there is none.

    Raises:
        UserError: the folder holds a finished run, or checkpoints without `resume`; a checkpoint of other settings;
            data that are missing or do not fit; no CUDA where it is asked for.
    """
    require_unfinished(output)
    if not resume and last_complete_checkpoint(output) is not None:
        raise UserError("holds checkpoints of an earlier run", output, "--resume, or a new folder")
    device = choose_device(settings.device)
    if settings.sync_bn and device.type != "cuda":
        raise UserError("sync_bn on the CPU", "--set sync_bn=true", "CUDA, or the statistics of each rank")
    with threads(settings.threads), joined(device) as ranks:
        folder = Path(ranks.tell(str(find_folder(settings.data, output, draw=ranks.leads))))
        data = open_data(settings.data, folder, settings.model.grid)
        prints = ranks.tell(data.fingerprints() if ranks.leads else {})
        options: dict[str, Any] = {"output": None, "data": {}}
        if ranks.leads:
            options = {"output": output, "data": prints, "wandb_project": settings.wandb}
        with run("dtnet", "train", config=settings.model_dump(mode="json"), seed=seed, **options) as current:
            training = Training(settings, seed, output, data, prints, ranks, current)
            resumed = training.resume() if resume else 0
            training.run()
            current.metrics.update(training.metrics())
            if ranks.leads:
                training.save_model(current.file("model"))
    return Trained(output / "model", current.metrics, resumed)


class Training:
    """A training in progress: the model, its stages, and how far it is.

    Args:
        settings, seed, output: as for `run_train`.
        data: the opened data set. fingerprints: name -> SHA-256 of its files.
        ranks: this process among its peers.
        current: where metrics are logged.
    """

    def __init__(
        self,
        settings: TrainSettings,
        seed: int,
        output: Path,
        data: CaptionData,
        fingerprints: Mapping[str, str],
        ranks: Ranks,
        current: Run,
    ) -> None:
        self.settings, self.seed, self.output, self.data = settings, seed, output, data
        self.ranks, self.current = ranks, current
        self.identity = _identity(settings, seed, ranks.world, fingerprints)
        self.model = build_model(settings, data, seed).to(ranks.device)
        if settings.sync_bn:
            self.model = nn.SyncBatchNorm.convert_sync_batchnorm(self.model)
        captions = data.captions
        self.plans = plan(settings, len(captions.pairs("train")), len(captions.images("train")))
        self.validation = Validation(settings.validation, data, ranks)
        self.progress = Progress()
        self.best: dict[str, Tensor] = {}
        self._optimizer_state: dict[str, Any] | None = None

    def run(self) -> None:
        """All stages, from where the training stands."""
        for stage in self.plans:
            if self.progress.step < stage.end:
                self._run_stage(_STAGES[stage.name](stage, self.settings, self.data, self.seed, self.ranks))

    def _run_stage(self, stage: Stage[Any]) -> None:
        steps, done = stage.plan.steps, self.progress.step - stage.plan.first
        if done == 0 and self.best and self.progress.best_step != self.progress.step:
            # Self-critical training starts from the best weights, not from the last ones.
            self.model.load_state_dict(self.best)
        optimizer = stage.optimizer(self.model)
        if done:
            assert self._optimizer_state is not None
            optimizer.load_state_dict(self._optimizer_state)
        for epoch in range(done // steps, stage.plan.settings.epochs):
            first = done - epoch * steps if epoch == done // steps else 0
            batches = stage.batches(epoch, first)
            if self.ranks.leads:
                batches = track(batches, f"{stage.plan.name} epoch {epoch}", steps - first)
            for number, batch in enumerate(batches, start=first):
                self._step(stage, optimizer, batch, epoch, number)
                if self.progress.step % self.settings.checkpoint_steps == 0 and number + 1 < steps:
                    self._save(optimizer)
            self._validate(stage.plan)
            self._save(optimizer)

    def _step(self, stage: Stage[Any], optimizer: torch.optim.Adam, batch: Any, epoch: int, number: int) -> None:
        for group in optimizer.param_groups:
            group["lr"] = stage.plan.rate(epoch, number)
        dropout = stream(self.seed, "dropout", stage.plan.name, epoch, number, self.ranks.rank)
        torch.manual_seed(int(dropout.integers(2**63)))
        self._train_mode()
        optimizer.zero_grad(set_to_none=True)
        features = stage.features(batch, epoch, number)
        with torch.autocast(self.ranks.device.type, torch.bfloat16, enabled=self.settings.precision == "bf16"):
            loss, values = stage.loss(self.model, batch, features)
        # Of all ranks, so that all of them end at the same step.
        require_finite_loss(summed(self.ranks, loss.detach()), stage.plan.name, self.progress.step + 1)
        loss.backward()
        sum_gradients(self.ranks, self.model)
        optimizer.step()
        self.progress.step += 1
        if self.progress.step % self.settings.log_steps == 0:
            logged = {"loss": loss.detach(), **values}
            totals = {name: summed(self.ranks, value).item() for name, value in logged.items()}
            used = optimizer.param_groups[0]["lr"]
            self.current.log(self.progress.step, stage=stage.plan.name, epoch=epoch, learning_rate=used, **totals)

    def _train_mode(self) -> None:
        self.model.train()
        if self.settings.freeze_bn:
            for module in self.model.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()

    def _validate(self, stage: StagePlan) -> None:
        """Score val; keep these weights if they are the best (or as good as the best) so far."""
        score = self.validation.cider(self.model.eval())
        known = self.progress.by_stage.setdefault(stage.name, {"best": 0.0, "last": 0.0})
        known["best"], known["last"] = max(known["best"], score), score
        if score >= self.progress.best:
            self.progress.best, self.progress.best_step = score, self.progress.step
            self.best = {name: value.detach().cpu().clone() for name, value in self.model.state_dict().items()}
        self.current.log(self.progress.step, stage=stage.name, val_cider=score, best_cider=self.progress.best)
        if self.ranks.leads:
            best = f"the best is {self.progress.best:.1f} after step {self.progress.best_step}"
            logger.info("%s, step %d: CIDEr-D of val %.1f, %s", stage.name, self.progress.step, score, best)

    def _save(self, optimizer: torch.optim.Adam) -> None:
        """Write a checkpoint; the other ranks, whose weights are the same, wait for it."""
        state = {
            "model": self.model.state_dict(),
            "best": self.best,
            "optimizer": optimizer.state_dict(),
            "progress": asdict(self.progress),
            "identity": self.identity,
        }
        if self.ranks.leads:
            write_checkpoint(self.output, self.progress.step, lambda folder: torch.save(state, folder / STATE))
        self.ranks.meet()

    def resume(self) -> int:
        """Take up the last complete checkpoint; returns its step, 0 where there is none.

        Raises:
            UserError: it was made with other settings, seed, ranks or data (names them).
        """
        checkpoint = last_complete_checkpoint(self.output)
        if checkpoint is None:
            return 0
        state = torch.load(checkpoint / STATE, map_location=self.ranks.device, weights_only=True)
        require_same(self.identity, state["identity"], checkpoint)
        self.model.load_state_dict(state["model"])
        self.best = {name: value.cpu() for name, value in state["best"].items()}
        self._optimizer_state = state["optimizer"]
        self.progress = Progress(**state["progress"])
        if self.ranks.leads:
            logger.info("going on after step %d of %d", self.progress.step, self.plans[-1].end)
        assert self.progress.step == checkpoint_step(checkpoint)
        return self.progress.step

    def metrics(self) -> dict[str, Any]:
        """For the run's record: CIDEr-D of val times 100, the best and after the last epoch of each stage."""
        return {
            "val_cider": self.progress.best,
            "best_step": self.progress.best_step,
            "steps": self.progress.step,
            **{
                f"{stage}_{name}": value for stage, its in self.progress.by_stage.items() for name, value in its.items()
            },
        }

    def save_model(self, folder: Path) -> None:
        """The best weights as `DTNet.from_pretrained` reads them, with vocabulary and feature settings."""
        best = build_model(self.settings, self.data, self.seed)
        require_finite(self.best, "the trained weights")
        best.load_state_dict(self.best)
        best.save_pretrained(folder)


def build_model(settings: TrainSettings, data: CaptionData, seed: int) -> DTNet:
    """A new model drawn by the seed, or the one that the training starts from; on the CPU.

    Raises:
        UserError: the data's features have another width; the model to start from cannot be read, or has another
            vocabulary or other dimensions.
    """
    if settings.model.d_in != data.features.d_in:
        raise UserError(f"features are {data.features.d_in} wide", data.features.path, f"d_in={settings.model.d_in}")
    config = model_config(settings.model, len(data.vocabulary))
    if settings.start is None:
        model = DTNet(config, seed=seed)
    else:
        model = DTNet.from_pretrained(settings.start).train()
        if model.config != config or model.vocabulary != data.vocabulary:
            raise UserError("a model of other dimensions or words", settings.start, "the config's and the data's")
    model.vocabulary = data.vocabulary
    model.feature_settings = settings.data.extractor
    return model


def _identity(settings: TrainSettings, seed: int, world: int, fingerprints: Mapping[str, str]) -> dict[str, Any]:
    """What a checkpoint must agree in, to be gone on from: name -> value."""
    data = {f"set {name}": value for name, value in fingerprints.items()}
    return identity(settings.model_dump(mode="json"), seed, world, data, FREE)
