"""The recipe search's selection of candidates, timed beside its definition as a loop.

The official script tries every k in turn and each time gathers and sums the k smallest scores anew, O(V^2). Here the
same tokens are found by one sort and one cumulative sum, for both criteria of a layer at once as a fit calls it, and
also for all layers, criteria and tolerances in a single call, which is what the method permits where layers do not wait
for each other.
"""

from __future__ import annotations

from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from torch import Tensor

from fitprune.attachment import Selection
from fitprune.rules import Observation
from fitprune.search import candidates
from fitprune.statistics import ascending, token_mass

# Tolerances of the bisection at which the two are compared.
ALPHAS = (0.1, 0.3, 0.5, 0.7, 0.9)
REPEATS = 5

Timer = Callable[[Callable[[], Any]], tuple[Any, float, Any]]


class Scores(Selection):
    """Keeps both scores of every layer of the unpruned model, ``[2, tokens]`` of the first row."""

    def __init__(self) -> None:
        self.scores: list[Tensor] = []

    def remove(self, seen: Observation) -> None:
        mass = token_mass(seen.tokens, seen.query, seen.key, seen.scaling, seen.real_keys)
        self.scores.append(torch.stack((mass.cross[0], mass.self_[0])))


def drawn_scores(visual_tokens: int, layers: int, device: torch.device) -> Tensor:
    """Scores of a larger prompt, drawn from an exponential distribution: ``[layers, 2, visual tokens]``."""
    generator = torch.Generator().manual_seed(0)
    return torch.empty(layers, 2, visual_tokens).exponential_(generator=generator).to(device)


def compare_selections(scores: Tensor, visual: Tensor, timed: Timer) -> dict[str, Any]:
    """Time the selection of candidates three ways, and see that all three select the same tokens.

    Args:
        scores: ``[layers, 2, tokens]``, both criteria of every layer.
        visual: ``[tokens]`` bool.
        timed: work -> what it returns, its seconds, and whatever else.

    Raises:
        AssertionError: they do not.
    """
    shares = 1 - torch.tensor(ALPHAS, dtype=torch.float64, device=scores.device)
    kept = (scores.double() * visual).sum(-1) * shares.view(-1, 1, 1)  # [alphas, layers, 2]
    every = scores.expand(len(ALPHAS), *scores.shape)
    cases = [(alpha, layer) for alpha in range(len(ALPHAS)) for layer in range(len(scores))]

    # Each way in a block of its own, after a round that does not count: all three in their steady state.
    at_once, whole = _repeated(lambda: candidates(every, visual, kept), timed)
    pairs, loop = [], []
    for alpha, layer in cases:
        fast, seconds = _repeated(lambda: candidates(scores[layer], visual, kept[alpha, layer]), timed)  # noqa: B023
        pairs.append(seconds / 2)
        assert torch.equal(fast, at_once[alpha, layer]), "two ways of selecting candidates disagree"
    for alpha, layer in cases:
        for criterion in range(2):
            score, bound = scores[layer, criterion], kept[alpha, layer, criterion].item()
            slow, seconds, _ = timed(lambda: candidates_by_loop(score, visual, bound))  # noqa: B023
            loop.append(seconds)
            assert torch.equal(slow, at_once[alpha, layer, criterion]), "two ways of selecting candidates disagree"
    return {
        "selections": len(loop),
        "visual_tokens": int(visual.sum()),
        "milliseconds": 1e3 * median(pairs),
        "loop_milliseconds": 1e3 * median(loop),
        "ratio": median(loop) / median(pairs),
        "at_once_milliseconds": 1e3 * whole / kept.numel(),
        "at_once_ratio": median(loop) * kept.numel() / whole,
    }


def _repeated(work: Callable[[], Tensor], timed: Timer) -> tuple[Tensor, float]:
    """What the work returns, and the median of its seconds."""
    result = work()
    return result, median(timed(work)[1] for _ in range(REPEATS))


def candidates_by_loop(score: Tensor, visual: Tensor, kept_mass: float) -> Tensor:
    """`fitprune.search.candidates` as the official script has it: the k smallest summed anew for every k, O(V^2)."""
    scores = score.double()
    order = ascending(score[None], visual[None])[0, : int(visual.sum())]
    total, count = scores[order].sum(), len(order) - 1
    for k in range(len(order)):
        if total - scores[order[:k]].sum() < kept_mass:
            count = max(k - 1, 0)
            break
    chosen = torch.zeros_like(visual)
    chosen[order[:count]] = True
    return chosen
