"""Recall at k of retrieval between images and texts, as Flickr30k and COCO are reported (Karpathy, Li 2015)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tenfold.errors import UserError

CUTOFFS = (1, 5, 10)


def retrieval_recall(scores: Any, owners: Sequence[int], cutoffs: Sequence[int] = CUTOFFS) -> dict[str, float]:
    """Share of queries whose right partner is among the k of the highest score; of equal scores the earlier is first.

    Args:
        scores: ``[images, texts]``, higher for pairs that go together.
        owners: of every text, the row of its image; an image may own several texts, each of them right for it.
        cutoffs: the k.

    Returns:
        ``IR@k`` (a text looks for its image) and ``TR@k`` (an image looks for one of its texts), in [0, 1].

    Raises:
        UserError: no scores, not one owner a text, an owner that is no row, an image without text, or a score that is
            not a number.
    """
    table = np.asarray(scores, dtype=np.float64)
    if table.ndim != 2 or not table.size or len(owners) != table.shape[1]:
        raise UserError(f"scores {list(table.shape)} for {len(owners)} texts", "retrieval", "[images, texts]")
    if not np.isfinite(table).all():
        raise UserError("a score that is not finite", "retrieval", "numbers")
    right = np.asarray(owners)
    if set(right.tolist()) != set(range(len(table))):
        raise UserError("texts of unknown images, or images without texts", "retrieval", "a row for every text's image")
    most = max(cutoffs)
    images = np.argsort(-table, axis=0, kind="stable")[:most]  # [k, texts]
    texts = np.argsort(-table, axis=1, kind="stable")[:, :most]  # [images, k]
    found_image = images == right
    found_text = right[texts] == np.arange(len(table))[:, None]
    recall = {f"IR@{k}": float(found_image[:k].any(axis=0).mean()) for k in cutoffs}
    return recall | {f"TR@{k}": float(found_text[:, :k].any(axis=1).mean()) for k in cutoffs}
