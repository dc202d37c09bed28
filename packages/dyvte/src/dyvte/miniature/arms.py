"""The arms: what accuracy a choice of exits gives, and what its controls give at the same mean exit layer.

The prompts of the miniature have one length, so the same mean exit layer is the same mean FLOPs. Controls are exact
expectations over all permutations, not draws.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dyvte.calibration import exits_at
from dyvte.miniature.tables import Table


def accuracy(table: Table, exits: Tensor) -> float:
    """Share of right answers when each question's image leaves after its layer, -1 ... layers - 1; in percent."""
    return 100 * float(table.right.float().gather(1, (exits + 1)[:, None]).mean())


def curve(table: Table) -> list[float]:
    """Accuracy of fixed exits after layer -1, 0, ..., layers - 1 (the last is dense), in percent."""
    return (100 * table.right.float().mean(0)).tolist()


def shuffled(table: Table, exits: Tensor) -> float:
    """The same exits permuted over all questions: their histogram against the fixed exits' curve."""
    return float(torch.tensor(curve(table))[exits + 1].mean())


def shuffled_within_kind(table: Table, exits: Tensor) -> float:
    """The same exits permuted inside every kind of question."""
    total = 0.0
    for kind in dict.fromkeys(table.kinds):
        rows = torch.tensor([one == kind for one in table.kinds])
        means = 100 * table.right[rows].float().mean(0)
        total += float(means[exits[rows] + 1].sum())
    return total / len(table.kinds)


def best_mixture(table: Table, mean_exit: float) -> float:
    """The best mixture of two fixed exits with this mean exit layer, in percent: the fair control."""
    points = list(enumerate(curve(table), start=-1))
    best = float("-inf")
    for a, left in points:
        for b, right in points:
            if a <= mean_exit <= b:
                share = 0.0 if a == b else (mean_exit - a) / (b - a)
                best = max(best, (1 - share) * left + share * right)
    return best


def oracle(table: Table) -> Tensor:
    """The first layer from which on the answer is the dense model's, ``[questions]``: -1 ... layers - 1."""
    later = table.same.flip(1).to(torch.uint8).cumprod(1).flip(1)  # same here and ever after
    return later.argmax(1) - 1


def spread_within_kinds(table: Table, exits: Tensor) -> float:
    """Standard deviation of the exit layer inside kinds of question, mean over kinds."""
    deviations = []
    for kind in dict.fromkeys(table.kinds):
        rows = torch.tensor([one == kind for one in table.kinds])
        deviations.append(exits[rows].double().std(unbiased=False))
    return float(torch.stack(deviations).mean())


def nearest_threshold(margins: Tensor, mean_exit: float) -> float:
    """The threshold whose mean exit layer on these questions is nearest, however far that is."""
    steps = margins.double().cummax(dim=1).values[:, :-1].flatten().unique()
    candidates = torch.cat((steps[:1] - 1, (steps[:-1] + steps[1:]) / 2, steps[-1:] + 1))
    if len(candidates) > 400:
        candidates = candidates[torch.linspace(0, len(candidates) - 1, 400).long()]
    means = torch.stack([exits_at(margins, float(one)).double().mean() for one in candidates])
    return float(candidates[(means - mean_exit).abs().argmin()])


def row(table: Table, exits: Tensor) -> dict[str, float]:
    """An arm beside its controls, accuracies in percent."""
    mean = float(exits.double().mean())
    return {
        "mean_exit": mean,
        "dynamic": accuracy(table, exits),
        "shuffled": shuffled(table, exits),
        "within_kind": shuffled_within_kind(table, exits),
        "fixed_mixture": best_mixture(table, mean),
    }
