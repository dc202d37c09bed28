"""Training data (sheet sections 5 and 6): LLaVA's instruction json to samples, batches, and their order.

    >>> data = InstructData("llava_v1_5_mix665k.json", "playground/data", processor, max_length=2496)
    >>> order = ModalityLengthSampler(data.modality_lengths, batch_size=8, world_size=8, seed=0)
    >>> DataLoader(data, batch_size=8, sampler=order, collate_fn=Collator(processor), num_workers=4)

Nothing is drawn at random but the order: there is no augmentation, so a sample is the same in every epoch, and the
order of epoch e comes from a generator seeded by (seed, e). An image is read when its sample is asked for and not kept.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Generator, Tensor
from torch.utils.data import Dataset, Sampler

from llava_hr.processing import LlavaHrProcessor, pad_rows
from tenfold import UserError
from tenfold.data.conversation import IGNORE, conversation_turns, get_conversation
from tenfold.data.formats import read_llava_instruct
from tenfold.runs import sample_generator

logger = logging.getLogger(__name__)

# The order of an epoch is drawn from a stream that no sample's index reaches.
_ORDER = 2**64 - 1


class InstructData(Dataset):
    """Conversations about an image, or about none, as ids, labels and pixels.

    Args:
        path: LLaVA's json.
        image_folder: what image names are relative to.
        processor: turns text into ids and images into pixels.
        conversation: name of the template: "plain" in stage 1, "vicuna_v1" in stage 2; None takes the processor's.
        max_length: text tokens that are kept of a record, an image counting as one: 2048 in stage 1, 2496 in stage 2.
        limit: only so many records, from the first.

    Attributes:
        samples: the records, their images unopened.
        modality_lengths: words of each record, negative without an image: what the sampler groups by.

    Raises:
        UserError: what is wrong with the file, a record (named by file, number and id), or an image name.
    """

    def __init__(
        self,
        path: str | Path,
        image_folder: str | Path,
        processor: LlavaHrProcessor,
        *,
        conversation: str | None = None,
        max_length: int | None = None,
        limit: int | None = None,
    ) -> None:
        self.path = Path(path)
        self.processor = processor
        self.template = get_conversation(conversation or processor.conversation)
        self.max_length = max_length
        self.samples = read_llava_instruct(path, image_folder)[:limit]
        self.modality_lengths = [self._checked_words(number) for number in range(len(self.samples))]

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, number: int) -> dict[str, Tensor]:
        """`input_ids` and `labels` `[tokens]`, int64, and `pixel_values` `[1, 3, R, R]` where there is an image.

        Raises:
            UserError: a broken image; names it, the file and the record.
        """
        sample, where = self.samples[number], self.where(number)
        try:
            image = sample.image()
        except UserError as error:
            raise UserError(f"{error.what}: {error.where}", where, error.expected) from error
        encoded = self.processor.encode_conversation(
            sample.turns, image, conversation=self.template.name, max_length=self.max_length, where=where
        )
        if bool((encoded["labels"] == IGNORE).all()):
            logger.warning("nothing to learn within %s tokens: %s", self.max_length, where)
        return encoded

    def where(self, number: int) -> str:
        """File, number and id of a record, for messages."""
        return f"{self.path}, record {number}, id {self.samples[number].id!r}"

    def _checked_words(self, number: int) -> int:
        """Words of a record (as whitespace separates them, `<image>` is one), negative for text only."""
        sample, where = self.samples[number], self.where(number)
        images = sample.picture is not None
        turns = conversation_turns(sample.turns, images=images, where=where)
        self.template.check(turns, images=images, where=where)
        words = max(1, sum(len(turn.text.split()) for turn in sample.turns))
        return words if images else -words


class Collator:
    """Samples to a batch: padded on the right, images of all rows in reading order.

    Args:
        processor: whose tokenizer's padding fills the ids (the unknown token, 0, with Vicuna's).
    """

    def __init__(self, processor: LlavaHrProcessor) -> None:
        self.pad_token_id = processor.tokenizer.pad_token_id

    def __call__(self, samples: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """A batch.

        Args:
            samples: of `InstructData`.

        Returns:
            `input_ids`, `attention_mask` and `labels` `[batch, tokens]`, int64, labels -100 where ids are padding;
            `pixel_values` `[images, 3, R, R]`, absent where no row has an image.
        """
        batch = pad_rows([sample["input_ids"].tolist() for sample in samples], self.pad_token_id, "right")
        labels = pad_rows([sample["labels"].tolist() for sample in samples], IGNORE, "right")["input_ids"]
        tensors = {name: torch.tensor(rows) for name, rows in {**batch, "labels": labels}.items()}
        pixels = [sample["pixel_values"] for sample in samples if "pixel_values" in sample]
        return tensors | ({"pixel_values": torch.cat(pixels)} if pixels else {})


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
    """The order of LLaVA's group_by_modality_length (golden `metrics`, sampler).

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
