"""`gamma-mod train`: layers chosen by ARank or by name, the host converted, instruction tuning, thresholds calibrated.

    from gamma_mod.training.run import run_train
    run_train(load_config(TrainSettings, "mini"), seed=0, output=Path("runs/mini"))

A killed training goes on from its last complete checkpoint with the same bits. In the end the folder holds ``model/``,
the host with `gamma_mod.json` and `gamma_mod.safetensors` beside it, which `gamma_mod.load` opens.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import nn

from gamma_mod.checkpoints.load import find_folder, load
from gamma_mod.conversion import convert
from gamma_mod.data.instruct import InstructData
from gamma_mod.data.prompts import IGNORED, collate
from gamma_mod.placement import place, select_layers
from gamma_mod.ranks import arank
from gamma_mod.report import calibrate, measure_skips
from gamma_mod.storage import write_card
from gamma_mod.training.plan import StagePlan, plan, zero_stage
from gamma_mod.training.settings import TrainSettings
from gamma_mod.training.stage import arguments, train_stage
from tenfold import UserError
from tenfold.data import write
from tenfold.hosts import structure
from tenfold.hosts.loading import quiet_transformers
from tenfold.runs import (
    Run,
    atomic_write_json,
    checkpoint_step,
    fingerprint,
    last_complete_checkpoint,
    read_json,
    read_jsonl,
    run,
)
from tenfold.runs.context import require_unfinished
from tenfold.runs.launch import join
from tenfold.runs.ranks import Ranks, choose_device
from tenfold.runs.record import METRICS_NAME
from tenfold.runs.resumption import identity, keep_identity, require_new, threads
from tenfold.runs.stages import reset
from tenfold.weights import require_finite

logger = logging.getLogger(__name__)

# By their names no part of a run's result.
CHECKPOINTS, LAYERS = "checkpoint-stage", "checkpoint-layers.json"
# What may differ between a training and its continuation: it moves no bit of the weights.
FREE = ("device", "checkpoint_steps", "keep", "log_steps", "wandb", "data.folder", "data.workers", "model.model")
DATA = "data"


@dataclass(frozen=True)
class Trained:
    """A finished training.

    Attributes:
        model: its folder. metrics: as in the run's record.
        resumed: optimiser steps that were done before this call; 0: it began from nothing.
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
        UserError: the folder holds a finished run, or anything without `resume`; a checkpoint of other settings; data
            or model that are missing, broken or cannot be converted; no CUDA where it is asked for; DeepSpeed without
            what it needs; a loss that is not finite.
    """
    require_unfinished(output)
    device = choose_device(settings.device)
    zero = zero_stage(settings.stage)
    with threads(settings.threads), join(device, "gamma-mod", bool(zero)) as ranks, _readable_workers():
        ranks.lead(lambda: require_new(output, resume, (DATA,)))
        folder = Path(ranks.from_lead(lambda: str(_find_data(settings, output))))
        prints = ranks.from_lead(lambda: _fingerprints(settings, folder))
        options: dict[str, Any] = {"output": None, "data": {}}
        if ranks.leads:
            options = {"output": output, "data": prints, "wandb_project": settings.wandb}
        with run("gamma_mod", "train", config=settings.model_dump(mode="json"), seed=seed, **options) as current:
            same = identity(settings.model_dump(mode="json"), seed, ranks.world, prints, FREE)
            ranks.lead(lambda: keep_identity(output, same))
            training = Training(settings, seed, output, folder, device, ranks, current)
            resumed = training.done()
            training.run()
    return Trained(output / "model", current.metrics, resumed)


class Training:
    """A training in progress.

    Args:
        settings, seed, output: as for `run_train`.
        folder: what the data are relative to.
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
        self.settings, self.seed, self.output = settings, seed, output
        self.device, self.ranks, self.current = device, ranks, current
        name = settings.model.model
        if name is None:
            raise UserError("no model", "model.model", "a folder or hub id, or mini")
        half = settings.precision == "bf16" and bool(zero_stage(settings.stage))
        self.model, self.processor = load(
            name,
            torch.bfloat16 if half else torch.float32,
            "cpu",
            attention=settings.model.attention,
            imports=settings.model.imports,
        )
        if hasattr(structure.unwrap(self.model), "gamma_mod"):
            raise UserError("this model is already converted", name, "a dense host")
        data = settings.data
        self.data = InstructData(
            folder / data.conversations,
            folder / data.images,
            self.processor,
            max_length=data.max_length,
            protocol=data.protocol,
        )
        self.plan: StagePlan = plan(settings, len(self.data), ranks.world)

    @property
    def checkpoints(self) -> Path:
        return self.output / CHECKPOINTS

    def done(self) -> int:
        """Optimiser steps that checkpoints hold."""
        checkpoint = last_complete_checkpoint(self.checkpoints)
        return checkpoint_step(checkpoint) if checkpoint is not None else 0

    def run(self) -> None:
        """All of it, from where the training stands."""
        if self.ranks.leads and (done := self.done()):
            logger.info("going on after step %d of %d", done, self.plan.steps)
        conversion = self.settings.conversion
        layers = self._layers()
        convert(
            self.model,
            layers,
            conversion.routing_ratio,
            conversion.protect,
            seed=self.seed,
            aux_coefficient=conversion.aux_coefficient,
            shared_router=conversion.shared_router,
            initialisation=conversion.initialisation,
            decode_skip=conversion.decode_skip,
        )
        try:
            options = arguments(self.settings, self.plan, self.checkpoints, self.seed, self.device)
            checkpoint = last_complete_checkpoint(self.checkpoints)
            trained = train_stage(self.model, options, self.plan, self.settings, self.data, self.current, checkpoint)
            if trained is not None:
                self._keep(trained, layers)
            self.ranks.meet()
        finally:
            reset()

    def _layers(self) -> tuple[int, ...]:
        """The layers to convert; by ARank they are measured once, on the first rank, and kept for a continuation."""
        chosen = self.settings.conversion.layers
        num_layers = len(structure.decoder_layers(structure.unwrap(self.model)))
        if chosen != "arank":
            return place(chosen, num_layers) if isinstance(chosen, str) else tuple(chosen)
        found = self.ranks.from_lead(self._measured)
        return select_layers(found, num_dense=self.settings.conversion.num_dense)

    def _measured(self) -> list[float]:
        path = self.output / LAYERS
        if not path.exists():
            count = min(self.settings.conversion.samples, len(self.data))
            prompts = (_prompt(self.data[number], self.processor) for number in range(count))
            atomic_write_json(path, {"arank": arank(self.model, prompts), "samples": count})
        content = read_json(path)
        return list(content["arank"])

    def _keep(self, trained: Mapping[str, torch.Tensor], layers: tuple[int, ...]) -> None:
        """Calibrate, count what is skipped, and write what was trained: the first rank does."""
        require_finite(trained, "the trained weights")
        settings = self.settings.conversion
        model = self._whole(trained)
        count = min(settings.calibration_samples, len(self.data))
        prompts = [_prompt(self.data[number], self.processor) for number in range(count)]
        if settings.calibrate is not None:
            calibrate(model, prompts, settings.calibrate)
        with torch.no_grad(), measure_skips() as skips:
            for prompt in prompts:
                model(**prompt, use_cache=False)
        folder = self.current.file("model")
        folder.mkdir(exist_ok=True)
        dtype = torch.bfloat16 if self.settings.precision == "bf16" else torch.float32
        with quiet_transformers():
            model.to(dtype).save_pretrained(folder)
            self.processor.save_pretrained(folder)
        write_card(folder, model.gamma_mod.config, self.settings.model.model, self.current.id)
        rows = read_jsonl(self.output / METRICS_NAME)
        since = self.plan.steps - max(1, self.plan.steps // 10)
        last = [row["loss"] for row in rows if row["step"] > since]
        report = {
            "layers": list(layers),
            "routing_ratio": settings.routing_ratio,
            "training_skip": rows[-1].get("skip"),
            "prefill_threshold": model.gamma_mod.config.prefill_threshold,
            "prefill_skip": skips.prefill,
            "prefill_skip_per_layer": {str(one): skips.ratio("prefill", layer=one) for one in skips.layers},
        }
        atomic_write_json(self.current.file("skips.json"), report)
        if settings.layers == "arank":
            atomic_write_json(self.current.file("arank.json"), read_json(self.output / LAYERS))
        self.current.metrics |= {
            "ranks": self.ranks.world,
            "steps": self.plan.steps,
            "loss": fmean(last),
            "training_skip": report["training_skip"],
            "prefill_skip": skips.prefill,
        }

    def _whole(self, trained: Mapping[str, torch.Tensor]) -> Any:
        """The trained model, in evaluation mode on the CPU; under ZeRO-3 made anew, as its own is in pieces."""
        model: nn.Module = self.model
        if zero_stage(self.settings.stage) == 3:
            config = structure.unwrap(self.model).gamma_mod.config
            fresh = load(str(self.settings.model.model), torch.float32, "cpu", imports=self.settings.model.imports)[0]
            model = convert(fresh, config.layers, config.routing_ratio, config.protect, **_other_knobs(config))
        model = model.cpu()
        model.load_state_dict({name: value.to("cpu") for name, value in trained.items()})
        return model.eval()


def _other_knobs(config: Any) -> dict[str, Any]:
    return {
        name: value for name, value in config.to_dict().items() if name not in ("layers", "routing_ratio", "protect")
    }


def _prompt(sample: Mapping[str, torch.Tensor], processor: Any) -> dict[str, torch.Tensor]:
    """A training sample up to its first answer: what a prompt holds at inference."""
    answers = (sample["labels"] != IGNORED).nonzero()
    end = int(answers[0, 0]) if len(answers) else len(sample["labels"])
    per_token = ("input_ids", "labels", "mm_token_type_ids", "token_type_ids")
    cut = {name: value[:end] if name in per_token else value for name, value in sample.items()}
    batch = collate([cut], processor.tokenizer.pad_token_id)
    return {name: value for name, value in batch.items() if name != "labels"}


def _find_data(settings: TrainSettings, output: Path) -> Path:
    """The data folder: the named one, or the miniature's, which is drawn where it is not there yet."""
    data = settings.data
    if data.folder is not None:
        if not Path(data.folder).is_dir():
            raise UserError("no such folder", data.folder, "the data: gamma-mod train --help shows the tree")
        return Path(data.folder)
    if data.mini is None:
        raise UserError("no data", "--data", "a folder: gamma-mod train --help shows the tree")
    folder = output / DATA
    if not (folder / data.conversations).exists():
        write.write_llava_instruct(folder, data.mini.seed, data.mini.train, data.mini.size)
    return folder


def _fingerprints(settings: TrainSettings, folder: Path) -> dict[str, str]:
    """Of the conversations, and of a host that lies here."""
    path = folder / settings.data.conversations
    if not path.is_file():
        raise UserError("no such file", path, "LLaVA's json of conversations")
    found = {"conversations": fingerprint(path)}
    model = find_folder(settings.model.model) if settings.model.model is not None else None
    return found | ({"model": fingerprint(model)} if model is not None else {})


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
