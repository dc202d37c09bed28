"""`llava-hr train`: low-resolution pre-training, then high-resolution instruction tuning, by the paper's recipe.

    from llava_hr.train import run_train
    run_train(load_config(TrainSettings, "mini"), seed=0, output=Path("runs/mini"))

A killed training goes on from its last complete checkpoint with the same bits. In the end the folder holds
`mm_projector.bin`, what stage 1 trained (in the official format), and `model/`, which `llava_hr.load` opens.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn

from llava_hr.checkpoints import projector as stage1
from llava_hr.checkpoints import release
from llava_hr.configuration import LlavaHrConfig
from llava_hr.miniature import model as mini
from llava_hr.training.plan import StagePlan, is_trained, plan, zero_stage
from llava_hr.training.settings import TrainSettings
from llava_hr.training.stages import ModelFactory, arguments, data_of, reset, train_stage
from llava_hr.training.start import Start, build, handed_on, make_processor, open_model, resolved, starting_weights
from tenfold import UserError
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
from tenfold.runs.two_stages import handed_to, read_fingerprints, require_data, stage_metrics, stands_at
from tenfold.weights import StoredTensor, require_finite, write_weights

logger = logging.getLogger(__name__)

# Checkpoints of a stage, and what they must agree in; by their names no part of a run's result.
STAGE_FOLDER = "checkpoint-{}"
# What may differ between a training and its continuation: it moves no bit of the weights.
FREE = ("device", "checkpoint_steps", "keep", "log_steps", "wandb", "data.folder", "data.workers")
DATA = "data"
# Fields of the model's settings that may name a file or folder.
SOURCES = ("language_model", "clip", "convnext", "projector", "start")


@dataclass(frozen=True)
class Trained:
    """A finished training.

    Attributes:
        projector: what stage 1 trained; None where it did not run. model: the trained model; None without stage 2.
        metrics: as in the run's record.
        resumed: optimiser steps that were done before this call, over both stages; 0: it began from nothing.
    """

    projector: Path | None
    model: Path | None
    metrics: dict[str, Any]
    resumed: int


def run_train(
    settings: TrainSettings, seed: int, output: Path, resume: bool = False, factory: ModelFactory | None = None
) -> Trained:
    """Train, or go on training, into a folder; under `torchrun` every rank calls this.

    Args:
        settings: of the training.
        seed: of everything that is random in it.
        output: for checkpoints, metrics, record and model; all ranks must see the same one.
        resume: go on from the last complete checkpoint in `output`; from nothing where there is none.
        factory: makes the model that each stage starts from, instead of `settings.model`'s. Stage 2's gets what stage
            1 trained: projector and final align, by their names.

    Raises:
        UserError: the folder holds a finished run, or anything without `resume`; a checkpoint of other settings; data
            or weights that are missing, broken or do not fit; no CUDA where it is asked for; DeepSpeed without what it
            needs.
    """
    require_unfinished(output)
    device = choose_device(settings.device)
    deepspeed = any(zero_stage(settings.stage(name)) for name in settings.running)
    with threads(settings.threads), join(device, "llava-hr", deepspeed) as ranks, _readable_workers():
        ranks.lead(lambda: require_new(output, resume, own=(DATA,)))
        ranks.lead(lambda: require_data(settings, "llava-hr"))
        named = settings
        if factory is None:
            settings = ranks.from_lead(lambda: resolved(named))
        folder = Path(ranks.from_lead(lambda: str(_find_data(settings, output))))
        prints = ranks.from_lead(lambda: read_fingerprints(settings, folder, settings.model, SOURCES))
        options: dict[str, Any] = {"output": None, "data": {}}
        if ranks.leads:
            options = {"output": output, "data": prints, "wandb_project": settings.wandb}
        with run("llava_hr", "train", config=named.model_dump(mode="json"), seed=seed, **options) as current:
            with ExitStack() as files:
                training = Training(settings, seed, output, folder, device, ranks, current, factory, files)
                ranks.lead(lambda: keep_identity(output, _identity(named, seed, ranks.world, prints)))
                resumed = training.done()
                training.run()
            if ranks.leads:
                current.metrics.update(training.metrics())
    trained = output / stage1.OFFICIAL_FILE if "pretrain" in settings.running else None
    model = output / "model" if "finetune" in settings.running else None
    return Trained(trained, model, current.metrics, resumed)


class Training:
    """A training in progress: its stages, and how far it is.

    Args:
        settings, seed, output, factory: as for `run_train`.
        folder: what the stages' data are relative to.
        device, ranks: what this process computes on, and its peers.
        current: where steps are logged and results go.
        files: what stays open until its stage has read it.
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
        factory: ModelFactory | None,
        files: ExitStack,
    ) -> None:
        self.settings, self.seed, self.output, self.folder = settings, seed, output, folder
        self.device, self.ranks, self.current, self.factory = device, ranks, current, factory
        # All is opened now, so that what is wrong with the second stage does not show after hours of the first.
        opened = {name: self._open(name, files.enter_context(ExitStack())) for name in settings.running}
        self.plans = plan(settings, {name: len(start.data) for name, start in opened.items()}, ranks.world)
        # The first rank before the others: what is wrong is said once.
        weights = ranks.lead(lambda: self._weights(opened)) if factory is None else {}
        if weights is None:
            weights = self._weights(opened)
        self.starts = {name: replace(start, weights=weights.get(name)) for name, start in opened.items()}

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
            trained = load_file(self._handed)
            if all(name in trained for name in stage1.NAMES):  # not so for every factory's model
                stage1.write(self.current.file(stage1.OFFICIAL_FILE), trained)

    def metrics(self) -> dict[str, Any]:
        """For the run's record."""
        return stage_metrics(self.plans, self.output, self.ranks.world)

    @property
    def _handed(self) -> Path:
        """What stage 1 trained, for stage 2; there when stage 1 is done."""
        return self._checkpoints("pretrain") / stage1.FILE

    def _checkpoints(self, name: StageName) -> Path:
        return self.output / STAGE_FOLDER.format(name)

    def _open(self, name: StageName, files: ExitStack) -> Start:
        config, whole = open_model(self.settings, name, files)
        data = data_of(self.settings.stage(name), self.folder, make_processor(self.settings, config))
        return Start(config, data, whole, files)

    def _weights(self, opened: Mapping[StageName, Start]) -> dict[StageName, Mapping[str, StoredTensor]]:
        """For every stage its weights; of ZeRO-3's stages on the first rank alone."""
        given = self.settings.model.projector
        earlier = Path(given) if given and "pretrain" not in self.settings.running else None
        found = {}
        for name, start in opened.items():
            if self.ranks.leads or zero_stage(self.settings.stage(name)) < 3:
                found[name] = starting_weights(self.settings, start, self.seed, earlier)
        return found

    def _run_stage(self, stage: StagePlan) -> None:
        zero = zero_stage(stage.settings)
        start = self.starts.pop(stage.name)
        config, data, weights = start.config, start.data, start.weights
        try:
            with start.files:
                made = self._made(stage.name) if self.factory is not None else None
                if made is not None:
                    config = made.config
                    data = data_of(stage.settings, self.folder, make_processor(self.settings, config))
                # What is loaded comes before the arguments: with these alive, every model is made in pieces (ZeRO-3).
                elif weights is not None and stage.name == "finetune" and "pretrain" in self.settings.running:
                    weights = {**weights, **handed_on(self._handed)}
                options = arguments(self.settings, stage, self._checkpoints(stage.name), self.seed, self.device)
                half = self.settings.precision == "bf16" and zero
                dtype = torch.bfloat16 if half else torch.float32
                saved = LlavaHrConfig.from_dict(config.to_dict())
                model = made if made is not None else build(config, weights, dtype, zero == 3)
            checkpoint = last_complete_checkpoint(self._checkpoints(stage.name))
            trained = train_stage(model, options, stage, self.settings, data, self.current, checkpoint)
            if trained is not None:
                self._keep(stage.name, trained, saved, data.processor)
            self.ranks.meet()
        finally:
            reset()

    def _made(self, name: StageName) -> nn.Module:
        assert self.factory is not None
        model = self.factory(name, self.seed)
        start = handed_to(name, self.settings, self._handed, self.settings.model.projector)
        if start is not None:
            trained = load_file(start)
            with torch.no_grad():
                for key, value in model.named_parameters():
                    if is_trained(key, "pretrain"):
                        value.copy_(trained[key])
        return model

    def _keep(self, name: StageName, trained: Mapping[str, Tensor], config: LlavaHrConfig, processor: Any) -> None:
        """Write what a stage made: the first rank does."""
        require_finite(trained, f"the trained weights of {name}")
        if name == "pretrain":
            ours = {key: value.float().cpu().contiguous() for key, value in trained.items() if is_trained(key, name)}
            atomic_write_bytes(self._handed, save(ours, metadata={"format": "pt"}))
            return
        dtype = torch.bfloat16 if self.settings.precision == "bf16" else torch.float32
        config.dtype, config.architectures = dtype, ["LlavaHrForConditionalGeneration"]
        folder = self.current.file("model")
        folder.mkdir(exist_ok=True)
        write_weights(folder, {key: StoredTensor.of(value.to("cpu", dtype)) for key, value in trained.items()})
        config.save_pretrained(folder)
        release.generation_config(config).save_pretrained(folder)
        processor.save_pretrained(folder)


def _identity(settings: TrainSettings, seed: int, world: int, fingerprints: Mapping[str, str]) -> dict[str, Any]:
    free = (*FREE, *(f"model.{part.replace(' ', '_')}" for part in fingerprints))
    return identity(settings.model_dump(mode="json"), seed, world, fingerprints, free)


def _find_data(settings: TrainSettings, output: Path) -> Path:
    """The data folder: the named one, or the miniature's, which is drawn where it is not there yet."""
    if settings.data.folder is not None:
        return Path(settings.data.folder)
    assert settings.data.mini is not None
    folder = output / DATA
    if not folder.exists():
        mini.write_mini_data(folder, seed=settings.data.mini.seed, train=settings.data.mini.train)
    return folder


@contextmanager
def _readable_workers() -> Iterator[None]:
    """A `UserError` of a process that reads batches, without the traceback that torch makes its text of."""
    try:
        yield
    except UserError as error:
        caught = error.what if error.what.startswith("Caught ") else ""
        said = re.search(r"tenfold\.errors\.UserError: (.*)\s*$", caught)
        if said is None:
            raise
        raise UserError(said.group(1)) from None
