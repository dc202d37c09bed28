"""Which decoder layers become mixture-of-depths layers (section 3.2): the ones whose attention has the lowest rank.

`select_layers` reads the ranks (`gamma_mod.arank`); the other placements are the baselines of the paper's ablation.
Layers are counted from 0.

    layers = gamma_mod.select_layers(ranks)          # all but the four of highest rank
    layers = gamma_mod.place("arank_mod", 32)        # the released models' list: 3, 4, ..., 30
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from tenfold import UserError

# The four layers that stand out in Vicuna-7B and 13B are the first three and the last; the released code writes them
# down as `arank_mod` and never reads a rank.
PLACEMENTS = (
    "arank_mod",
    "dense",
    "first_five_dense",
    "first_half",
    "first_last_dense",
    "last_two_thirds",
    "second_half",
    "sparse",
)


def select_layers(
    ranks: Sequence[float], *, num_dense: int | None = None, threshold: float | None = None
) -> tuple[int, ...]:
    """The layers to convert, from their ARank (section 3.2; figure 2).

    Args:
        ranks: mean rank of every layer's attention maps, `gamma_mod.arank`.
        num_dense: how many layers of highest rank stay dense; 4 when neither is given. Of equal ranks the earlier
            layer stays dense.
        threshold: instead, layers of at least this rank stay dense.

    Raises:
        UserError: both are given, ranks are missing or not finite, or nothing is left to convert.
    """
    if num_dense is not None and threshold is not None:
        raise UserError("num_dense and threshold", "select_layers", "one of the two")
    if not ranks or not all(math.isfinite(rank) for rank in ranks):
        raise UserError("no ranks" if not ranks else "ranks that are not finite", "select_layers", "one rank a layer")
    if threshold is not None:
        layers = tuple(layer for layer, rank in enumerate(ranks) if rank < threshold)
    else:
        num_dense = 4 if num_dense is None else num_dense
        if not 0 <= num_dense < len(ranks):
            raise UserError(f"num_dense {num_dense}", "select_layers", f"0 to {len(ranks) - 1}")
        by_rank = sorted(range(len(ranks)), key=lambda layer: (-ranks[layer], layer))
        layers = tuple(sorted(by_rank[num_dense:]))
    if not layers:
        raise UserError("no layer is left to convert", f"threshold {threshold}", f"above {min(ranks):.1f}")
    return layers


def place(placement: str, num_layers: int) -> tuple[int, ...]:
    """The layers of a named placement in a decoder of ``num_layers``.

    Raises:
        UserError: an unknown placement, or one that converts nothing in so few layers.
    """
    last = num_layers - 1
    lists: dict[str, Sequence[int]] = {
        "arank_mod": range(3, last),
        "dense": range(num_layers),  # every layer is converted: the released code's word, and table 2's "all layers"
        "first_five_dense": range(5, last),
        "first_half": range(num_layers // 2),
        "first_last_dense": range(1, last),
        "last_two_thirds": range(num_layers // 3 + 2, last),
        "second_half": range(num_layers // 2, last),
        "sparse": range(0, num_layers, 2),
    }
    if placement not in lists:
        raise UserError(f"unknown placement {placement!r}", "layers", ", ".join(PLACEMENTS))
    layers = tuple(lists[placement])
    if not layers:
        raise UserError(
            f"{placement} converts nothing", f"{num_layers} layers", "a deeper decoder, or a list of layers"
        )
    return layers
