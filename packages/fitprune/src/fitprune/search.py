"""Fitting a recipe: how many visual tokens can leave each layer (the paper's statistical search, as the
code does it).

1. Statistics. The unpruned model sees every calibration sample once. Per sample ``x`` and layer ``i`` two
numbers are
   kept, the attention mass that reaches the image from the text after it and from the image itself:

       W_cross[x, i] = sum_j a_cross[j] / T         W_self[x, i] = sum_j a_self[j]

2. Fit. For a tolerance ``alpha`` the model runs again, and in every layer as many tokens leave as both
masses allow: by
   each criterion the tokens of smallest score are candidates as long as the rest keeps at least ``(1 -
   alpha)`` of the unpruned mass of that layer; tokens that are candidates by both leave.
3. Search. Bisection finds the smallest ``alpha`` whose forecast cost meets the budget; the mean removals
per layer,
   rounded, are the recipe.

What leaves at one ``alpha`` does not depend on the budget: the cost test only says at which layer to stop.
So a fit runs to full depth once, per sample, and serves every budget.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fitprune.attachment import Attachment, Selection
from fitprune.costs import DecoderShape, layer_macs
from fitprune.rules import Observation
from fitprune.statistics import token_mass
from tenfold import UserError
from tenfold.hosts.ragged import Tokens

# Bisection stops at this width of the bracket (seven halvings); the constant is the official one.
ALPHA_WIDTH = 0.01 + 1e-6

ModelInputs = Mapping[str, Any]


@dataclass(frozen=True)
class SampleStatistics:
    """What the search needs to know of one calibration sample on the unpruned model.

    Attributes:
        cross: per layer, mass from the text after the image divided by the number of those text tokens.
        self_: per layer, mass from the visual tokens divided by their number.
        num_visual: V0, the sample's visual tokens.
    """

    cross: tuple[float, ...]
    self_: tuple[float, ...]
    num_visual: int


@dataclass(frozen=True)
class Evaluation:
    """The outcome of one step of the bisection.

    Attributes:
        alpha: relative loss of mass that was allowed.
        reached: the forecast met the budget before the last layer was left.
        stop_layer: the layer at whose test it did, or the last one.
        removed: ``[samples][layers]``, tokens removed before the stop.
        forecast: mean over samples of the cost, in MACs, at the last test.
    """

    alpha: float
    reached: bool
    stop_layer: int
    removed: tuple[tuple[int, ...], ...]
    forecast: float


def collect_statistics(model: nn.Module, sample: ModelInputs) -> SampleStatistics:
    """Measure one calibration sample (batch 1) on the unpruned model.

    Raises:
        UserError: the sample holds no image, or no text after it.
    """
    selection = _Statistics()
    prefill(model, sample, selection)
    cross, self_ = torch.stack(selection.masses).double().T.tolist()
    return SampleStatistics(tuple(cross), tuple(self_), selection.num_visual)


def fit_alpha(model: nn.Module, sample: ModelInputs, statistics: SampleStatistics, alpha: float) -> tuple[int, ...]:
    """Prune one sample as far as ``alpha`` allows; returns the visual tokens left before every layer and
    after the last."""
    selection = _Threshold(statistics, alpha)
    attachment = prefill(model, sample, selection)
    return tuple(tokens.num_visual[0] for tokens in attachment.entering)


def evaluate(alpha: float, left: Sequence[Sequence[int]], ratio: float, shape: DecoderShape) -> Evaluation:
    """The cost test of one fit: at which layer, if any, does stopping to remove meet the budget?

    Args:
        alpha: the tolerance of the fit.
        left: ``[samples][layers + 1]``, visual tokens before every layer and after the last one.
        ratio: share of the visual MACs to save, in [0, 1].
        shape: the decoder's dimensions.
    """
    layers, count = shape.layers, len(left)
    budget = sum(layers * layer_macs(row[0], row[0], shape) for row in left) / count * (1 - ratio)
    spent = [0] * count
    forecast = 0.0
    for layer in range(layers):
        total = 0
        for sample, row in enumerate(left):
            entering, remaining = row[layer], layers - 1 - layer
            total += spent[sample] + (1 + remaining) * layer_macs(entering, entering, shape)
        forecast = total / count
        if forecast <= budget:
            return Evaluation(alpha, True, layer, _removed(left, layer, layers), forecast)
        spent = [cost + layer_macs(row[layer], row[layer + 1], shape) for cost, row in zip(spent, left, strict=True)]
    return Evaluation(alpha, False, layers - 1, _removed(left, layers, layers), forecast)


def bisect(
    ratio: float, shape: DecoderShape, fit: Callable[[float], Sequence[Sequence[int]]]
) -> tuple[list[Evaluation], Evaluation | None]:
    """Search the smallest ``alpha`` that meets the budget.

    Args:
        ratio: share of the visual MACs to save.
        shape: the decoder's dimensions.
        fit: visual tokens left, ``[samples][layers + 1]``, at an ``alpha``.

    Returns:
        Every step in order, and the feasible one of smallest ``alpha``; None when no step was feasible. The
        official script prints the last step instead, feasible or not.
    """
    low, high = 0.0, 1.0
    steps: list[Evaluation] = []
    while high - low > ALPHA_WIDTH:
        alpha = (low + high) / 2
        step = evaluate(alpha, fit(alpha), ratio, shape)
        steps.append(step)
        low, high = (low, alpha) if step.reached else (alpha, high)
    feasible = [step for step in steps if step.reached]
    return steps, min(feasible, key=lambda step: step.alpha, default=None)


def mean_removals(best: Evaluation, num_visual: Sequence[int], reference: int) -> list[float]:
    """Mean removals per layer, in tokens of a prompt with ``reference`` visual tokens.

    Samples of other sizes count by the fraction of their own visual tokens that left.
    """
    layers = len(best.removed[0])
    return [
        sum(row[layer] * reference / visual for row, visual in zip(best.removed, num_visual, strict=True))
        / len(num_visual)
        for layer in range(layers)
    ]


def candidates(score: Tensor, visual: Tensor, kept_mass: Tensor | float) -> Tensor:
    """The tokens of smallest score that can leave while the rest keeps ``kept_mass``.

    With ``rem(k)`` the total minus the k smallest scores, the official loop looks for the first k with
    ``rem(k) < kept_mass`` and takes one token less; one cumulative sum gives the same. Where the loop finds
    none (one token alone holds the mass) all tokens but the one of highest score can leave. Criteria, samples
    and layers can be leading dimensions: all of them are one sort.

    Args:
        score: ``[..., tokens]``, not negative.
        visual: ``[..., tokens]`` bool, broadcast over the leading dimensions.
        kept_mass: the least sum of scores to keep, ``[...]`` float64 or a number.

    Returns:
        ``[..., tokens]`` bool.
    """
    # Ascending, the higher index first among equals; other tokens go first, without mass.
    ordered, order = score.masked_fill(~visual, -1).flip(-1).sort(dim=-1, stable=True)
    ordered = ordered.double().clamp_(min=0)
    removed = ordered.cumsum(-1)[..., :-1]  # sum of the k smallest, k = 1 .. tokens - 1
    kept = torch.as_tensor(kept_mass, dtype=torch.float64, device=score.device).unsqueeze(-1)
    leaving = torch.zeros_like(order, dtype=torch.bool)
    torch.ge(ordered.sum(-1, keepdim=True) - removed, kept, out=leaving[..., :-1])
    return leaving.scatter(-1, order, leaving).flip(-1) & visual


def prefill(model: nn.Module, sample: ModelInputs, selection: Any) -> Attachment:
    """Run a sample (batch 1) through a model with a selection attached; returns what was attached, detached again.

    Raises:
        UserError: the sample holds no image.
    """
    attachment = Attachment(model, selection, sample.get("visual_mask"))
    inputs = {name: value for name, value in sample.items() if name != "visual_mask"}
    try:
        with torch.inference_mode():
            model(**inputs, use_cache=False, logits_to_keep=1)
    finally:
        attachment.detach()
    if not attachment.entering:
        raise UserError("a calibration sample without an image", None, "an image and a question in every sample")
    return attachment


def _removed(left: Sequence[Sequence[int]], stop: int, layers: int) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(row[layer] - row[layer + 1] if layer < stop else 0 for layer in range(layers)) for row in left)


class _Statistics(Selection):
    """Looks at every layer of the unpruned model and removes nothing."""

    def __init__(self) -> None:
        self.masses: list[Tensor] = []
        self.num_visual = 0

    def remove(self, seen: Observation) -> None:
        _one_sample(seen.tokens)
        self.masses.append(_scores(seen)[:, seen.tokens.visual[0]].sum(1))
        self.num_visual = seen.tokens.num_visual[0]


class _Threshold(Selection):
    """Removes what both criteria allow at one ``alpha``."""

    def __init__(self, statistics: SampleStatistics, alpha: float) -> None:
        masses = torch.tensor((statistics.cross, statistics.self_), dtype=torch.float64)
        self.kept_mass = masses.T * (1 - alpha)  # [layers, 2]

    def remove(self, seen: Observation) -> tuple[Tensor, tuple[int, ...]]:
        scores = _scores(seen)
        self.kept_mass = self.kept_mass.to(scores.device)
        leaving = candidates(scores, seen.tokens.visual, self.kept_mass[seen.layer]).all(0, keepdim=True)
        return leaving, (int(leaving.sum()),)


def _scores(seen: Observation) -> Tensor:
    """``a_cross`` per text token and ``a_self``, ``[2, tokens]`` float32."""
    mass = token_mass(seen.tokens, seen.query, seen.key, seen.scaling, seen.real_keys)
    return torch.stack((mass.cross[0] / seen.tokens.text[0].sum(), mass.self_[0]))


def _one_sample(tokens: Tokens) -> None:
    if tokens.index.shape[0] != 1:
        raise UserError(
            "a calibration sample of several rows", f"batch {tokens.index.shape[0]}", "one prompt per sample"
        )
    if any(tokens.unasked):
        raise UserError("a calibration sample without a text after its image", None, "a question in every sample")
