"""Losses of the two players, and the geometric regularisation (sections 3.3 and 3.5).

    L_G = mean[ (softplus(-real) + softplus(-match)) / 2 + L_clip + L_path + L_reg + L_delta ]
    L_D = (softplus(real) + softplus(match)) / 2 of generated  +  (softplus(-real) + softplus(-match)) / 2 of real

Two regularisers go by name. "paper" is the paper's, L_loc + 0.5 L_normal. "released" is what the released code
computes: it makes normals and then differences the points again, so it trains with exactly 1.5 L_loc. Which of the two
made the published numbers cannot be told.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from e3_facenet.generator import Synthesis
from e3_facenet.text import Text, TextEncoder

NORMAL_WEIGHT = 0.5
PATH_LENGTH_DECAY = 0.01
PATH_LENGTH_WEIGHT = 2.0
R1_GAMMA = 0.5


def stride_differences(field: Tensor) -> tuple[Tensor, Tensor]:
    """Differences to the next but one row and column: [B, C, H, W] -> [B, C, H - 2, W] and [B, C, H, W - 2]."""
    return field[:, :, 2:] - field[:, :, :-2], field[:, :, :, 2:] - field[:, :, :, :-2]


def smoothness(field: Tensor) -> Tensor:
    """Mean absolute difference to the next but one row, plus the same of columns: [B, C, H, W] -> []."""
    rows, columns = stride_differences(field)
    return rows.abs().mean() + columns.abs().mean()


def virtual_normals(points: Tensor) -> Tensor:
    """Surface normals of a map of points, away from the camera as released: [B, 3, H, W] -> [B, 3, H - 2, W - 2]."""
    rows, columns = stride_differences(points)
    along = F.normalize(rows, dim=1)[:, :, :, 1:-1]
    across = F.normalize(columns, dim=1)[:, :, 1:-1]
    return F.normalize(torch.cross(across, along, dim=1), dim=1)


def location_loss(points: Tensor) -> Tensor:
    """L_loc: smooth points at the expected depth; [B, 3, H, W] -> []."""
    return smoothness(points)


def normal_loss(points: Tensor) -> Tensor:
    """L_normal: smooth virtual normals; [B, 3, H, W] -> []."""
    return smoothness(virtual_normals(points))


def depth_loss(depth: Tensor) -> Tensor:
    """An early form: mean squared stride-2 differences of depth [B, H, W] -> [] (the reference's v2)."""
    rows, columns = stride_differences(depth[:, None])
    return rows.square().mean() + columns.square().mean()


def paper_regulariser(points: Tensor) -> Tensor:
    """L_reg = L_loc + 0.5 L_normal, as the paper defines it."""
    return location_loss(points) + NORMAL_WEIGHT * normal_loss(points)


def released_regulariser(points: Tensor) -> Tensor:
    """What the released training computes instead: 1.5 L_loc."""
    return (1 + NORMAL_WEIGHT) * location_loss(points)


def no_regulariser(points: Tensor) -> Tensor:
    """Zero, for ablations."""
    return points.new_zeros([])


REGULARISERS: dict[str, Callable[[Tensor], Tensor]] = {
    "paper": paper_regulariser,
    "released": released_regulariser,
    "location": location_loss,
    "normal": normal_loss,
    "none": no_regulariser,
}


def offset_loss(offsets: tuple[Tensor, ...]) -> Tensor:
    """L_delta: the mean of |dw| over all blocks; zero where there are none."""
    return torch.cat(offsets).abs().mean() if offsets else torch.zeros([])


def clip_loss(encoder: TextEncoder, images: Tensor, text: Text, rescale: bool = False) -> Tensor:
    """Picture-to-text cross entropy inside the batch, one direction.

    Args:
        images: [B, 3, R, R] in [-1, 1], which go in as they are (as released) unless `rescale` maps them to [0, 1].
    """
    scale = encoder.clip.logit_scale.exp()
    logits = scale * encoder.picture_features(images, rescale) @ F.normalize(text.t, dim=-1).T
    return F.cross_entropy(logits, torch.arange(len(images), device=images.device))


def adversarial(real: Tensor, match: Tensor, sign: float) -> Tensor:
    """Half the sum of both heads' softplus(sign x logit): [B, 1]."""
    return (F.softplus(sign * real) + F.softplus(sign * match)) / 2


def generator_parts(
    made: Synthesis,
    logits: tuple[Tensor, Tensor],
    contrast: Tensor | None = None,
    regulariser: str = "paper",
) -> dict[str, Tensor]:
    """The terms of L_G by name, each to be averaged over the batch and summed.

    Args:
        made: of a training pass. logits: the discriminator's of its pictures. contrast: `clip_loss`, or None.
    """
    parts = {
        "adversarial": adversarial(*logits, sign=-1.0),
        "regulariser": REGULARISERS[regulariser](made.points),
        "offset": offset_loss(made.offsets),
    }
    if made.path_loss is not None:
        parts["path"] = made.path_loss
    if contrast is not None:
        parts["clip"] = contrast
    return parts


def total(parts: dict[str, Tensor]) -> Tensor:
    """The sum of the terms' means: []."""
    return torch.stack([part.mean() for part in parts.values()]).sum()


def r1_penalty(image: Tensor, logits: tuple[Tensor, Tensor]) -> Tensor:
    """||d(sum real + sum match) / d image||^2 of each picture [B]: of the sum, so both heads' cross terms count.

    Args:
        image: [B, 3, R, R] that the logits were computed from, requiring gradients.
    """
    (gradient,) = torch.autograd.grad(logits[0].sum() + logits[1].sum(), image, create_graph=True)
    return gradient.square().sum(dim=(1, 2, 3))


def path_length_penalty(image: Tensor, ws: Tensor, noise: Tensor, mean: Tensor) -> tuple[Tensor, Tensor]:
    """Path-length regularisation: gradients of random pictures with respect to style codes should be of even length.

    Args:
        image: [B, 3, R, R] made from `ws` [B, num_ws, w_dim], which requires gradients.
        noise: of the image's shape, standard normal. mean: the running mean of lengths [].

    Returns:
        The penalty [B], and the new running mean [].
    """
    size = image.shape[-1] * image.shape[-2]
    (gradient,) = torch.autograd.grad((image * noise / size**0.5).sum(), ws, create_graph=True)
    lengths = gradient.square().sum(dim=2).mean(dim=1).sqrt()
    mean = mean.lerp(lengths.mean(), PATH_LENGTH_DECAY)
    return (lengths - mean).square(), mean.detach()
