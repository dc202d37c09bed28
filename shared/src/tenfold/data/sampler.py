"""Orders of an epoch: a shuffle, or LLaVA's, which puts samples of one modality and of like length into one batch.

Both depend on (seed, epoch) alone, so a resumed run goes on where the killed one stood.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice

import torch
from torch import Generator
from torch.utils.data import Sampler

from tenfold import UserError
from tenfold.runs import sample_generator

# The order of an epoch is drawn from a stream that no sample's index reaches.
_ORDER = 2**64 - 1


class EpochOrder(Sampler[int]):
    """The samples of each epoch, in an order that depends on (seed, epoch) alone.

    Args:
        samples: in the data.
        count: how many of them an epoch takes.
        seed: of the run.
        grouped: the order of an epoch where it is not a plain shuffle.
        name: of the stage that it is for.
    """

    def __init__(
        self, samples: int, count: int, seed: int, grouped: ModalityLengthSampler | None = None, name: str = ""
    ) -> None:
        self.name = name
        self.samples, self.count, self.seed, self.grouped, self.epoch = samples, count, seed, grouped, 0

    def set_epoch(self, epoch: int) -> None:
        """Which epoch comes next; accelerate says it."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[int]:
        if self.grouped is not None:
            self.grouped.set_epoch(self.epoch)
            return islice(iter(self.grouped), self.count)
        generator = sample_generator(self.seed, self.epoch, _ORDER)
        return iter(torch.randperm(self.samples, generator=generator)[: self.count].tolist())


class ModalityLengthSampler(Sampler[int]):
    """Indices in an order that puts samples of one modality and of like length into one batch.

    The order depends on (seed, epoch) alone, so a resumed run goes on where the killed one stood.

    Args:
        lengths: words of each sample, negative without an image (`InstructData.modality_lengths`).
        batch_size: samples of one rank in one forward pass.
        world_size: ranks.
        seed: of the order.
        rank: None for the whole order, whose batches go to the ranks in turn (as transformers' Trainer deals them);
            a number for the share of one rank, equally long for all (the last round is filled up from the first).
    """

    def __init__(
        self, lengths: Sequence[int], batch_size: int, world_size: int = 1, *, seed: int = 0, rank: int | None = None
    ) -> None:
        if not lengths:
            raise UserError("no samples to put in order", None, "at least one")
        self.lengths = list(lengths)
        self.batch_size, self.world_size, self.rank = batch_size, world_size, rank
        self.seed, self.epoch, self.start = seed, 0, 0

    def set_epoch(self, epoch: int, start: int = 0) -> None:
        """Which epoch comes next, and how many of its indices are passed over (they were seen before a kill)."""
        self.epoch, self.start = epoch, start

    def __len__(self) -> int:
        return (len(self.lengths) if self.rank is None else self._share) - self.start

    def __iter__(self) -> Iterator[int]:
        generator = sample_generator(self.seed, self.epoch, _ORDER)
        order = modality_length_order(self.lengths, self.batch_size, self.world_size, generator)
        if self.rank is not None:
            order = self._of_rank(order)
        return iter(order[self.start :])

    @property
    def _share(self) -> int:
        return -(-len(self.lengths) // (self.batch_size * self.world_size)) * self.batch_size

    def _of_rank(self, order: list[int]) -> list[int]:
        full = (order * -(-self._share * self.world_size // len(order)))[: self._share * self.world_size]
        batches = [full[at : at + self.batch_size] for at in range(0, len(full), self.batch_size)]
        return [index for batch in batches[self.rank :: self.world_size] for index in batch]


def modality_length_order(
    lengths: Sequence[int], batch_size: int, world_size: int, generator: Generator | None = None
) -> list[int]:
    """The order of LLaVA's group_by_modality_length.

    Each modality is shuffled and cut into megabatches (one batch for each rank) of its own, and the megabatches are
    shuffled. What is left of both modalities is put together: it goes first if it fills a megabatch, and the rest last.

    Args:
        lengths: not 0; negative without an image.
        batch_size: samples of one rank.
        world_size: ranks.
        generator: None draws from torch's global one.

    Returns:
        Every index once.
    """
    with_image = [index for index, length in enumerate(lengths) if length > 0]
    text_only = [index for index, length in enumerate(lengths) if length < 0]
    if not (with_image and text_only):
        # Signed as they are: among text only, the shortest come first. No matter to training, but the official order.
        return length_grouped_order(lengths, batch_size, world_size, generator)
    size = batch_size * world_size
    whole: list[list[int]] = []
    left: list[int] = []
    for kind in (with_image, text_only):
        grouped = length_grouped_order([abs(lengths[i]) for i in kind], batch_size, world_size, generator)
        megabatches = _cut([kind[i] for i in grouped], size)
        whole += megabatches[:-1]
        left += megabatches[-1]
    shuffled = [whole[i] for i in torch.randperm(len(whole), generator=generator).tolist()]
    if len(left) >= size:
        shuffled.insert(0, left[:size])
        left = left[size:]
    return [index for megabatch in (*shuffled, left) for index in megabatch]


def length_grouped_order(
    lengths: Sequence[int], batch_size: int, world_size: int, generator: Generator | None = None
) -> list[int]:
    """Shuffled, cut into megabatches, the longest first in each; then dealt to ranks of about equal length.

    Args:
        lengths: of samples of one modality.
        batch_size: samples of one rank.
        world_size: ranks.
        generator: None draws from torch's global one.
    """
    shuffled = torch.randperm(len(lengths), generator=generator).tolist()
    order: list[int] = []
    for megabatch in _cut(shuffled, batch_size * world_size):
        megabatch.sort(key=lambda index: lengths[index], reverse=True)
        order += _dealt(megabatch, lengths, world_size)
    return order


def _dealt(megabatch: list[int], lengths: Sequence[int], ranks: int) -> list[int]:
    """The samples of rank 0, then of rank 1, ...: each goes to the rank that has the fewest words and has room."""
    if len(megabatch) % ranks:
        return [index for rank in range(ranks) for index in megabatch[rank::ranks]]
    room = len(megabatch) // ranks
    shares: list[list[int]] = [[] for _ in range(ranks)]
    words = [0] * ranks
    for index in megabatch:
        rank = min((rank for rank in range(ranks) if len(shares[rank]) < room), key=words.__getitem__)
        shares[rank].append(index)
        words[rank] += lengths[index]
    return [index for share in shares for index in share]


def _cut(order: list[int], size: int) -> list[list[int]]:
    return [order[start : start + size] for start in range(0, len(order), size)]
