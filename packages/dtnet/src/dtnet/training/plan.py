"""What a training will do, before it does it: stages, steps, rates, parameters. `dtnet train --dry-run` prints it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from math import ceil
from pathlib import Path

import torch

from dtnet.config import DTNetConfig
from dtnet.model import DTNet
from dtnet.training.schedule import Stage, cosine_rate, paper_rate
from dtnet.training.settings import ModelSettings, ScstSettings, TrainSettings, XeSettings
from tenfold import UserError


@dataclass(frozen=True)
class StagePlan:
    """One stage of a training.

    Attributes:
        name: "xe" or "scst". settings: its settings.
        items: in the training split: captions (xe) or images (scst). size: of a batch, over all ranks.
        steps: of an epoch. As in the authors' loaders, an incomplete last batch is dropped in xe and kept in scst.
        first: optimiser steps of the training before this stage.
    """

    name: Stage
    settings: XeSettings | ScstSettings
    items: int
    size: int
    steps: int
    first: int

    @property
    def beams(self) -> int:
        """Captions of an item that a step works on."""
        return self.settings.beams if isinstance(self.settings, ScstSettings) else 1

    @property
    def end(self) -> int:
        """Optimiser steps of the training when this stage is done."""
        return self.first + self.settings.epochs * self.steps

    def rate(self, epoch: int, batch: int) -> float:
        """The learning rate of one step; both counted from 0 within stage and epoch."""
        if self.settings.schedule == "paper":
            return paper_rate(self.name, epoch)
        step, steps = epoch * self.steps + batch, self.settings.epochs * self.steps
        return cosine_rate(step, steps, self.settings.warmup, self.settings.rate)


def plan(settings: TrainSettings, captions: int, images: int) -> list[StagePlan]:
    """The stages of a training on so many captions of so many images.

    Raises:
        UserError: a stage that has no whole batch; no stage with an epoch.
    """
    stages: list[StagePlan] = []
    for name in settings.stages:
        chosen = settings.stage(name)
        if chosen.epochs == 0:
            continue
        items, size = (captions, settings.xe.batch) if name == "xe" else (images, settings.scst.images)
        if items < size:
            raise UserError(f"{items} items in train", f"stage {name}", f"at least one batch of {size}")
        steps = items // size if name == "xe" else ceil(items / size)
        steps = steps if chosen.steps is None else min(steps, chosen.steps)
        stages.append(StagePlan(name, chosen, items, size, steps, stages[-1].end if stages else 0))
    if not stages:
        raise UserError("nothing to train", "xe.epochs and scst.epochs", "at least one epoch")
    return stages


@dataclass(frozen=True)
class DryRun:
    """What `--dry-run` prints.

    Attributes:
        stages: in their order.
        words: of the vocabulary. counted: whether data were read (else the config's own counts stand).
        parameters: all of the model's. trainable: those that get gradients (not the frozen table of positions).
    """

    stages: list[StagePlan]
    words: int
    counted: bool
    parameters: int
    trainable: int

    def rates(self) -> Iterator[tuple[StagePlan, str, str]]:
        """Stage, epochs and rate, epochs of the same rate in one; epochs counted over the whole training."""
        start = 0
        for stage in self.stages:
            epochs = stage.settings.epochs

            def rates_of(epoch: int, stage: StagePlan = stage) -> tuple[float, float]:
                return stage.rate(epoch, 0), stage.rate(epoch, stage.steps - 1)

            for (begin, end), group in groupby(range(epochs), key=rates_of):
                same = list(group)
                first, last = start + same[0], start + same[-1]
                yield (
                    stage,
                    f"{first}" if first == last else f"{first}-{last}",
                    f"{begin:g}" if begin == end else f"{begin:g} → {end:g}",
                )
            start += epochs


def dry_run(settings: TrainSettings) -> DryRun:
    """Count without training: from the data where a folder is named, else from the config's expected counts.

    Raises:
        UserError: the named data cannot be read, or give no whole batch.
    """
    from dtnet.training.plan import count_parameters

    data = settings.data
    captions, images, words = data.expected.captions, data.expected.images, data.expected.words
    if data.folder is not None:
        from dtnet.data.caption_data import open_captions

        found, vocabulary = open_captions(data, Path(data.folder))
        captions, images, words = len(found.pairs("train")), len(found.images("train")), len(vocabulary)
    parameters, trainable = count_parameters(settings.model, words)
    return DryRun(plan(settings, captions, images), words, data.folder is not None, parameters, trainable)


def model_config(settings: ModelSettings, words: int) -> DTNetConfig:
    """The dimensions for a vocabulary of so many words.

    Raises:
        UserError: a dimension that does not fit the others.
    """
    values = settings.model_dump()
    if settings.d_model % settings.heads:
        raise UserError(f"d_model {settings.d_model}", f"heads {settings.heads}", "a multiple of heads")
    head = settings.d_model // settings.heads
    return DTNetConfig(**values, d_k=head, d_v=head, vocabulary_size=words)


def count_parameters(settings: ModelSettings, words: int) -> tuple[int, int]:
    """All parameters, and those that are trained, of a model that is not made (meta device)."""
    with torch.device("meta"):
        model = DTNet(model_config(settings, words))
    counts = [(parameter.numel(), parameter.requires_grad) for parameter in model.parameters()]
    return sum(count for count, _ in counts), sum(count for count, trained in counts if trained)
