"""The two attention statistics of FitPrune (the paper's self- and cross-attention distributions), without a
map.

Let ``M[q, j]`` be the largest attention probability over the heads that query ``q`` gives to key ``j``. A
visual token ``j`` is judged by the mass that it receives from the other visual tokens and from the text
after the image:

    a_self[j]  = sum over visual q of M[q, j] / V          (V: visual tokens present)
    a_cross[j] = sum over text q after the image of M[q, j]

Only the sums are needed, so ``M`` is built a few rows at a time in float32: the memory is O(rows x tokens x
heads) instead of O(tokens^2 x heads), and the model's own attention stays on its fast path.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tenfold.hosts.ragged import Tokens

# Bytes that one block of float32 attention rows may take. A GPU is kept busy by a large one, still small beside the KV
# cache; on a CPU its passes over the block stay in the caches, and less of it lies above the diagonal.
BLOCK_BYTES = 32 * 2**20
CPU_BLOCK_BYTES = 4 * 2**20


@dataclass(frozen=True)
class AttentionMass:
    """What each token of a layer's input receives; columns that hold no visual token are not meaningful.

    Attributes:
        self_: ``[batch, tokens]`` float32, mass from the visual tokens, divided by their number.
        cross: ``[batch, tokens]`` float32, mass from the text after the image, a plain sum over its rows.
    """

    self_: Tensor
    cross: Tensor

    @property
    def product(self) -> Tensor:
        """The inference score ``a_cross * a_self`` , ``[batch, tokens]`` float32."""
        return self.cross * self.self_


def float32(device: torch.device) -> torch.autocast:
    """A context in which products are not rounded by somebody's autocast: scores stay float32."""
    return torch.autocast(device.type, enabled=False)


@torch.no_grad()
def attention_mass(
    query: Tensor,
    key: Tensor,
    scaling: float,
    *,
    visual: Tensor,
    text: Tensor,
    num_visual: Tensor,
    first_row: int = 0,
    real_keys: Tensor | None = None,
    block_rows: int | None = None,
) -> AttentionMass:
    """Sum the head-maximum attention that each token receives from visual rows and from text rows.

    Args:
        query: ``[batch, heads, tokens, head_dim]``, after rotary embedding.
        key: ``[batch, kv_heads, past + tokens, head_dim]``, after rotary embedding; ``past`` cached keys
            come first.
        scaling: factor of the logits, usually ``head_dim ** -0.5``.
        visual: ``[batch, tokens]`` bool, rows that hold a visual token.
        text: ``[batch, tokens]`` bool, rows that hold text after the image.
        num_visual: ``[batch]``, V of every sample.
        first_row: rows before it hold neither; they are skipped.
        real_keys: ``[batch, past + tokens]`` bool, False at padding; None when nothing is padded.
        block_rows: rows at a time; by default as many as fit ``BLOCK_BYTES``, on a CPU ``CPU_BLOCK_BYTES``.

    Returns:
        The mass received by the ``tokens`` columns of the present input (cached columns are attended to,
        not scored).
    """
    batch, heads, tokens, head_dim = query.shape
    kv_heads, keys = key.shape[1], key.shape[2]
    past, group = keys - tokens, heads // kv_heads
    if block_rows is None:
        size = CPU_BLOCK_BYTES if query.device.type == "cpu" else BLOCK_BYTES
        block_rows = max(8, size // (4 * batch * heads * keys))

    key = key.float().transpose(2, 3).flatten(0, 1)  # [batch * kv_heads, head_dim, keys]
    rows_of = torch.stack((visual, text), dim=1).float()  # [batch, 2, tokens]
    received = torch.zeros(batch, 2, keys, dtype=torch.float32, device=query.device)
    block = min(block_rows, tokens)
    lowest = torch.finfo(torch.float32).min
    # Causality within a block, added: half the lowest value leaves room for any logit, and its exponential is 0.
    later = torch.full((block, block), lowest / 2, device=query.device).triu(1)
    # One room for all blocks: memory that a CPU maps anew for each costs as much as the product.
    row_room, logit_room = (
        torch.empty(batch * heads * block * width, dtype=torch.float32, device=query.device)
        for width in (head_dim, keys)
    )
    with float32(query.device):
        for start in range(first_row, tokens, block_rows):
            stop = min(start + block_rows, tokens)
            count, seen = stop - start, past + stop  # causality: no row of this block looks further
            rows = row_room[: batch * heads * count * head_dim].view(batch, heads, count, head_dim)
            rows.copy_(query[:, :, start:stop]).mul_(scaling)
            logits = logit_room[: batch * heads * count * seen].view(batch * kv_heads, group * count, seen)
            torch.bmm(rows.view(batch * kv_heads, group * count, head_dim), key[..., :seen], out=logits)
            logits = logits.view(batch, heads, count, seen)
            logits[..., past + start :] += later[:count, :count]
            if real_keys is not None:
                # A finite value keeps rows of padding, which see nothing, free of NaN; their weight below is zero.
                logits.masked_fill_(~real_keys[:, None, None, :seen], lowest)
            torch.softmax(logits, dim=-1, out=logits)
            maximum = logits.amax(dim=1)  # M: [batch, rows, seen]
            received[:, :, :seen] += rows_of[:, :, start:stop] @ maximum
    from_visual, from_text = received[:, :, past:].unbind(dim=1)
    return AttentionMass(self_=from_visual / num_visual.clamp(min=1).unsqueeze(1), cross=from_text)


def token_mass(
    tokens: Tokens, query: Tensor, key: Tensor, scaling: float, real_keys: Tensor | None = None
) -> AttentionMass:
    """`attention_mass` of the tokens at a layer's input."""
    return attention_mass(
        query,
        key,
        scaling,
        visual=tokens.visual,
        text=tokens.text,
        num_visual=tokens.visual.sum(1),
        first_row=tokens.first_row,
        real_keys=real_keys,
    )


def lowest_scores(score: Tensor, candidates: Tensor, count: Tensor) -> Tensor:
    """Mark the ``count`` candidates of lowest score in every row; among equals the higher index goes first.

    Args:
        score: ``[batch, tokens]`` float32.
        candidates: ``[batch, tokens]`` bool, the tokens that may be chosen.
        count: ``[batch]`` integer, at most the number of candidates.

    Returns:
        ``[batch, tokens]`` bool.
    """
    order = ascending(score, candidates)
    rank = torch.empty_like(order).scatter_(
        1, order, torch.arange(order.shape[1], device=order.device).expand_as(order)
    )
    return rank < count.unsqueeze(1)


def ascending(score: Tensor, candidates: Tensor) -> Tensor:
    """Indices that sort every row by score, higher index first among equals; tokens that are no candidates
    come last.

    The official code sorts unstably; the rule here makes a tie's outcome the same on every device.

    Args:
        score: ``[batch, tokens]`` float32.
        candidates: ``[batch, tokens]`` bool.

    Returns:
        ``[batch, tokens]`` int64.
    """
    flipped = score.masked_fill(~candidates, torch.inf).flip(1)
    return score.shape[1] - 1 - torch.sort(flipped, dim=1, stable=True).indices
