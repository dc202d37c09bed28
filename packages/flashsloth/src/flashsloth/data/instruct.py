"""Training data (sheet sections 5 and 6): LLaVA's instruction json to samples and batches.

Nothing is drawn at random but the order: a sample is the same in every epoch. An image is read when its sample is asked
for and not kept. A broken record stops the training with its number; the official code takes its neighbour instead.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from torch import Tensor
from torch.utils.data import Dataset

from flashsloth.processing import FlashSlothProcessor
from flashsloth.prompts import template
from tenfold import UserError
from tenfold.data.conversation import conversation_turns
from tenfold.data.formats import read_llava_instruct

IMAGE_WORDS = 700  # what an image counts in the order of samples (section 5)


class InstructData(Dataset):
    """Conversations about an image, or about none, as ids, labels and pixels.

    Args:
        path: LLaVA's json.
        image_folder: what image names are relative to.
        processor: turns text into ids and images into pixels.
        conversation: "plain" in stage 1, "phi2" in stage 2.
        max_length: text tokens that are kept of a record, an image and a marker counting as one.
        skip: numbers of records that are left out, such as the two broken ones of mix665k.

    Attributes:
        samples: the records, their images unopened.
        lengths: words of each, and 700 for an image; negative without one: what the order groups by.

    Raises:
        UserError: what is wrong with the file, a record (named by file, number and id), or an image name.
    """

    def __init__(
        self,
        path: str | Path,
        image_folder: str | Path,
        processor: FlashSlothProcessor,
        *,
        conversation: str = "phi2",
        max_length: int | None = None,
        skip: Collection[int] = (),
    ) -> None:
        self.path, self.processor, self.max_length = Path(path), processor, max_length
        self.template = template(conversation)
        records = read_llava_instruct(path, image_folder)
        if beyond := [number for number in skip if number >= len(records)]:
            raise UserError(f"record {beyond[0]} is to be left out of {len(records)}", path, "numbers of its records")
        self.numbers = [number for number in range(len(records)) if number not in set(skip)]
        self.samples = [records[number] for number in self.numbers]
        self.lengths = [self._checked_length(number) for number in range(len(self.samples))]

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, number: int) -> dict[str, Tensor]:
        """`input_ids` and `labels` `[tokens]`, int64, and `pixel_values` where there is an image.

        Raises:
            UserError: a broken image; names it, the file and the record.
        """
        sample, where = self.samples[number], self.where(number)
        try:
            image = sample.image()
        except UserError as error:
            raise UserError(f"{error.what}: {error.where}", where, error.expected) from error
        return self.processor.encode_conversation(
            sample.turns, image, conversation=self.template.name, max_length=self.max_length, where=where
        )

    def where(self, number: int) -> str:
        """File, number and id of a record, for messages."""
        return f"{self.path}, record {self.numbers[number]}, id {self.samples[number].id!r}"

    def _checked_length(self, number: int) -> int:
        sample, where = self.samples[number], self.where(number)
        images = sample.picture is not None
        turns = conversation_turns(sample.turns, images=images, where=where)
        self.template.check(turns, images=images, where=where)
        words = max(1, sum(len(turn.text.split()) for turn in sample.turns))
        return words + IMAGE_WORDS if images else -words
