"""What the paper's compression is compared with: other ways to the same number of visual tokens, and none.

    average    plain mean of a block
    shuffle    pixel-shuffle: a block's patches side by side, nine times as wide, and a linear layer back
    pick       one patch of a block, drawn once a position
    none       all patches, uncompressed

`replace_pooling(model, "average")` puts one in SAP's place; `without_embq(model)` leaves EmbQ out.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from flashsloth.modeling import FlashSlothForConditionalGeneration
from flashsloth.pooling import average_pooling, into_blocks
from tenfold import UserError


class AveragePooling(nn.Module):
    """``[views, side^2, dv] -> [views, blocks, dv]``: a block's mean."""

    def __init__(self, width: int, pool: int) -> None:
        super().__init__()
        self.pool = pool

    def forward(self, patches: Tensor) -> Tensor:
        return average_pooling(patches, self.pool)


class PixelShuffle(nn.Module):
    """``[views, side^2, dv] -> [views, blocks, dv]``: a block's patches side by side through one linear layer."""

    def __init__(self, width: int, pool: int) -> None:
        super().__init__()
        self.pool = pool
        self.linear = nn.Linear(width * pool * pool, width)

    def forward(self, patches: Tensor) -> Tensor:
        return self.linear(into_blocks(patches, self.pool).flatten(2))


class PickOne(nn.Module):
    """``[views, side^2, dv] -> [views, blocks, dv]``: of each block one patch, always the same."""

    place: Tensor

    def __init__(self, width: int, pool: int, side: int) -> None:
        super().__init__()
        self.pool = pool
        blocks = (-(-side // pool)) ** 2
        draw = torch.rand(blocks, pool * pool, generator=torch.Generator().manual_seed(0))
        inside = into_blocks(torch.ones(1, side * side, 1), pool)[0, :, :, 0]
        self.register_buffer("place", (draw * inside).argmax(dim=1), persistent=False)

    def forward(self, patches: Tensor) -> Tensor:
        blocks = into_blocks(patches, self.pool)  # [views, blocks, p*p, dv]
        return blocks[:, torch.arange(blocks.shape[1], device=blocks.device), self.place]


class NoPooling(nn.Module):
    """All patches; the model's config has ``pool`` 1."""

    def forward(self, patches: Tensor) -> Tensor:
        return patches


POOLINGS = ("sap", "average", "shuffle", "pick", "none")


def replace_pooling(model: FlashSlothForConditionalGeneration, name: str) -> None:
    """Put another pooling in SAP's place; "sap" leaves it.

    Raises:
        UserError: an unknown name, or "none" for a model that pools.
    """
    config = model.config
    width, pool = config.vision_config.hidden_size, config.pool
    if name == "none" and pool > 1:
        raise UserError("a model that pools cannot keep all patches", f"pool {pool}", "a config with pool 1")
    made: nn.Module
    if name == "sap":
        return
    if name == "average":
        made = AveragePooling(width, pool)
    elif name == "shuffle":
        made = PixelShuffle(width, pool)
    elif name == "pick":
        made = PickOne(width, pool, config.grid)
    elif name == "none":
        made = NoPooling()
    else:
        raise UserError("unknown pooling", name, ", ".join(POOLINGS))
    model.model.pooling = made.to(model.device, model.dtype)


class _Off(nn.Module):
    """In EmbQ's place: queries as they came."""

    def forward(self, queries: Tensor, *_: Tensor | None) -> Tensor:
        return queries


def without_embq(model: FlashSlothForConditionalGeneration) -> None:
    """Leave EmbQ out for good; the query tokens stay, so that sequences are as long as before."""
    model.model.embq = _Off()


CONTROLS = ("blind", "other question", "other image")


@contextmanager
def control(model: FlashSlothForConditionalGeneration, name: str) -> Iterator[None]:
    """EmbQ without its look, or with the question or the image of the batch's row before, while the context is open.

    Args:
        name: one of CONTROLS.
    """

    def change(_: nn.Module, given: tuple[Tensor | None, ...]) -> tuple[Tensor | None, ...]:
        queries, text, text_mask, patches, patch_mask = given
        assert text is not None and text_mask is not None and patches is not None
        if name == "other question":
            return queries, text.roll(1, 0), text_mask.roll(1, 0), patches, patch_mask
        return queries, text, text_mask, patches.roll(1, 0), patch_mask

    if name not in CONTROLS:
        raise UserError("unknown control", name, ", ".join(CONTROLS))
    if name == "blind":
        handle = model.model.embq.register_forward_hook(lambda _, given, __: given[0])
    else:
        handle = model.model.embq.register_forward_pre_hook(change)
    try:
        yield
    finally:
        handle.remove()
