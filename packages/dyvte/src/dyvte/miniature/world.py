"""Questions for the miniature: of kinds that need one look at the picture, or several."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from PIL import Image

from tenfold.data import mini_gate, mini_host, miniworld

KINDS = ("shape", "colour", "place", "two_hop", "yes_no")
# Standard deviation of the noise that is added to normalised pixels: the host is at its ceiling without.
SIGMA = 0.75


@dataclass(frozen=True)
class Asked:
    """One question.

    Attributes:
        kind: one of `KINDS`.
        image: the picture.
        prompt: as the host reads it.
        answer: one word.
    """

    kind: str
    image: Image.Image
    prompt: str
    answer: str


def asked(seed: int, count: int) -> list[Asked]:
    """``count`` questions of each kind, one a scene, of the world ``seed``; kind after kind."""
    return [
        Asked(
            kind,
            miniworld.render(scene, mini_host.IMAGE_SIZE),
            mini_host.prompt(question.text),
            question.answer,
        )
        for kind in KINDS
        for scene, question in mini_gate.asked(kind, seed, count)
    ]


def noise(shape: torch.Size, seed: int, index: int) -> torch.Tensor:
    """Noise for the pixels of question ``index``: the same in every arm."""
    from tenfold.runs import sample_generator

    return SIGMA * torch.randn(shape, generator=sample_generator(seed, 0, index))
