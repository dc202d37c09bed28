"""LLaVA's instruction json to training samples and batches.

    >>> data = InstructData("llava_v1_5_mix665k.json", "playground/data", processor, max_length=2048)
    >>> order = ModalityLengthSampler(data.modality_lengths, batch_size=8, world_size=8, seed=0)
    >>> DataLoader(data, batch_size=8, sampler=order, collate_fn=Collator(processor), num_workers=4)

Nothing is drawn at random here: a sample is the same in every epoch. An image is read when its sample is asked for and
not kept. What a text becomes is the processor's matter, which is handed in.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.data import Dataset

from tenfold import UserError
from tenfold.data.conversation import IGNORE, Conversation, conversation_turns, get_conversation
from tenfold.data.formats import read_llava_instruct

logger = logging.getLogger(__name__)


class Processor(Protocol):
    """What `InstructData` needs of a processor.

    Attributes:
        conversation: the name of the template that it uses unless told otherwise.
        tokenizer: whose `pad_token_id` fills the rows of a batch.
    """

    conversation: str
    tokenizer: Any

    def encode_conversation(
        self,
        conversations: Sequence[Any],
        images: Any = None,
        *,
        conversation: str | None = None,
        max_length: int | None = None,
        where: str | None = None,
    ) -> dict[str, Tensor]:
        """Turns and an image (or None) as `input_ids` and `labels` `[tokens]`, and `pixel_values` of the image."""


class InstructData(Dataset[dict[str, Tensor]]):
    """Conversations about an image, or about none, as ids, labels and pixels.

    Args:
        path: LLaVA's json.
        image_folder: what image names are relative to.
        processor: turns text into ids and images into pixels.
        conversation: a template that is not in `tenfold.data.conversation`, or the name of one: "plain" for captions,
            "vicuna_v1"; None takes the processor's. The processor is given its name.
        max_length: text tokens that are kept of a record, an image counting as one.
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
        processor: Processor,
        *,
        conversation: str | Conversation | None = None,
        max_length: int | None = None,
        limit: int | None = None,
    ) -> None:
        self.path = Path(path)
        self.processor = processor
        self.template = (
            conversation
            if isinstance(conversation, Conversation)
            else get_conversation(conversation or processor.conversation)
        )
        self.max_length = max_length
        self.samples = read_llava_instruct(path, image_folder)[:limit]
        self.modality_lengths = [self._checked_words(number) for number in range(len(self.samples))]

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, number: int) -> dict[str, Tensor]:
        """`input_ids` and `labels` `[tokens]`, int64, and `pixel_values` `[views, ...]` where there is an image, as the
        processor makes them.

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

    def __init__(self, processor: Processor) -> None:
        self.pad_token_id = processor.tokenizer.pad_token_id

    def __call__(self, samples: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """A batch.

        Args:
            samples: of `InstructData`.

        Returns:
            `input_ids`, `attention_mask` and `labels` `[batch, tokens]`, int64, labels -100 where ids are padding;
            `pixel_values` `[images, ...]`, absent where no row has an image.
        """
        batch = pad_rows([sample["input_ids"].tolist() for sample in samples], self.pad_token_id, "right")
        labels = pad_rows([sample["labels"].tolist() for sample in samples], IGNORE, "right")["input_ids"]
        tensors = {name: torch.tensor(rows) for name, rows in {**batch, "labels": labels}.items()}
        pixels = [sample["pixel_values"] for sample in samples if "pixel_values" in sample]
        return tensors | ({"pixel_values": torch.cat(pixels)} if pixels else {})


def pad_rows(
    rows: Sequence[Sequence[Any]], value: Any, side: str, length: int | None = None
) -> dict[str, list[list[Any]]]:
    """Rows of one length, and a mask that is 1 on what was there.

    Args:
        rows: of ids, or of something for each of them.
        value: what fills them.
        side: "left" or "right".
        length: how long they are at least: a longer row stays as it is. None: as long as the longest.
    """
    if length is None:
        length = max(map(len, rows), default=0)
    padded, masks = [], []
    for row in rows:
        ids, mask, fill = list(row), [1] * len(row), max(0, length - len(row))
        left, right = (fill, 0) if side == "left" else (0, fill)
        padded.append([value] * left + ids + [value] * right)
        masks.append([0] * left + mask + [0] * right)
    return {"input_ids": padded, "attention_mask": masks}
