"""The order of an epoch (sheet section 5): like LLaVA's, but for the samples that are left of both modalities.

LLaVA puts what fills no megabatch of its own into mixed ones. FlashSloth takes one sample with an image and one without
in turn there, so that every rank gets an image: its EmbQ and its SAP have something to learn from on each.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Generator

from tenfold.data.sampler import length_grouped_order


def modality_order(
    lengths: Sequence[int], batch_size: int, world_size: int, generator: Generator | None = None
) -> list[int]:
    """Indices of an epoch (golden `data`, prompts/sampler).

    Args:
        lengths: not 0; negative without an image.
        batch_size: samples of one rank in one forward pass.
        world_size: ranks.
        generator: None draws from torch's global one.

    Returns:
        Every index once.
    """
    with_image = [index for index, length in enumerate(lengths) if length > 0]
    text_only = [index for index, length in enumerate(lengths) if length < 0]
    if not (with_image and text_only):
        return length_grouped_order(lengths, batch_size, world_size, generator)
    size = batch_size * world_size
    whole: list[list[int]] = []
    left: list[list[int]] = []
    for kind in (with_image, text_only):
        grouped = length_grouped_order([abs(lengths[i]) for i in kind], batch_size, world_size, generator)
        megabatches = [[kind[i] for i in grouped[at : at + size]] for at in range(0, len(grouped), size)]
        whole += megabatches[:-1]
        left.append(megabatches[-1])
    shuffled = [whole[i] for i in torch.randperm(len(whole), generator=generator).tolist()]
    return [index for megabatch in (*shuffled, _in_turn(*left)) for index in megabatch]


def _in_turn(with_image: list[int], text_only: list[int]) -> list[int]:
    """One of each in turn, then what is left of the longer list."""
    both = min(len(with_image), len(text_only))
    pairs = [index for pair in zip(with_image, text_only, strict=False) for index in pair]
    return pairs + with_image[both:] + text_only[both:]
