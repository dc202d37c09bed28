"""From a record to what a host reads: the prompt of LLaVA's template, token ids, labels, pixels.

Labels are -100 up to the answer, so a prompt is what stands before the first label. Batches of a training are padded on
the right, those of an evaluation on the left.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from eas.data.records import Record
from tenfold import UserError
from tenfold.data.conversation import get_conversation
from tenfold.hosts.answers import pad_to_square

SYSTEM = f"{get_conversation('vicuna_v1').system} "
IGNORED = -100


class Encoder:
    """Writes prompts and encodes them for one host.

    Args:
        processor: of a LLaVA host.
        pad: pad pictures to a square of the mean colour, as LLaVA-1.5 does (AID, Slake); else the processor's own
            resize and crop (ScienceQA).
        max_length: tokens of a sample, its visual ones included; what is longer is refused, never cut.
    """

    def __init__(self, processor: Any, *, pad: bool = True, max_length: int = 2048) -> None:
        self.processor, self.pad, self.max_length = processor, pad, max_length
        tokenizer = processor.tokenizer
        # The mini host has no words for the system sentence: it was trained without.
        known = tokenizer.unk_token_id not in tokenizer(SYSTEM, add_special_tokens=False)["input_ids"]
        self.system = SYSTEM if known else ""
        self.end = tokenizer.eos_token
        self.pad_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.unk_token_id

    def prompt(self, record: Record) -> str:
        """The prompt in the form ``vicuna_v1``."""
        mark = f"{self.processor.image_token}\n" if record.image is not None else ""
        return f"{self.system}USER: {mark}{record.question} ASSISTANT:"

    def sample(self, record: Record) -> dict[str, Tensor]:
        """``input_ids``, ``labels`` ``[tokens]``, and ``pixel_values`` ``[3, height, width]`` where there is a picture.

        Raises:
            UserError: a broken picture; a sample that is too long.
        """
        picture = self._picture(record)
        prompt = self._ids(self.prompt(record), picture)
        whole = self._ids(f"{self.prompt(record)} {record.answer}{self.end}", picture)
        if len(whole["input_ids"]) > self.max_length:
            expected = f"at most {self.max_length}: data.max_length"
            raise UserError(f"{len(whole['input_ids'])} tokens", f"record {record.id}", expected)
        labels = whole["input_ids"].clone()
        labels[: len(prompt["input_ids"])] = IGNORED
        return {**whole, "labels": labels}

    def question(self, record: Record) -> dict[str, Tensor]:
        """The prompt alone, encoded."""
        return self._ids(self.prompt(record), self._picture(record))

    def collate(self, samples: Sequence[dict[str, Tensor]], side: str = "right") -> dict[str, Tensor]:
        """A batch: ids, labels and mask ``[batch, tokens]``, pixels of the rows that have a picture."""
        width = max(len(sample["input_ids"]) for sample in samples)
        fills = {"input_ids": self.pad_id, "labels": IGNORED, "attention_mask": 0}
        batch: dict[str, Tensor] = {}
        for name, fill in fills.items():
            if name not in samples[0]:
                continue
            rows = []
            for sample in samples:
                gap = (0, width - len(sample[name])) if side == "right" else (width - len(sample[name]), 0)
                rows.append(torch.nn.functional.pad(sample[name], gap, value=fill))
            batch[name] = torch.stack(rows)
        pixels = [sample["pixel_values"] for sample in samples if "pixel_values" in sample]
        if pixels:
            batch["pixel_values"] = torch.stack(pixels)
        return batch

    def _picture(self, record: Record) -> Image.Image | None:
        picture = record.picture()
        if picture is None or not self.pad:
            return picture
        mean = getattr(self.processor.image_processor, "image_mean", None) or (0.5, 0.5, 0.5)
        return pad_to_square(picture, mean)

    def _ids(self, text: str, picture: Image.Image | None) -> dict[str, Tensor]:
        encoded = self.processor(images=None if picture is None else [picture], text=[text], return_tensors="pt")
        found = {name: encoded[name][0] for name in ("input_ids", "attention_mask")}
        if picture is not None:
            found["pixel_values"] = encoded["pixel_values"][0]
        return found
