"""Where EmbQ acts in a batch (sheet section 3.6): which queries read which question and which images.

Made once a prefill, from the input ids, on the host; then applied to the hidden states in one piece: all reads come
before any write, so that rounds do not see each other's update.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from flashsloth.configuration import FlashSlothConfig
from flashsloth.embq import EmbeddedQuery
from flashsloth.questions import Round, rounds
from tenfold.hosts.attached import present


@dataclass(frozen=True)
class ImageFeatures:
    """What the model sees of images.

    Attributes:
        patches: the vision tower's output, which EmbQ reads, ``[images, n, dv]``.
        visual_tokens: pooled and projected, which the language model reads, ``[images, Nv, d]``.
    """

    patches: Tensor
    visual_tokens: Tensor

    def __len__(self) -> int:
        return len(self.patches)

    def __getitem__(self, images: Tensor) -> ImageFeatures:
        """Some of the images, in the order of ``images``."""
        return ImageFeatures(
            self.patches[images.to(self.patches.device)], self.visual_tokens[images.to(self.visual_tokens.device)]
        )


@dataclass(frozen=True)
class KeptImages:
    """Patches that stay with a KV cache, for the questions of later turns.

    Attributes:
        patches: ``[images, n, dv]``, row after row.
        counts: images of each row.
    """

    NAME: ClassVar = "flashsloth_images"  # attribute of the cache that holds them

    patches: Tensor
    counts: tuple[int, ...]


@dataclass(frozen=True)
class Plan:
    """Queries, questions and patches of a batch, as indices; one entry a row that has an image and a question.

    Attributes:
        rows: ``[rows]``, rows of the batch.
        queries: positions of query tokens, ``[rows, rounds, K]``.
        asked: true at the rounds that exist, ``[rows, rounds]``.
        text: positions of the questions' tokens, ``[rows, rounds, t]``.
        text_mask: true where there is one, ``[rows, rounds, t]``.
        patches: ``[rows, n, dv]``, the row's images one after the other.
        patch_mask: true at what a round may read, ``[rows, rounds, n]``; None: everything.
    """

    rows: Tensor
    queries: Tensor
    asked: Tensor
    text: Tensor
    text_mask: Tensor
    patches: Tensor
    patch_mask: Tensor | None


def look_up(
    input_ids: Tensor,
    features: ImageFeatures | None,
    kept: KeptImages | None,
    config: FlashSlothConfig,
    spans: Tensor | None = None,
) -> tuple[Plan | None, KeptImages | None]:
    """The plan of a prefill, None where no question has an image before it; and the images for later turns.

    Args:
        input_ids: ``[batch, tokens]``, those of this pass.
        features: of the images in this pass.
        kept: those of earlier passes.
        spans: ``[batch, rounds, 2]``; None: by the template.

    Raises:
        UserError: a query group that is not whole, or a span short.
    """
    all_ids = input_ids.tolist()
    given = None if spans is None else spans.tolist()
    seen = _joined(all_ids, features, kept, config)
    before = (0,) * len(all_ids) if kept is None else kept.counts
    found: list[list[Round]] = []
    for row, ids in enumerate(all_ids):
        asked = rounds(ids, config, None if given is None else given[row])
        found.append([Round(one.place, one.question, one.images + before[row]) for one in asked])
    looking = [row for row, asked in enumerate(found) if any(one.images for one in asked)]
    if not looking or seen is None:
        return None, seen
    asked_of = [[one for one in found[row] if one.images] for row in looking]
    return _plan(looking, asked_of, seen, config, input_ids.device), seen


def _joined(
    all_ids: list[list[int]], features: ImageFeatures | None, kept: KeptImages | None, config: FlashSlothConfig
) -> KeptImages | None:
    """Images of earlier passes and of this one, row by row."""
    if features is None:
        return kept
    counts = tuple(ids.count(config.image_token_id) // config.num_image_tokens for ids in all_ids)
    if kept is None:
        return KeptImages(features.patches, counts)
    old = kept.patches.to(features.patches.device).split(list(kept.counts))
    new = features.patches.split(list(counts))
    patches = torch.cat([part for pair in zip(old, new, strict=True) for part in pair])
    return KeptImages(patches, tuple(a + b for a, b in zip(kept.counts, counts, strict=True)))


def _plan(
    looking: list[int], asked_of: list[list[Round]], seen: KeptImages, config: FlashSlothConfig, device: torch.device
) -> Plan:
    most = max(len(asked) for asked in asked_of)
    # A round that a row does not have is computed with its first one's numbers and not written.
    padded = [asked + asked[:1] * (most - len(asked)) for asked in asked_of]
    places = torch.tensor([[one.place for one in asked] for asked in padded])  # [rows, rounds]
    starts, ends = (torch.tensor([[one.question[i] for one in asked] for asked in padded]) for i in (0, 1))
    asked = torch.tensor([[number < len(one) for number in range(most)] for one in asked_of])
    longest = max(1, int((ends - starts).max()))
    text = starts.unsqueeze(-1) + torch.arange(longest)  # [rows, rounds, t]
    text_mask = text < ends.unsqueeze(-1)

    counts = [seen.counts[row] for row in looking]
    per_image = seen.patches.shape[1]
    if len(looking) == len(seen.patches) and set(counts) == {1}:
        patches = seen.patches  # the usual case, one image a row: nothing is copied
    else:
        by_row = seen.patches.split(list(seen.counts))
        patches = pad_sequence([by_row[row].flatten(0, 1) for row in looking], batch_first=True)
    images = torch.tensor([[one.images for one in row] for row in padded])  # [rows, rounds]
    patch_mask = None
    if int(images.min()) < max(counts):
        patch_mask = torch.arange(patches.shape[1]) < (images * per_image).unsqueeze(-1)
    return Plan(
        torch.tensor(looking, device=device),
        (places.unsqueeze(-1) + torch.arange(config.query_count)).to(device),
        asked.to(device),
        text.masked_fill(~text_mask, 0).to(device),
        text_mask.to(device),
        patches,
        None if patch_mask is None else patch_mask.to(device),
    )


def where_now(places: Tensor, rows: Tensor) -> Tensor:
    """Columns of places of the prompt, where a method has let visual tokens leave before this layer; queries and
    questions stay.

    Args:
        places: ``[rows, rounds, any]``, of the prompt. rows: ``[rows]``, of the batch.
    """
    tokens = present.get()
    if tokens is None:
        return places
    index = tokens.index.to(places.device).masked_fill(~tokens.real.to(places.device), -1)[rows]  # [rows, width]
    return (places.unsqueeze(-1) == index[:, None, None]).int().argmax(-1)


def embed_queries(embq: EmbeddedQuery, plan: Plan) -> Callable[[Tensor], Tensor]:
    """EmbQ of a plan as a step of the language model: hidden states ``[batch, tokens, d]`` -> the same, updated."""

    def step(hidden: Tensor) -> Tensor:
        device = hidden.device  # layers may lie on several
        rows = plan.rows.to(device)[:, None, None]
        places, text_mask = where_now(plan.queries, plan.rows).to(device), plan.text_mask.to(device)
        text = hidden[rows, where_now(plan.text, plan.rows).to(device)] * text_mask.unsqueeze(-1)
        mask = None if plan.patch_mask is None else plan.patch_mask.to(device)
        patches = plan.patches.to(device, hidden.dtype)
        updated = embq(hidden[rows, places], text, text_mask, patches, mask).to(hidden)
        asked = plan.asked.to(device)
        where = rows.expand_as(places)[asked], places[asked]
        return hidden.index_put(where, updated[asked])

    return step
