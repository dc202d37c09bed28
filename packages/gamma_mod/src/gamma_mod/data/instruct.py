"""Training data (section 6): LLaVA's json of conversations, and the order in which an epoch sees them.

Nothing is drawn at random but the order, which depends on (seed, epoch) alone: a resumed training sees what the killed
one would have seen.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from gamma_mod.data.prompts import IGNORED, collate, encode_conversation
from tenfold import UserError
from tenfold.data.formats import read_llava_instruct
from tenfold.runs import sample_generator

logger = logging.getLogger(__name__)

# The order of an epoch is drawn from a stream that no sample's index reaches.
_ORDER = 2**64 - 1


class InstructData(Dataset):
    """Conversations about an image, or about none, as a host's processor encodes them.

    Args:
        path: LLaVA's json. images: what image names are relative to.
        processor: of the host.
        max_length: text tokens of a sample, an image counting as one.
        protocol: `gamma_mod.data.prompts.PROTOCOLS`.

    Raises:
        UserError: what is wrong with the file, a record or an image's name.
    """

    def __init__(
        self, path: Path, images: Path, processor: Any, *, max_length: int, protocol: str = "template"
    ) -> None:
        self.path, self.processor, self.max_length, self.protocol = path, processor, max_length, protocol
        self.samples = read_llava_instruct(path, images)
        # Words, negative without an image: what comes together in a batch.
        self.lengths = [
            max(1, sum(len(turn.text.split()) for turn in sample.turns)) * (1 if sample.picture is not None else -1)
            for sample in self.samples
        ]

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, number: int) -> dict[str, Tensor]:
        sample = self.samples[number]
        where = f"{self.path}, record {number}, id {sample.id!r}"
        try:
            image = sample.image()
        except UserError as error:
            raise UserError(f"{error.what}: {error.where}", where, error.expected) from error
        encoded = encode_conversation(
            self.processor, sample.turns, image, max_length=self.max_length, protocol=self.protocol, where=where
        )
        if bool((encoded["labels"] == IGNORED).all()):
            logger.warning("nothing to learn within %s tokens: %s", self.max_length, where)
        return encoded


class Collator:
    """Samples to a batch; a class, so that worker processes can be started with it."""

    def __init__(self, pad_token_id: int) -> None:
        self.pad_token_id = pad_token_id

    def __call__(self, samples: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
        return collate(samples, self.pad_token_id)


class Order(Sampler[int]):
    """The samples of each epoch: batches of one modality and of like length, in an order of (seed, epoch).

    Args:
        lengths: words of each sample, negative without an image.
        group: samples that come together: an optimiser step's.
        count: how many an epoch has.
        grouped: whether modality and length matter; else the order is plainly shuffled.
    """

    def __init__(self, lengths: Sequence[int], group: int, count: int, seed: int, *, grouped: bool) -> None:
        self.lengths, self.group, self.count = list(lengths), group, count
        self.seed, self.grouped, self.epoch = seed, grouped, 0

    def set_epoch(self, epoch: int) -> None:
        """Which epoch comes next; accelerate says it."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[int]:
        generator = sample_generator(self.seed, self.epoch, _ORDER)
        shuffled = torch.randperm(len(self.lengths), generator=generator).tolist()
        if self.grouped:
            shuffled = self._together(shuffled, generator)
        return iter(shuffled[: self.count])

    def _together(self, shuffled: list[int], generator: torch.Generator) -> list[int]:
        whole: list[list[int]] = []
        left: list[int] = []
        for kind in (True, False):
            chosen = [index for index in shuffled if (self.lengths[index] > 0) is kind]
            groups = [chosen[at : at + self.group] for at in range(0, len(chosen), self.group)]
            if groups and len(groups[-1]) < self.group:
                left += groups.pop()
            whole += [sorted(group, key=lambda index: -abs(self.lengths[index])) for group in groups]
        order = torch.randperm(len(whole), generator=generator).tolist()
        return [index for number in order for index in whole[number]] + left
