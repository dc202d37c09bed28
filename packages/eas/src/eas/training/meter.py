"""METER in training: adapters, poolers, token types and the task's head, from its official files.

AdamW in groups (section 5): what is named cross_modal moves five times as fast, the task's head fifty, ten or five
times. The authors' ranks search alone and never meet; here they share a batch.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from eas.checkpoints.meter import classifier_answers, open_meter, read_meter_about, write_meter
from eas.data.meter import Encoder, MeterSamples
from eas.meter import Meter, MeterInputs, task_loss
from eas.result import SearchResult
from eas.training.settings import StageSettings, TrainSettings
from tenfold import UserError
from tenfold.runs import fingerprint

HEADS = ("vqa_classifier", "nlvr2_classifier", "rank_output")
SITES = 24
# Splits that are trained on and scored on where none are named: scoring never meets the training, as it does in the
# authors' code, whose search scores VQA, NLVR2 and retrieval on what it trains on.
USUAL = {"vqa": (("train2014",), "val2014"), "nlvr2": (("train",), "dev"), "irtr": (("train",), "val")}


class MeterTrainee:
    """METER whose tuned part moves (`eas.training.stages.Trainee`).

    Args:
        as_released: sites by the authors' map.
    """

    def __init__(self, model: Meter, *, as_released: bool = False) -> None:
        self.model, self.as_released, self.sites = model, as_released, SITES
        self.parameters = dict(model.trained())

    def factor(self, name: str, settings: StageSettings) -> float:
        """Of the head, of what is named cross_modal (adapters among it), of the rest."""
        return settings.head if name.startswith(HEADS) else settings.cross if "cross_modal" in name else 1.0

    def set_skip(self, skip: tuple[int, ...]) -> None:
        self.model.set_skip(skip, as_released=self.as_released)

    def count(self, batch: tuple[MeterInputs, Tensor]) -> int:
        """Samples."""
        return len(batch[1])

    def loss(self, batch: tuple[MeterInputs, Tensor]) -> Tensor:
        """The sum of the task's loss over the samples."""
        (ids, mask, pixels), targets = batch
        place = self.model.token4classifier.device
        inputs = MeterInputs(ids.to(place), mask.to(place), tuple(one.to(place) for one in pixels))
        return task_loss(self.model, inputs, targets.to(place)) * len(targets)

    @contextmanager
    def scoring(self, means: str) -> Iterator[None]:
        yield  # PIA's mean runs over all of a stream, as released

    def close(self) -> None:
        """Nothing: the next stage begins with the folder's weights."""


class MeterHost:
    """A folder of METER and its task's data (`eas.training.hosts.TrainingHost`)."""

    outcome, sites = "model", SITES
    unread = (
        *("data.train", "data.images", "data.pad", "data.max_length", "prompt_format", "search.scored"),
        *(f"adapters.{name}" for name in ("adapter", "pia", "groups", "scale", "temperature", "dropout")),
        *("adapters.use_global", "adapters.means", "adapters.projector"),
    )

    def __init__(self, settings: TrainSettings, seed: int, device: torch.device) -> None:
        self.settings, self.seed, self.device = settings, seed, device
        self.folder = Path(settings.model)
        self.config, self.about = read_meter_about(self.folder)
        if self.config.folded:
            raise UserError("folded weights", self.folder, "a folder with its adapters: eas convert without --folded")
        if settings.precision != "fp32" or settings.gradient_checkpointing:
            raise UserError("bf16 or gradient checkpointing", "METER", "precision=fp32, gradient_checkpointing=false")

    def read_data(self) -> None:
        """Read the task's official files."""
        data, task, searching = self.settings.data, self.config.task, "search" in self.settings.stages
        self.splits, held_out = data.splits or USUAL[task][0], data.held_out or USUAL[task][1]
        if data.folder is None or not Path(data.folder).is_dir():
            raise UserError("no such folder", data.folder or "--data", f"the official files of {task}")
        if searching and held_out in self.splits:
            told = f"trained on {', '.join(self.splits)}"
            raise UserError(f"data.held_out {held_out}", told, "a split that is not trained on")
        self.answers = classifier_answers(self.folder, self.config.answers) if task == "vqa" else []
        encoder, drawn = Encoder(self.folder, self.config), {"seed": self.seed, "false_texts": data.false_texts}

        def samples(*splits: str) -> MeterSamples:
            return MeterSamples(task, data.folder or "", splits, encoder, self.answers, **drawn)

        self.samples = samples(*self.splits)
        self.held_out = samples(held_out) if searching else None
        self.prints = {"model": fingerprint(self.folder), "train": self.samples.print}

    def trainee(self, skip: tuple[int, ...], *, both: bool) -> MeterTrainee:
        """The folder's model without these attentions; it has the modules of all sites in any case."""
        released = self.settings.adapters.as_released
        model = open_meter(self.folder)[0].to(self.device)
        model.config = replace(model.config, skip=tuple(skip), as_released=released)
        model.set_skip(tuple(skip), as_released=released)
        return MeterTrainee(model, as_released=released)

    def save(self, trainee: Any, target: Path, result: SearchResult | None) -> None:
        """Write a folder like the one that was opened."""
        model: Meter = trainee.model
        seen = tuple(dict.fromkeys((*self.about.trained_on, *self.splits)))
        search = None if result is None else result.sha256
        about = replace(self.about, source="tuned", trained_on=seen, search=search)
        state = {name: value.cpu() for name, value in model.state_dict().items()}
        write_meter(target, model.config, state, about, tokenizer=self.folder, answers=self.answers or None)
