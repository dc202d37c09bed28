"""What a gate reads (section 3.2): the running states of the prompt, pooled into one vector.

With ``X`` the residual stream after a layer (not normed) at the text after the image, T rows of the prompt alone,

    x = [ mean(X[0 : T-1]) ; X[T-1] ]

The paper says "all text tokens"; in the released code the text before the image is not in the mean, and that is what
its numbers come from. The text block is taken row by row: what follows the row's last visual token, without padding.
Text between two images is in no mean. The visual states of the ablation (tables 4 and 7) are pooled alike.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dyvte.gates import DEFAULT_STATES


def text_block(visual: Tensor, real: Tensor | None = None) -> Tensor:
    """The text after the last visual token of every row.

    Args:
        visual: ``[batch, tokens]`` bool.
        real: ``[batch, tokens]`` bool, False at padding; None without padding.

    Returns:
        ``[batch, tokens]`` bool; empty in a row without visual tokens.
    """
    visual = visual if real is None else visual & real
    visual_follows = visual.flip(1).cumsum(1).flip(1) > 0
    block = visual.any(1, keepdim=True) & ~visual_follows
    return block if real is None else block & real


def pooled_states(
    hidden: Tensor, text: Tensor, visual: Tensor | None = None, states: Sequence[str] = DEFAULT_STATES
) -> Tensor:
    """The gate's input for every row.

    Args:
        hidden: ``[batch, tokens, width]``, the residual stream after a layer.
        text: ``[batch, tokens]`` bool, the prompt's text block (`text_block`), no answer tokens.
        visual: ``[batch, tokens]`` bool; needed for visual states only.
        states: which, in the order of `dyvte.gates.STATES`.

    Returns:
        ``[batch, len(states) * width]`` in the dtype of ``hidden``. The mean of a block of one token is of nothing:
        NaN, which no gate takes for an exit.
    """
    parts = []
    for state in states:
        block = text if state.endswith("text") else visual
        assert block is not None
        parts.append(_last(hidden, block) if state.startswith("last") else _mean_but_last(hidden, block))
    return torch.cat(parts, dim=-1)


def _ends(block: Tensor) -> Tensor:
    """The last marked column of every row, ``[batch, tokens]`` bool."""
    return block & (block.cumsum(1) == block.sum(1, keepdim=True))


def _last(hidden: Tensor, block: Tensor) -> Tensor:
    column = _ends(block).to(torch.uint8).argmax(1)  # [batch]
    return hidden.gather(1, column[:, None, None].expand(-1, 1, hidden.shape[-1]))[:, 0]


def _mean_but_last(hidden: Tensor, block: Tensor) -> Tensor:
    others = block & ~_ends(block)
    # In float32 whatever the host runs in, and without 0 x inf where padding or an image holds no finite number.
    summed = torch.where(others[..., None], hidden, 0).sum(1, dtype=torch.float32)
    return (summed / others.sum(1, keepdim=True)).to(hidden.dtype)
