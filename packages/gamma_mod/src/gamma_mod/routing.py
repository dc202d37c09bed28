"""Routing (sections 3.1 and 3.3): a two-way linear router, masked routing learning, and the decision at inference.

    z = W_r norm(x),  p = softmax(z)[keep]            the router, one for all layers (shared vision-language router)
    S = the k tokens of largest p + m                 training: m is 1 at protected tokens, k fixes the budget
    L_aux = cross-entropy(z, 1[t in S])               the router learns to predict its own choice
    S = {t : p_t > threshold}                         inference: no budget, no mask

Shapes: tokens of a batch ``[batch, tokens]``, logits ``[batch, tokens, 2]``. All of it in float32.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tenfold import UserError

SKIP, KEEP = 0, 1
INITIALISATIONS = ("linear", "xavier")
IGNORED = -100  # labels outside the answers
PROTECT = ("none", "question", "question+answer")


class Router(nn.Module):
    """``W_r [2, width]``, without bias: token -> logits of skip and keep.

    One module serves all converted layers (``count`` = 1, the paper's shared router); with ``count`` of them stacked in
    one ``[count, 2, width]`` parameter it is the ablation "router not shared".
    """

    def __init__(self, width: int, count: int = 1) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(2, width) if count == 1 else torch.zeros(count, 2, width))

    def forward(self, normed: Tensor, which: int = 0) -> Tensor:
        """Logits in float32.

        Args:
            normed: ``[..., width]``, a layer's input after that layer's own ``input_layernorm``.
            which: the router to ask, where they are not shared.

        Returns:
            ``[..., 2]``.
        """
        weight = self.weight if self.weight.ndim == 2 else self.weight[which]
        return F.linear(normed.float(), weight.to(normed.device).float())

    @torch.no_grad()
    def initialise(self, seed: int = 0, scheme: str = "linear") -> None:
        """Draw the weights (section 3.6): uniform within ``1 / sqrt(width)``, or Xavier's bound.

        Raises:
            UserError: an unknown scheme.
        """
        if scheme not in INITIALISATIONS:
            raise UserError(f"unknown initialisation {scheme!r}", "router", " or ".join(INITIALISATIONS))
        width = self.weight.shape[-1]
        bound = width**-0.5 if scheme == "linear" else (6 / (width + 2)) ** 0.5
        drawn = torch.rand(self.weight.shape, generator=torch.Generator().manual_seed(seed))
        self.weight.copy_((2 * drawn - 1) * bound)


def keep_probability(logits: Tensor) -> Tensor:
    """p: ``[..., 2]`` -> ``[...]`` float32."""
    return logits.float().softmax(-1)[..., KEEP]


def budget(tokens: int, routable: int, routing_ratio: float) -> int:
    """k, how many of a row's tokens are computed: all but the ratio's share of those that may be skipped.

    In float64, as released: with some lengths rounding keeps one token more than ``tokens - routable * ratio``.

    Args:
        tokens: T, tokens of the row.
        routable: I, how many of them may be skipped.
        routing_ratio: r.
    """
    if not tokens:
        return 0
    return math.ceil(tokens * (1 - (routable * routing_ratio / tokens)))


def choose_top_k(keep_prob: Tensor, protected: Tensor, counts: Sequence[int], real: Tensor | None = None) -> Tensor:
    """Masked routing learning: the ``k`` tokens of largest ``p + m``; of equal ones the earlier.

    Args:
        keep_prob: ``[batch, tokens]``.
        protected: ``[batch, tokens]`` bool, m: tokens that may not be skipped.
        counts: k of every row.
        real: ``[batch, tokens]`` bool, False at padding, which is never chosen; None: nothing is padded.

    Returns:
        ``[batch, tokens]`` bool, exactly ``counts`` of each row.
    """
    priority = keep_prob.detach().float() + protected
    if real is not None:
        priority = priority.masked_fill(~real, -1.0)
    order = priority.argsort(dim=1, descending=True, stable=True)
    place = torch.arange(order.shape[1], device=order.device)
    chosen = place < per_row(counts, order.device)
    return torch.zeros_like(chosen.expand_as(order)).scatter(1, order, chosen.expand_as(order))


def choose_above(keep_prob: Tensor, threshold: float, real: Tensor | None = None) -> Tensor:
    """Inference: tokens whose probability lies above the threshold, ``[batch, tokens]`` bool."""
    chosen = keep_prob.float() > threshold
    return chosen if real is None else chosen & real


def auxiliary_loss(logits: Tensor, kept: Tensor, real: Tensor | None = None) -> Tensor:
    """L_aux of one layer: cross-entropy between the router's logits and its own choice, mean over tokens.

    Args:
        logits: ``[batch, tokens, 2]``.
        kept: ``[batch, tokens]`` bool.
        real: ``[batch, tokens]`` bool; the mean is over these. None: over all, padding too, as released.
    """
    loss = F.cross_entropy(logits.float().flatten(0, 1), kept.long().flatten(), reduction="none")
    if real is None:
        return loss.mean()
    weight = real.flatten().float()
    return (loss * weight).sum() / weight.sum().clamp(min=1)


def per_row(counts: Sequence[int], device: torch.device) -> Tensor:
    """``[batch, 1]`` int64; equal counts are filled in on the device, without a copy from the host."""
    if len(set(counts)) == 1:
        return torch.full((len(counts), 1), counts[0], device=device)
    return torch.tensor(counts, device=device)[:, None]


# Which tokens of a prompt may be skipped in training. A row is a prefix (system prompt and "USER:"), visual tokens, the
# question, and in training the answers. Visual tokens and the prefix compete for the budget; what else does:
#
#   "question"          the paper's best row: questions are always computed, answers compete
#   "question+answer"   the released code: everything after the image is always computed
#   "none"              every token competes


def routable_tokens(
    visual: Tensor, real: Tensor | None = None, labels: Tensor | None = None, protect: str = "question"
) -> Tensor:
    """The tokens that may be skipped in training.

    Args:
        visual: ``[batch, tokens]`` bool.
        real: ``[batch, tokens]`` bool, False at padding; None: nothing is padded.
        labels: ``[batch, tokens]`` int64, -100 outside the answers; without labels there are no answers.
        protect: see above.

    Returns:
        ``[batch, tokens]`` bool. A row without an image has no prefix: its answers compete or nothing does.
    """
    real = torch.ones_like(visual) if real is None else real
    if protect == "none":
        return real.clone()
    visual = visual & real
    seen = visual.cumsum(1)
    prefix = (seen == 0) & (seen[:, -1:] > 0)
    routable = visual | prefix
    if protect == "question" and labels is not None:
        routable = routable | (labels != IGNORED)
    return routable & real
