"""Sparse scenes of the mini world for the miniature: three or four objects, so that most patches are empty.

With three or four objects of a patch each, tokens that may be skipped differ clearly from those that may not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from tenfold.data import mini_host, miniworld
from tenfold.data.mini_probes import LEARNT
from tenfold.data.miniworld import flag_questions, flags
from tenfold.runs import sample_rng

LEAST, MOST = 3, 4
# What the mini host has learnt to answer: all kinds but counting and yes or no.
KINDS = LEARNT
IGNORED = -100


@dataclass(frozen=True)
class Sample:
    """A question about a scene.

    Attributes:
        image: the picture. occupied: ``[visual tokens]`` bool, patches that show an object or its flag.
        question, answer: in words; the answer is one.
    """

    image: Image.Image
    occupied: Tensor
    question: str
    answer: str


def samples(world: int, first: int, count: int, noise: int) -> list[Sample]:
    """Question ``first``, ``first + 1``, ... of a world, one a scene.

    Args:
        noise: standard deviation of the picture's noise, in grey levels.
    """
    found = []
    for index in range(first, first + count):
        draws = miniworld.Draws(sample_rng(world, 0, index).bit_generator)
        scene = flags.draw_scene(draws, LEAST, MOST)
        question = None
        while question is None:
            question = flag_questions.draw_question(scene, draws, KINDS)
        image = flags.render(scene, noise=noise)
        found.append(Sample(image, _occupied(scene), question.text, question.answer))
    return found


def encode(processor: Any, chosen: Sequence[Sample], *, answers: bool) -> dict[str, Tensor]:
    """A batch, one question a row, padded on the right.

    Args:
        answers: with the answer behind each question and labels on it, for training.

    Returns:
        ``input_ids``, ``attention_mask``, ``pixel_values``, with answers ``labels``; ``occupied [batch, tokens]`` bool,
        True at text; ``last [batch]``, the column that predicts the answer.
    """
    tokenizer = processor.tokenizer
    image_id = tokenizer.convert_tokens_to_ids("<image>")
    rows = []
    for sample in chosen:
        text = mini_host.prompt(sample.question).replace("<image>", "<image>" * mini_host.VISUAL_TOKENS)
        ids = tokenizer(text)["input_ids"]
        end = tokenizer(sample.answer, add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id]
        rows.append((ids, end if answers else []))
    width = max(len(ids) + len(end) for ids, end in rows)
    shape = (len(rows), width)
    batch = {
        "input_ids": torch.full(shape, tokenizer.pad_token_id),
        "attention_mask": torch.zeros(shape, dtype=torch.long),
        "labels": torch.full(shape, IGNORED),
        "occupied": torch.ones(shape, dtype=torch.bool),
    }
    last = []
    for row, ((ids, end), sample) in enumerate(zip(rows, chosen, strict=True)):
        whole = torch.tensor(ids + end)
        batch["input_ids"][row, : len(whole)] = whole
        batch["attention_mask"][row, : len(whole)] = 1
        batch["labels"][row, len(ids) : len(whole)] = whole[len(ids) :]
        batch["occupied"][row, : len(whole)][whole == image_id] = sample.occupied
        last.append(len(ids) - 1)
    batch["last"] = torch.tensor(last)
    batch["pixel_values"] = processor.image_processor([sample.image for sample in chosen], return_tensors="pt")[
        "pixel_values"
    ]
    return batch


def answer_ids(processor: Any, chosen: Sequence[Sample]) -> Tensor:
    """The first token of every answer, ``[batch]``."""
    return torch.tensor([processor.tokenizer(one.answer, add_special_tokens=False)["input_ids"][0] for one in chosen])


def _occupied(scene: flags.FlagScene) -> Tensor:
    shown = torch.zeros(mini_host.VISUAL_TOKENS, dtype=torch.bool)
    for thing in scene.things:
        own, flag = thing.patches
        shown[own] = True
        shown[flag] |= thing.next is not None
    return shown
