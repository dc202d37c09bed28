"""Training data (section 6): LLaVA's json of conversations, as a host's own processor encodes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from gamma_mod.data.prompts import collate, encode_conversation
from tenfold.data import instruct
from tenfold.data.sampler import EpochOrder, ModalityLengthSampler


class HostProcessor:
    """A host's processor as `tenfold.data.instruct` asks it: by protocol, not by a template of tenfold's.

    Args:
        processor: of the host.
        protocol: `gamma_mod.data.prompts.PROTOCOLS`.
    """

    conversation = "vicuna_v1"  # whose rules of turns (a question, its answer, and so on) hold for all hosts

    def __init__(self, processor: Any, protocol: str) -> None:
        self.processor, self.protocol, self.tokenizer = processor, protocol, processor.tokenizer

    def encode_conversation(
        self,
        conversations: Sequence[Any],
        images: Any = None,
        *,
        conversation: str | None = None,
        max_length: int | None = None,
        where: str | None = None,
    ) -> dict[str, Tensor]:
        """Turns and an image (or None) as `gamma_mod.data.prompts.encode_conversation` writes them."""
        return encode_conversation(
            self.processor, conversations, images, max_length=max_length, protocol=self.protocol, where=where
        )


class InstructData(instruct.InstructData):
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
        super().__init__(path, images, HostProcessor(processor, protocol), max_length=max_length)


class Collator:
    """Samples to a batch; a class, so that worker processes can be started with it."""

    def __init__(self, pad_token_id: int) -> None:
        self.pad_token_id = pad_token_id

    def __call__(self, samples: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
        return collate(samples, self.pad_token_id)


def order_of(data: InstructData, *, count: int, batch: int, per_device: int, seed: int, grouped: bool) -> EpochOrder:
    """The samples of each epoch: a shuffle, or batches of one modality and of like length.

    Args:
        count: how many an epoch has.
        batch: samples of an optimiser step, over all ranks: the same order however many share it.
        per_device: of those, how many a device takes at a time.
        seed: of the run.
        grouped: whether modality and length matter.
    """
    sampler = ModalityLengthSampler(data.modality_lengths, per_device, batch // per_device, seed=seed)
    return EpochOrder(len(data), count, seed, sampler if grouped else None)
