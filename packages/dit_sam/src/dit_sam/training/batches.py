"""Samples into batches: in an order of each epoch, an incomplete last batch dropped, a part for each rank."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dit_sam.config import DITConfig
from dit_sam.data.samples import Sample
from dit_sam.frame import fit, picture, target
from dit_sam.model import DITSam
from dit_sam.training.augment import Example, example
from dit_sam.training.settings import AugmentSettings, TrainSettings
from tenfold import UserError
from tenfold.runs import sample_rng
from tenfold.runs.ranks import Ranks

# The stream of an epoch's order, above every sample's.
_ORDER = 2**62
# Batches that worker processes prepare ahead.
_AHEAD = 4


class Batch(NamedTuple):
    """One step's tensors: pictures [n, 3, S, S], masks [n, 1, S, S], ids and mask of the sentences [n, slots]."""

    images: Tensor
    masks: Tensor
    ids: Tensor
    seen: Tensor


class Batches:
    """The batches of a training.

    Args:
        samples: of train. model: its dimensions and word pieces. settings: of the training. seed: of it.
        per_epoch: batches of an epoch.

    Raises:
        UserError: a model without a vocabulary.
    """

    def __init__(
        self, samples: list[Sample], model: DITSam, settings: TrainSettings, seed: int, per_epoch: int
    ) -> None:
        if model.vocabulary is None:
            raise UserError("a model without a vocabulary", "start", "vocab.txt in its folder")
        self.vocabulary, self.config = model.vocabulary, model.config
        self.settings, self.seed, self.per_epoch = settings, seed, per_epoch
        self.samples = _with_others_sentences(samples) if settings.swap_sentences else samples
        self._pictures: dict[Any, Tensor] = {}
        self._masks: dict[str, Tensor] = {}

    def epoch(self, epoch: int, first: int, group: Ranks) -> Iterator[Batch]:
        """This rank's part of an epoch's batches, from the batch `first` on."""
        order = sample_rng(self.seed, epoch, _ORDER).permutation(len(self.samples)).tolist()
        size = self.settings.batch
        shares: list[Sequence[int]] = [
            group.share(order[k * size : (k + 1) * size]) for k in range(first, self.per_epoch)
        ]
        for examples in self._read(shares, epoch):
            yield self._collate(examples)

    def _read(self, shares: Sequence[Sequence[int]], epoch: int) -> Iterator[list[Example]]:
        if not self.settings.workers:
            for share in shares:
                yield [self._example(epoch, int(i)) for i in share]
            return
        rule = (self.config, self.settings.augment)
        with ProcessPoolExecutor(self.settings.workers, mp_context=get_context("spawn")) as pool:
            waiting = []
            for share in shares:
                work = [(self.samples[i], *rule, self.seed, epoch, int(i)) for i in share]
                waiting.append([pool.submit(_read_one, *arguments) for arguments in work])
                if len(waiting) > _AHEAD:
                    yield [one.result() for one in waiting.pop(0)]
            for batch in waiting:
                yield [one.result() for one in batch]

    def _example(self, epoch: int, index: int) -> Example:
        sample, rng = self.samples[index], sample_rng(self.seed, epoch, index)
        if not self.settings.data.in_memory:
            return example(sample, self.config, self.settings.augment, rng)
        # Nothing is augmented: only the sentence is drawn, with the same first draw.
        sentence = sample.sentences[rng.integers(len(sample.sentences))]
        source = sample.picture.source
        if source not in self._pictures or sample.id not in self._masks:
            image = sample.image()
            frame = fit(image.height, image.width, self.config.input_size)
            self._pictures.setdefault(source, picture(image, frame))
            self._masks[sample.id] = target(sample.mask(image), frame)
        return Example(self._pictures[source], self._masks[sample.id], sentence)

    def _collate(self, examples: list[Example]) -> Batch:
        sentences = self.vocabulary.encode([one.sentence for one in examples], self.config.text_length)
        images, masks = (
            torch.stack(ones) for ones in ([one.image for one in examples], [one.mask for one in examples])
        )
        return Batch(images, masks, sentences.ids, sentences.mask)


def _read_one(
    sample: Sample, config: DITConfig, augment: AugmentSettings, seed: int, epoch: int, index: int
) -> Example:
    torch.set_num_threads(1)
    return example(sample, config, augment, sample_rng(seed, epoch, index))


def _with_others_sentences(samples: list[Sample]) -> list[Sample]:
    """Every sample with the sentences of the one half the set away."""
    half = len(samples) // 2
    others = [*samples[half:], *samples[:half]]
    return [
        Sample(one.id, one.picture, other.sentences, one.read_mask, one.where)
        for one, other in zip(samples, others, strict=True)
    ]
