"""`flashsloth train`: captions for SAP and projector, then instructions for all but the vision tower.

    from flashsloth.training.run import run_train
    run_train(load_config(TrainSettings, "mini"), seed=0, output=Path("runs/mini"))

A killed training goes on from its last complete checkpoint with the same bits. In the end the folder holds
`stage1.safetensors`, what stage 1 trained, and `model/`, which `flashsloth.load` opens.
"""

from __future__ import annotations

import logging
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from flashsloth.checkpoints import release
from flashsloth.configuration import FlashSlothConfig, write_card
from flashsloth.data.instruct import InstructData
from flashsloth.data.mini import write_mini_data
from flashsloth.training.plan import StagePlan, is_trained, plan, zero_of
from flashsloth.training.settings import TrainSettings
from flashsloth.training.stages import arguments, train_stage
from flashsloth.training.start import build, make_processor, model_config, resolved, starting_weights
from tenfold.cli.stages import StageName
from tenfold.runs import (
    Run,
    atomic_write_bytes,
    last_complete_checkpoint,
    run,
)
from tenfold.runs.context import require_unfinished
from tenfold.runs.launch import join
from tenfold.runs.ranks import Ranks, choose_device
from tenfold.runs.resumption import identity, keep_identity, require_new, threads
from tenfold.runs.stages import reset
from tenfold.runs.two_stages import handed_to, read_fingerprints, require_data, stage_metrics, stands_at
from tenfold.weights import StoredTensor, require_finite, write_weights

logger = logging.getLogger(__name__)

STAGE_FOLDER, STAGE1_FILE, DATA = "checkpoint-{}", "stage1.safetensors", "data"
# What may differ between a training and its continuation: it moves no bit of the weights.
FREE = (
    "device", "checkpoint_steps", "keep", "log_steps", "wandb", "data.folder", "data.workers",
    "model.language_model", "model.siglip", "model.stage1", "model.start",
)  # fmt: skip
# Fields of the model's settings that may name a file or folder.
SOURCES = ("language_model", "siglip", "stage1", "start")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Trained:
    """A finished training.

    Attributes:
        stage1: what stage 1 trained; None where it did not run. model: the trained model; None without stage 2.
        metrics: as in the run's record.
        resumed: optimiser steps that were done before this call, over both stages; 0: it began from nothing.
    """

    stage1: Path | None
    model: Path | None
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
        UserError: the folder holds a finished run, or anything without `resume`; a checkpoint of other settings; data
            or weights that are missing, broken or do not fit; no CUDA where it is asked for; DeepSpeed without what it
            needs; a loss that is not finite.
    """
    require_unfinished(output)
    device = choose_device(settings.device)
    deepspeed = any(zero_of(settings.stage(name)) for name in settings.running)
    with threads(settings.threads), join(device, "flashsloth", deepspeed) as ranks:
        ranks.lead(lambda: require_new(output, resume, own=(DATA,)))
        named = settings
        settings = ranks.from_lead(lambda: resolved(named))
        folder = Path(ranks.from_lead(lambda: str(_find_data(settings, output))))
        prints = ranks.from_lead(lambda: read_fingerprints(settings, folder, settings.model, SOURCES))
        options: dict[str, Any] = {"output": None, "data": {}}
        if ranks.leads:
            options = {"output": output, "data": prints, "wandb_project": settings.wandb}
        config = named.model_dump(mode="json")
        with run("flashsloth", "train", config=config, seed=seed, **options) as current:
            training = Training(settings, seed, output, folder, device, ranks, current)
            ranks.lead(lambda: keep_identity(output, identity(config, seed, ranks.world, prints, FREE)))
            resumed = training.done()
            training.run()
            if ranks.leads:
                current.metrics.update(training.metrics())
    stage1 = output / STAGE1_FILE if "pretrain" in settings.running else None
    return Trained(stage1, output / "model" if "finetune" in settings.running else None, current.metrics, resumed)


class Training:
    """A training in progress: its stages, and how far it is.

    Args:
        settings, seed, output: as for `run_train`.
        folder: what the stages' data are relative to.
        device, ranks: what this process computes on, and its peers.
        current: where steps are logged and results go.
    """

    def __init__(
        self,
        settings: TrainSettings,
        seed: int,
        output: Path,
        folder: Path,
        device: torch.device,
        ranks: Ranks,
        current: Run,
    ) -> None:
        self.settings, self.seed, self.output, self.folder = settings, seed, output, folder
        self.device, self.ranks, self.current = device, ranks, current
        self.config = model_config(settings)
        self.processor = make_processor(settings, self.config)
        # All is opened now, so that what is wrong with the second stage does not show after hours of the first.
        self.data = {name: self._data(name) for name in settings.running}
        self.plans = plan(settings, {name: len(data) for name, data in self.data.items()}, ranks.world)
        ranks.lead(self._check_weights)

    def done(self) -> int:
        """Optimiser steps that checkpoints hold, over both stages."""
        places = ((stage, self._checkpoints(stage.name)) for stage in self.plans)
        return max((stands_at(stage, place, self._handed) for stage, place in places), default=0)

    def run(self) -> None:
        """All stages, from where the training stands."""
        if self.ranks.leads and self.done():
            logger.info("going on after step %d of %d", self.done(), self.plans[-1].end)
        for stage in self.plans:
            if stage.name == "finetune" or not self._handed.exists():
                self._run_stage(stage)
        if self.ranks.leads and "pretrain" in self.settings.running:
            atomic_write_bytes(self.current.file(STAGE1_FILE), self._handed.read_bytes())

    def metrics(self) -> dict[str, Any]:
        """For the run's record."""
        return stage_metrics(self.plans, self.output, self.ranks.world)

    @property
    def _handed(self) -> Path:
        """What stage 1 trained, for stage 2; there when stage 1 is done."""
        return self._checkpoints("pretrain") / STAGE1_FILE

    def _checkpoints(self, name: StageName) -> Path:
        return self.output / STAGE_FOLDER.format(name)

    def _data(self, name: StageName) -> InstructData:
        stage = self.settings.stage(name)
        return InstructData(
            self.folder / stage.data,
            self.folder / stage.images,
            self.processor,
            conversation=stage.conversation,
            max_length=stage.max_length,
            skip=stage.skip,
        )

    def _check_weights(self) -> None:
        first, given = self.settings.running[0], self.settings.model.stage1
        with ExitStack() as files:
            starting_weights(self.settings, self.config, first, self.seed, Path(given) if given else None, files)

    def _run_stage(self, stage: StagePlan) -> None:
        zero = zero_of(stage.settings)
        try:
            with ExitStack() as files:
                # What is loaded comes before the arguments: with these alive, every model is made in pieces (ZeRO-3).
                weights = None
                if zero < 3 or self.ranks.leads:
                    given = self.settings.model.stage1
                    handed = handed_to(stage.name, self.settings, self._handed, given)
                    weights = starting_weights(self.settings, self.config, stage.name, self.seed, handed, files)
                options = arguments(self.settings, stage, self._checkpoints(stage.name), self.seed, self.device)
                dtype = DTYPES[self.settings.precision] if zero else torch.float32
                config = FlashSlothConfig.from_dict(self.config.to_dict())
                model = build(config, weights, dtype, zero == 3)
            checkpoint = last_complete_checkpoint(self._checkpoints(stage.name))
            trained = train_stage(model, options, stage, self.settings, self.data[stage.name], self.current, checkpoint)
            if trained is not None:
                self._keep(stage, trained)
            self.ranks.meet()
        finally:
            reset()

    def _keep(self, stage: StagePlan, trained: dict[str, Tensor]) -> None:
        """Write what a stage made: the first rank does."""
        require_finite(trained, f"{stage.name}, step {stage.end}")
        if stage.name == "pretrain":
            ours = {
                key: value.float().cpu().contiguous()
                for key, value in trained.items()
                if is_trained(key, stage.name, self.settings)
            }
            atomic_write_bytes(self._handed, save(ours, metadata={"format": "pt"}))
            return
        config = FlashSlothConfig.from_dict(self.config.to_dict())
        config.dtype, config.architectures = DTYPES[self.settings.precision], ["FlashSlothForConditionalGeneration"]
        folder = self.current.file("model")
        folder.mkdir(exist_ok=True)
        write_weights(folder, {key: StoredTensor.of(value.to("cpu", config.dtype)) for key, value in trained.items()})
        config.save_pretrained(folder)
        release.generation_config(config).save_pretrained(folder)
        self.processor.save_pretrained(folder)
        write_card(folder, config, run=self.current.id)


def _find_data(settings: TrainSettings, output: Path) -> Path:
    """The data folder: the named one, or the miniature's, which is drawn where it is not there yet."""
    require_data(settings, "flashsloth")
    if settings.data.folder is not None:
        return Path(settings.data.folder)
    assert settings.data.mini is not None
    folder = output / DATA
    if not folder.exists():
        write_mini_data(folder, seed=settings.data.mini.seed, train=settings.data.mini.train)
    return folder
