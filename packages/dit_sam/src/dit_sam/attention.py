"""Attention over text and image tokens with SAM's decomposed relative positions, and never a map of all pairs.

    softmax(q k^T / sqrt(d) + R) v,      R[(i, j), (k, l)] = q_ij . Rh[i - k] + q_ij . Rw[j - l]

where (i, j) and (k, l) are cells of the image's grid, and R is 0 wherever a text token takes part; q in R is not
scaled (section 3.3 of SAM's ViTDet; DIT leaves it as it is). Two exact ways, both with the memory of a few rows:

- `by_rows`: a loop over heads and blocks of image rows, the bias added in place. The fastest on a CPU.
- `folded`: R becomes part of the product. With q' = [q / sqrt(d), q Rh, q Rw] and k' = [k, onehot(row),
  onehot(column)] the product q' k'^T is the whole exponent, and any fused attention kernel computes it. For CUDA, and
  wherever gradients flow.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

Grid = tuple[int, int]
# Numbers in the largest intermediate of `by_rows`: 4 MB in float32.
_BLOCK = 1_000_000


def relative_positions(table: Tensor, size: int) -> Tensor:
    """Rh or Rw of one axis: the table stretched to 2 size - 1 rows, then row (q - k) + size - 1 for each pair.

    Blocks that had a window upstream keep their small table, which is stretched like the others.

    Args:
        table: [rows, d].

    Returns:
        [size (query), size (key), d]
    """
    rows = 2 * size - 1
    if len(table) != rows:
        table = F.interpolate(table.float().T[None], size=rows, mode="linear")[0].T.to(table.dtype)
    places = torch.arange(size, device=table.device)
    return table[places[:, None] - places[None, :] + size - 1]


def attend(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    rel_h: Tensor,
    rel_w: Tensor,
    grid: Grid,
    text_queries: bool,
    beside: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Attention of image tokens, and of text tokens where their output is read.

    Args:
        queries: [batch, heads, (text +) h w, d]; text first, when `text_queries`.
        keys, values: [batch, heads, text + h w, d]; text first.
        rel_h, rel_w: [h, h, d] and [w, w, d], of `relative_positions`.
        grid: (h, w).
        text_queries: whether the first queries are text.
        beside: the text's keys and values, each [batch, heads, text, d], where `keys` and `values` are the image's.

    Returns:
        [batch, heads, queries, d]
    """
    if keys.device.type == "cpu" and not torch.is_grad_enabled():
        return by_rows(queries, keys, values, rel_h, rel_w, grid, text_queries, beside)
    if beside is not None:
        keys, values = (torch.cat(both, dim=2) for both in zip(beside, (keys, values), strict=True))
    return folded(queries, keys, values, rel_h, rel_w, grid, text_queries)


def position_scores(image_queries: Tensor, rel_h: Tensor, rel_w: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
    """The parts of R: q_ij . Rh[i - k] as [batch, heads, h, w, h], q_ij . Rw[j - l] as [batch, heads, h, w, w]."""
    cells = image_queries.unflatten(2, grid)  # [batch, heads, h, w, d]
    rows = torch.einsum("bnhwd,hkd->bnhwk", cells, rel_h.to(cells.dtype))
    columns = torch.einsum("bnhwd,wkd->bnhwk", cells, rel_w.to(cells.dtype))
    return rows, columns


def folded(
    queries: Tensor, keys: Tensor, values: Tensor, rel_h: Tensor, rel_w: Tensor, grid: Grid, text_queries: bool
) -> Tensor:
    """`attend` by one fused kernel over longer vectors. Arguments and result as there, text among the keys."""
    (h, w), d = grid, queries.shape[-1]
    text = keys.shape[2] - h * w
    image_queries = queries[:, :, text:] if text_queries else queries
    rows, columns = (part.flatten(2, 3) for part in position_scores(image_queries, rel_h, rel_w, grid))
    bias = torch.cat([rows, columns], dim=-1)  # [batch, heads, h w, h + w]
    if text_queries:
        bias = F.pad(bias, (0, 0, text, 0))
    # Where each key stands: a one for its row and one for its column, nothing for text.
    row = torch.eye(h, dtype=keys.dtype, device=keys.device).repeat_interleave(w, dim=0)
    column = torch.eye(w, dtype=keys.dtype, device=keys.device).repeat(h, 1)
    place = F.pad(torch.cat([row, column], dim=-1), (0, 0, text, 0))  # [text + h w, h + w]
    queries = torch.cat([queries * d**-0.5, bias.to(queries.dtype)], dim=-1)
    keys = torch.cat([keys, place.expand(*keys.shape[:2], -1, -1)], dim=-1)
    # Fused kernels want values as wide as keys.
    mixed = F.scaled_dot_product_attention(queries, keys, F.pad(values, (0, h + w)), scale=1.0)
    return mixed[..., :d]


def by_rows(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    rel_h: Tensor,
    rel_w: Tensor,
    grid: Grid,
    text_queries: bool,
    beside: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """`attend` head by head and a few image rows at a time. Arguments and result as there."""
    (h, w), (batch, heads, _, d) = grid, keys.shape
    tokens = keys.shape[2] + (0 if beside is None else beside[0].shape[2])
    text = tokens - h * w
    result = torch.empty(batch, heads, queries.shape[2], values.shape[-1], dtype=values.dtype, device=values.device)
    first = text if text_queries else 0  # of the image queries
    if text_queries:
        result[:, :, :text] = F.scaled_dot_product_attention(queries[:, :, :text], keys, values)
    step = max(1, _BLOCK // (batch * w * tokens))  # image rows at a time
    for head in range(heads):
        key, value = keys[:, head], values[:, head]
        if beside is not None:  # one head's copy, not that of all
            key, value = torch.cat([beside[0][:, head], key], 1), torch.cat([beside[1][:, head], value], 1)
        key = key.mT * d**-0.5
        image = queries[:, head : head + 1, first:]
        rows, columns = (part[:, 0] for part in position_scores(image, rel_h, rel_w, grid))
        for top in range(0, h, step):
            some = slice(top * w, min(top + step, h) * w)
            scores = image[:, 0, some] @ key  # [batch, some, tokens]
            on_image = scores[:, :, text:].unflatten(1, (-1, w)).unflatten(3, grid)
            on_image += rows[:, top : top + step, :, :, None]
            on_image += columns[:, top : top + step, :, None, :]
            result[:, head, first:][:, some] = scores.softmax(-1) @ value
    return result
