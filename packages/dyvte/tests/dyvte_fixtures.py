"""Pieces that several tests share."""

import functools

import torch
from dyvte_reference import spread_gates

from tenfold.testing.hosts import Prompts, build

THRESHOLD = 10.0  # spreads the exits of `spread_gates` over all layers
SPECIAL = [0, 3, 4, 7, 8, 9]  # padding and placeholders: a random model would generate them


@functools.cache
def host(name="llava", attention="sdpa"):
    """A tiny host and gates for it."""
    model = build(name, attention)
    return model, spread_gates(model, seed=1)


def rows(name="llava", lengths=(6, 3, 9), padding="left"):
    """A batch of prompts with one image each."""
    return Prompts(name).batch([[("image", 4), length] for length in lengths], padding)


def single(inputs, row):
    """One row of a llava batch, without its padding."""
    real = inputs["attention_mask"][row].bool()
    return {
        "input_ids": inputs["input_ids"][row][real][None],
        "attention_mask": inputs["attention_mask"][row][real][None],
        "pixel_values": inputs["pixel_values"][row : row + 1],
    }


def answered(model, inputs, answer=2, padding="right"):
    """Inputs with the last ``answer`` tokens of every row as its answer, and the labels."""
    labels = torch.full_like(inputs["input_ids"], -100)
    for row, mask in enumerate(inputs["attention_mask"]):
        columns = mask.nonzero()[:, 0][-answer:]
        labels[row, columns] = inputs["input_ids"][row, columns]
    return inputs, labels
