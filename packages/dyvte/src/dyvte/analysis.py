"""The paper's empirical findings (section 3.1, appendix): how much each layer looks at the image, and how.

With A the element-wise maximum over heads of a layer's causal attention, V the visual tokens and T the text after them,

    W_v = sum of A over V x V / |V|    W_c = sum over T x V / |T|    W_t = sum over T x T / |T|     (queries x keys)
    E   = mean over T of  - sum_j a_j ln a_j    in the blocks T x V ("cross") and T x T ("text")

Rows are not renormalised; attention to the text before the image is left out, and the maximum over heads can add up to
more than 1. The entropy's formula is not printed in the paper: this reading fits its magnitudes. A is built a few rows
at a time from queries and keys (`dyvte.observation`), so that no n x n map exists.

The three stages, which the paper reads off by eye, by a rule of ours: early fusion until the first local minimum of
W_c, intra-modality modelling until W_c recovers to half of its later plateau, multimodal reasoning from there on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dyvte.observation import Observed, Observer
from tenfold.hosts import structure
from tenfold.hosts.ragged import Tokens

# Bytes that a block of float32 attention rows may take.
BLOCK_BYTES = 32 * 2**20
# The five numbers of a layer, in the order of `profile`.
MEASURES = ("w_visual", "w_cross", "w_text", "entropy_cross", "entropy_text")


@torch.no_grad()
def profile(
    observed: Observed, visual: Tensor, text: Tensor, real: Tensor | None = None, *, block_rows: int | None = None
) -> Tensor:
    """The measures of one layer.

    Args:
        observed: its queries and keys, of one pass without a past.
        visual, text: ``[batch, width]`` bool, V and T.
        real: ``[batch, width]`` bool, False at padding; None without padding.
        block_rows: query rows at a time; by default as many as fit `BLOCK_BYTES`.

    Returns:
        ``[batch, 5]`` float32 in the order of `MEASURES`; 0 where no visual token is left.
    """
    query, key = observed.query.float() * observed.scaling, observed.key.float()
    batch, heads, width = query.shape[:3]
    key = key.repeat_interleave(heads // key.shape[1], dim=1).transpose(2, 3)
    rows = block_rows or max(1, BLOCK_BYTES // (4 * batch * heads * width))
    v, t = visual.float(), text.float()
    sums = query.new_zeros(batch, len(MEASURES))
    position = torch.arange(width, device=query.device)
    for start in range(0, width, rows):
        stop = min(start + rows, width)
        unseen = position[:stop] > position[start:stop, None]  # [rows, stop]
        if real is not None:
            unseen = (unseen | ~real[:, None, :stop])[:, None]
        logits = query[:, :, start:stop] @ key[..., :stop]
        attention = (
            logits.masked_fill_(unseen, torch.finfo(torch.float32).min).softmax(-1).amax(1)
        )  # [batch, rows, stop]
        surprise = torch.special.entr(attention)  # - a ln a
        from_v, from_t = (mask[:, None, start:stop] for mask in (v, t))
        to_v, to_t = (mask[:, :stop, None] for mask in (v, t))
        parts: tuple[tuple[Tensor, Tensor, Tensor], ...] = (
            (from_v, attention, to_v),
            (from_t, attention, to_v),
            (from_t, attention, to_t),
        )
        parts += ((from_t, surprise, to_v), (from_t, surprise, to_t))
        sums += torch.stack([(left @ values @ right)[:, 0, 0] for left, values, right in parts], dim=1)
    counts = torch.stack([v.sum(1)] + [t.sum(1)] * 4, dim=1)
    return sums / counts.clamp(min=1)


@contextmanager
def watch(model: nn.Module, present: Callable[[], Tokens]) -> Iterator[list[Tensor]]:
    """Profile every layer of the passes inside the block; the list grows by ``[batch, 5]`` a layer.

    Args:
        model: the host.
        present: the tokens at the input of the layer that runs, with the text block as their ``text``
            (`dyvte.VisualExit.present` of one that is attached).
    """
    measured: list[Tensor] = []

    def see(observed: Observed) -> None:
        tokens = present()
        measured.append(profile(observed, tokens.visual, tokens.text, tokens.real if tokens.padded else None))

    layers: Any = structure.decoder_layers(structure.unwrap(model))
    observers = [Observer(layer.self_attn, see) for layer in layers]
    try:
        yield measured
    finally:
        for observer in observers:
            observer.remove()


@dataclass(frozen=True)
class Stages:
    """The three stages as ranges of layers, counted from 0.

    Attributes:
        fusion: early fusion is layers ``0 .. fusion - 1``.
        reasoning: intra-modality modelling is layers ``fusion .. reasoning - 1``; reasoning the others.
        layers: number of layers.
    """

    fusion: int
    reasoning: int
    layers: int


def stages(cross: Sequence[float]) -> Stages:
    """Find the stages in a profile of W_c.

    Args:
        cross: W_c of every layer, mean over samples.
    """
    layers = len(cross)
    fusion = next((k for k in range(1, layers - 1) if cross[k - 1] > cross[k] <= cross[k + 1]), layers)
    later = sorted(cross[fusion + 1 :])
    if not later:
        return Stages(layers, layers, layers)
    plateau = later[len(later) // 2]
    reasoning = next((k for k in range(fusion, layers) if cross[k] >= plateau / 2), layers)
    return Stages(fusion, max(reasoning, fusion), layers)
