"""Scores of sets of pictures from their features: Frechet and kernel distance, cosines, flatness of depth.

A distance says nothing without its protocol (how many pictures, which real ones, which truncation and cameras): the
released weights were published at FID 12.46 and measured by others, with 3,000 pictures, at 70.89.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import linalg

from tenfold import UserError

Features = NDArray[np.floating]


def _checked(*sets: Features) -> list[NDArray[np.float64]]:
    checked = [np.asarray(one, dtype=np.float64) for one in sets]
    for one in checked:
        if one.ndim != 2 or len(one) < 2 or one.shape[1] != checked[0].shape[1]:
            raise UserError(f"features of shape {list(one.shape)}", "scores", "two sets [N >= 2, d] of equal d")
        if not np.isfinite(one).all():
            raise UserError("features that are not finite", "scores", "numbers")
    return checked


def frechet_distance(real: Features, made: Features, divisor: int = 0) -> float:
    """Frechet distance of two Gaussians fitted to features [N, d] and [M, d].

    Args:
        divisor: covariances divide by N - divisor; 0 as the reference's, 1 as most libraries'.
    """
    real, made = _checked(real, made)
    a, b = (np.atleast_2d(np.cov(one, rowvar=False, ddof=divisor)) for one in (real, made))
    root = linalg.sqrtm(a @ b)
    between = np.square(real.mean(0) - made.mean(0)).sum()
    return float(np.real(between + np.trace(a + b - 2 * root)))


def kernel_distance(real: Features, made: Features, subsets: int = 100, size: int = 1000, seed: int = 0) -> float:
    """Kernel distance with (x.y / d + 1)^3: the unbiased estimate, mean over subsets drawn without replacement.

    Args:
        size: of a subset, at most; smaller where a set is. seed: of the draws: made first, then real (the
            reference's order).
    """
    real, made = _checked(real, made)
    size = min(size, len(real), len(made))
    draw, d, values = np.random.RandomState(seed), real.shape[1], 0.0
    for _ in range(subsets):
        x = made[draw.choice(len(made), size, replace=False)]
        y = real[draw.choice(len(real), size, replace=False)]
        same = (x @ x.T / d + 1) ** 3 + (y @ y.T / d + 1) ** 3
        across = (x @ y.T / d + 1) ** 3
        values += (same.sum() - np.trace(same)) / (size - 1) - across.sum() * 2 / size
    return float(values / subsets / size)


def pair_cosine(features: Features) -> float:
    """Mean cosine over the pairs of views of one face: [V, d], V >= 2. Of face embeddings, this is our MVIC."""
    (features,) = _checked(features)
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    cosines = unit @ unit.T
    return float(cosines[np.triu_indices(len(unit), 1)].mean())


def flatness(depth: Features, near: float, far: float, mask: NDArray[np.bool_] | None = None) -> float:
    """Standard deviation of depth over the face, relative to the range between near and far; 0 is a flat wall.

    Args:
        depth: [..., H, W] z-depths; mask: where the face is, e.g. where little light passes; default: everywhere.
    """
    depth = np.asarray(depth, dtype=np.float64)
    if not np.isfinite(depth).all():
        raise UserError("depths that are not finite", "flatness", "numbers")
    values = depth[mask] if mask is not None else depth.ravel()
    return float(values.std() / (far - near)) if values.size else 0.0
