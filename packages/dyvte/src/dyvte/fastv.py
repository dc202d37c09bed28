"""DyVTE beside FastV (table 5, "DyVTE + FastV"): half of the visual tokens leave after the second layer, the others at
the exit.

After layer 1, unless the image has already left, the V / 2 visual tokens stay to which the prompt's last token attends
most, averaged over heads. Gates read text alone, so the same gates serve. Only the one attention row that is needed is
computed.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dyvte.observation import Observed
from dyvte.passes import ForwardPass
from tenfold import UserError
from tenfold.hosts.ragged import Tokens


@dataclass(frozen=True)
class FastV:
    """Rank-based pruning at one layer.

    Attributes:
        layer: after which, counted from 0; FastV's K = 2 is layer 1.
        ratio: share R of the visual tokens that leaves.
    """

    layer: int = 1
    ratio: float = 0.5

    def validate(self, layers: int, model: str) -> None:
        """Raises:
        UserError: no such layer, or no such share.
        """
        if not 0 <= self.layer < layers or not 0 <= self.ratio < 1:
            raise UserError(
                f"FastV after layer {self.layer} with ratio {self.ratio}",
                model,
                f"a layer below {layers} and a ratio from 0 to below 1",
            )

    def prune(self, running: ForwardPass) -> tuple[Tensor, tuple[int, ...]]:
        """The visual tokens that leave, ``[batch, width]`` bool, and their number per row."""
        tokens, observed = running.tokens, running.observed
        assert tokens is not None and observed is not None
        # A share such as 5 of 12 is a hair below itself in floating point.
        counts = tuple(visual - int(visual * (1 - self.ratio) + 1e-6) for visual in tokens.num_visual)
        score = last_text_row(observed, tokens).mean(1)  # over heads: [batch, width]
        order = score.masked_fill(~tokens.visual, torch.inf).argsort(dim=1, stable=True)
        rank = torch.empty_like(order).scatter_(
            1, order, torch.arange(order.shape[1], device=order.device).expand_as(order)
        )
        return (rank < torch.tensor(counts, device=order.device)[:, None]) & tokens.visual, counts


def last_text_row(observed: Observed, tokens: Tokens) -> Tensor:
    """Attention of the prompt's last token over the present input, ``[batch, heads, width]`` float32."""
    return attention_row(observed, tokens, tokens.text if bool(tokens.pad_end) else None)


def attention_row(observed: Observed, tokens: Tokens, block: Tensor | None = None) -> Tensor:
    """Post-softmax attention of one query per row over the tokens of the present input.

    Args:
        observed: queries and keys of the layer.
        tokens: those at its input.
        block: ``[batch, width]`` bool, the query is its last marked column; None for the last column.

    Returns:
        ``[batch, heads, width]`` float32; columns of an earlier turn are attended to and left out.
    """
    query, key = observed.query, observed.key
    batch, heads, width, head_dim = query.shape
    past = key.shape[2] - width
    if block is None:
        at = torch.full((batch,), width - 1, device=query.device)
    else:
        at = torch.where(block, torch.arange(width, device=query.device), -1).amax(1).clamp(min=0)
    row = query.gather(2, at[:, None, None, None].expand(batch, heads, 1, head_dim))
    row = row.view(batch, key.shape[1], heads // key.shape[1], head_dim).float()
    logits = (row @ key.float().transpose(2, 3) * observed.scaling).view(batch, heads, -1)  # [batch, heads, keys]
    unseen = torch.arange(past + width, device=query.device) > (past + at)[:, None]
    if observed.real_keys is not None:
        unseen = unseen | ~observed.real_keys.to(query.device)
    return logits.masked_fill(unseen[:, None], -torch.inf).softmax(-1)[..., past:]
