"""What edits are measured by: mask IoU, change inside and outside of a mask, Frechet distances.

The authors publish no metric code; where the paper does not state a protocol, the definition here is ours and says so.
Numbers are shares and distances as they are: the tables of papers give IoU and LPIPS times 100.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from inst_diff_edit.resize import resize

# Masks are compared at the edge of Stable Diffusion's pictures, and at that of the masks themselves.
LARGE, SMALL = 512, 64
WHITE = 128


def mask_ious(predicted: np.ndarray, human: np.ndarray) -> dict[str, float]:
    """How well a mask agrees with a human's, by our protocol.

    Args:
        predicted: ``[rows, columns]`` uint8 (0 or 255), as the mask stage ends with it: 64 x 64 at 512 pixels.
        human: ``[height, width]`` bool, of any size.

    Returns:
        "iou": at 512 x 512, the human mask by nearest neighbour, the predicted one by Pillow's bicubic filter and cut
        at 128, as it is handed to inpainting. "iou_64": at 64 x 64, where a pixel of the human mask counts when at
        least half of its area does.
    """
    return {
        "iou": iou(enlarged(predicted, LARGE), nearest(human, LARGE, LARGE)),
        "iou_64": iou(by_area(predicted >= WHITE, SMALL), by_area(human, SMALL)),
    }


def iou(first: np.ndarray, second: np.ndarray) -> float:
    """Intersection over union of two bool arrays; of two empty ones: 1."""
    union = np.logical_or(first, second).sum()
    return float(np.logical_and(first, second).sum() / union) if union else 1.0


def enlarged(mask: np.ndarray, edge: int) -> np.ndarray:
    """A mask ``[rows, columns]`` uint8 as bool ``[edge, edge]``: Pillow's bicubic filter, cut at 128."""
    return resize(torch.from_numpy(np.array(mask)), edge, edge).numpy() >= WHITE


def nearest(mask: np.ndarray, height: int, width: int) -> np.ndarray:
    """A bool mask as bool ``[height, width]``, each pixel from the nearest one."""
    image = Image.fromarray(mask.astype(np.uint8) * 255)
    return np.asarray(image.resize((width, height), Image.Resampling.NEAREST)) >= WHITE


def by_area(mask: np.ndarray, edge: int) -> np.ndarray:
    """A bool mask as bool ``[edge, edge]``: pixels of which at least half the area is in the mask."""
    share = functional.interpolate(torch.from_numpy(mask).float()[None, None], size=(edge, edge), mode="area")
    return (share[0, 0] >= 0.5).numpy()


def inside_outside(changes: Tensor, mask: np.ndarray) -> tuple[float, float]:
    """The mean change inside and outside of a mask; nan where there is no such pixel.

    Args:
        changes: ``[height, width]``, e.g. of `Lpips.maps`.
        mask: ``[rows, columns]`` bool, taken to the size of ``changes`` by nearest neighbour.
    """
    inside = torch.from_numpy(nearest(mask, *changes.shape)).to(changes.device)
    return changes[inside].double().mean().item(), changes[~inside].double().mean().item()


@dataclass(frozen=True)
class Gaussian:
    """Mean ``[width]`` and covariance ``[width, width]`` (or variances ``[width]``) of features, float64."""

    mean: Tensor
    covariance: Tensor


def gaussian(features: Tensor, diagonal: bool = False) -> Gaussian:
    """The Gaussian of features ``[pictures, width]``, divided by pictures - 1; a single picture has no spread."""
    features = features.double()
    mean = features.mean(0)
    centred = features - mean
    count = max(len(features) - 1, 1)
    return Gaussian(mean, centred.square().sum(0) / count if diagonal else centred.T @ centred / count)


def frechet_distance(first: Gaussian, second: Gaussian) -> float:
    """The (squared) Frechet distance of two Gaussians: ``|m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2))``.

    With variances in place of covariances: of Gaussians with diagonal covariance, where the trace is
    ``sum((s1 - s2)^2)`` over standard deviations.
    """
    apart = (first.mean - second.mean).square().sum()
    if first.covariance.ndim == 1:
        spread = (first.covariance.sqrt() - second.covariance.sqrt()).square().sum()
        return (apart + spread).item()
    # The eigenvalues of C1 C2 are those of the symmetric A C2 A with A = C1^(1/2).
    root = square_root(first.covariance)
    between = torch.linalg.eigvalsh(root @ second.covariance @ root).clamp(min=0).sqrt().sum()
    return (apart + first.covariance.trace() + second.covariance.trace() - 2 * between).item()


def square_root(matrix: Tensor) -> Tensor:
    """The symmetric square root of a symmetric positive semidefinite ``[width, width]`` matrix."""
    values, vectors = torch.linalg.eigh(matrix)
    return (vectors * values.clamp(min=0).sqrt()) @ vectors.T


def fid(edited: Tensor, real: Tensor) -> float:
    """Frechet inception distance of two sets of features, ``[pictures, width]`` each."""
    return frechet_distance(gaussian(edited), gaussian(real))


def csfid(edited: Mapping[str, Tensor], real: Mapping[str, Tensor]) -> float:
    """Class-conditional simplified FID: the Frechet distance with diagonal covariances, averaged over target classes.

    Args:
        edited, real: target class -> features ``[pictures, width]``; ``real`` has every class of ``edited``.
    """
    distances = [
        frechet_distance(gaussian(features, diagonal=True), gaussian(real[name], diagonal=True))
        for name, features in edited.items()
    ]
    return sum(distances) / len(distances)
