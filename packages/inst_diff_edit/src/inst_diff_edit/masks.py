"""The instant mask: from cross-attention maps of one step to a binary mask, for a batch of images on one device.

The attention to the start token, inverted, points at the subject. The word whose map is most like it is the reference;
words like the reference are the object, words unlike it the background. Object minus background, blurred and cut at a
threshold, is the mask. Roles are decided in the first step and kept.

    weights, is_word = stack_weights([split_words(tokenizer, "a red raccoon")], positions=77)
    found = instant_mask(attention, weights, is_word, threshold=0.2)
    found.mask  # [images, 64, 64] uint8, 0 or 255

Pictures are 8-bit on the way, as in the authors' code: decisions at the threshold depend on it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional

from inst_diff_edit.resize import resize

OBJECT, BACKGROUND, NEITHER = 1, -1, 0
# Word maps are worked on at four times the edge of the attention maps: 16 -> 64 at 512 pixels.
ENLARGEMENT = 4
# OpenCV's fixed kernel for size 5; not the Gaussian of the same width.
KERNEL = (1 / 16, 4 / 16, 6 / 16, 4 / 16, 1 / 16)


@dataclass(frozen=True)
class InstantMask:
    """A batch of masks and what led to them.

    Attributes:
        pictures: ``[images, words + 2, height, width]`` uint8, stretched; row 0 is the inverted start token, the row
            after the last word the end token, rows after that are padding.
        start_similarity, reference_similarity: ``[images, words + 2]`` float64, cosine to the inverted start picture
            and to the reference word's; zero where roles were given or nothing is compared.
        roles: ``[images, words + 2]`` int8: 1 object, -1 background, 0 neither.
        refined: ``[images, height, width]`` float32 in [0, 1].
        soft: ``[images, height, width]`` uint8, after the blur.
        mask: ``[images, height, width]`` uint8, 0 or 255.
    """

    pictures: Tensor
    start_similarity: Tensor
    reference_similarity: Tensor
    roles: Tensor
    refined: Tensor
    soft: Tensor
    mask: Tensor


def instant_mask(
    attention: Tensor,
    weights: Tensor,
    is_word: Tensor,
    *,
    threshold: float = 0.2,
    object_threshold: float = 0.9,
    background_threshold: float = 0.6,
    roles: Tensor | None = None,
    size: tuple[int, int] | None = None,
) -> InstantMask:
    """The masks of a batch of images.

    Args:
        attention: ``[images, rows, columns, positions]`` float, mean over layers, heads, samples and steps so far.
        weights: ``[images, words + 2, positions]``, from `stack_weights`.
        is_word: ``[images, words + 2]`` bool.
        threshold: of the binary mask, in [0, 1].
        object_threshold: words at least this similar to the reference are the object.
        background_threshold: words at most this similar are background.
        roles: of an earlier step; None: decide them now.
        size: rows and columns of the masks; default: four times the attention maps' edges.
    """
    pictures = word_pictures(attention, weights, size)
    images, rows = is_word.shape
    start_similarity = reference_similarity = torch.zeros(images, rows, dtype=torch.float64, device=attention.device)
    if roles is None:
        roles, start_similarity, reference_similarity = decide_roles(
            pictures, is_word, object_threshold, background_threshold
        )
    refined = refine(pictures, roles)
    blurred = stretch(blur(blur(refined)))
    soft = (255 * blurred).to(torch.uint8)
    mask = (blurred > threshold).to(torch.uint8) * 255
    return InstantMask(pictures, start_similarity, reference_similarity, roles, refined, soft, mask)


def word_pictures(attention: Tensor, weights: Tensor, size: tuple[int, int] | None = None) -> Tensor:
    """One picture per word, start and end token: ``[images, words + 2, height, width]`` uint8.

    The start token's is inverted; then each is stretched to 0..255 by itself, so how strong a word's attention is
    in all does not count.
    """
    rows, columns = attention.shape[1:3]
    maps = torch.einsum("iwt,ihct->iwhc", weights.float(), attention.float())  # [images, words + 2, rows, columns]
    largest = maps.amax((2, 3), keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)
    height, width = size or (ENLARGEMENT * rows, ENLARGEMENT * columns)
    pictures = resize((255 * maps / largest).to(torch.uint8), height, width)
    pictures = torch.cat([255 - pictures[:, :1], pictures[:, 1:]], 1)
    return (stretch(pictures.float() / 255) * 255).to(torch.uint8)


def decide_roles(
    pictures: Tensor, is_word: Tensor, object_threshold: float, background_threshold: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Which words are the object and which the background.

    Returns:
        Roles ``[images, words + 2]`` int8, cosine to the inverted start picture, cosine to the reference word. A
        prompt of one word has that word as its object. Where no word has anything in common with the start
        picture there is no reference, and every role is 0.
    """
    flat = pictures.flatten(2).double()  # [images, words + 2, pixels]
    unit = flat / flat.norm(dim=2, keepdim=True).clamp(min=torch.finfo(torch.float64).tiny)
    start_similarity = torch.einsum("iwp,ip->iw", unit, unit[:, 0])
    words_only = start_similarity.masked_fill(~is_word, -1.0)
    reference = words_only.argmax(1, keepdim=True)  # [images, 1]; the first of equals
    found = words_only.gather(1, reference) > 0
    like = torch.einsum("iwp,ip->iw", unit, unit.gather(1, reference[..., None].expand(-1, -1, unit.shape[2]))[:, 0])
    like = like.scatter(1, reference, 1.0)  # exactly
    roles = torch.zeros_like(is_word, dtype=torch.int8)
    roles = roles.masked_fill(like >= object_threshold, OBJECT).masked_fill(like <= background_threshold, BACKGROUND)
    # One word: its own picture is the map, whatever the start token says.
    alone = is_word.sum(1, keepdim=True) == 1
    roles = (roles * found).masked_fill(alone, OBJECT)
    return (roles * is_word).to(torch.int8), start_similarity, like


def refine(pictures: Tensor, roles: Tensor) -> Tensor:
    """Object minus background: ``[images, height, width]`` float32 in [0, 1]."""
    values = pictures.float() / 255
    objects = stretch(_mean_of(values, roles == OBJECT)[:, None])[:, 0]
    background = stretch(_mean_of(values, roles == BACKGROUND)[:, None])[:, 0]  # zero where there is none
    return (objects - background).clamp(min=0)


def _mean_of(values: Tensor, chosen: Tensor) -> Tensor:
    """Mean of the chosen pictures, zero where none is chosen."""
    weights = chosen.float()
    total = (values * weights[..., None, None]).sum(1)
    return total / weights.sum(1).clamp(min=1)[:, None, None]


def stretch(values: Tensor) -> Tensor:
    """Each picture to [0, 1] by its own smallest and largest value; a constant one to 0."""
    low, high = values.amin((-2, -1), keepdim=True), values.amax((-2, -1), keepdim=True)
    spread = high - low
    return (values - low) / torch.where(spread > 0, spread, torch.ones_like(spread))


def blur(values: Tensor, kernel: tuple[float, ...] = KERNEL) -> Tensor:
    """A separable blur with mirrored edges: ``[images, height, width]`` float32."""
    taps = _taps(kernel, values.dtype, values.device)
    reach = len(kernel) // 2
    padded = functional.pad(values[:, None], (reach, reach, reach, reach), mode="reflect")
    across = functional.conv2d(padded, taps.view(1, 1, 1, -1))
    return functional.conv2d(across, taps.view(1, 1, -1, 1))[:, 0]


@lru_cache(maxsize=8)
def _taps(kernel: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """The kernel on a device, copied there once: a copy in every step would make the host wait for the device."""
    return torch.tensor(kernel, dtype=dtype, device=device)
