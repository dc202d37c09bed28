"""From answers and costs to rows: accuracy with its interval, shares of the host's cost, the Pareto front."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from efficiency.arms import HOST, Arm
from efficiency.asking import Answers, Pair, scores
from efficiency.costs import Cost
from fitprune.evaluation.compare import Item
from tenfold.metrics import bootstrap

Row = dict[str, Any]


def grouped(arms: Sequence[Arm]) -> dict[str, list[Arm]]:
    """Group -> its arms, one a seed."""
    found: dict[str, list[Arm]] = {}
    for arm in arms:
        found.setdefault(arm.group, []).append(arm)
    return found


def rows(
    arms: Sequence[Arm],
    costs: Mapping[str, Cost],
    items: Sequence[Item] = (),
    answers: Answers | None = None,
    asked: Sequence[Pair] = (),
    second: Mapping[str, Sequence[str | None]] | None = None,
) -> list[Row]:
    """A row for every method and point, means over its seeds; the host first.

    Cost is that of the first seed: what a method costs does not depend on its draws.
    """
    whole = costs[HOST]
    right = {} if answers is None else {key: scores(items, given) for key, given in answers.items()}
    found = []
    for members in grouped(arms).values():
        arm, cost = members[0], costs[members[0].key]
        row: Row = {
            "method": arm.method,
            "point": arm.point,
            "kind": arm.kind,
            "knobs": arm.knobs,
            "seeds": len(members),
            "note": arm.note,
            "needs": asdict(arm.needs),
            **asdict(cost),
            "flops_share": cost.flops / whole.flops,
            "kv_share": cost.kv_bytes / whole.kv_bytes,
            "prefill_speedup": whole.prefill_seconds / cost.prefill_seconds,
            "decode_speedup": whole.decode_seconds / cost.decode_seconds,
        }
        if right:
            row |= _accuracy([right[one.key] for one in members], right[HOST], items)
        if second and arm.key in second:
            row["second"] = _second(arm, second[arm.key], asked, items, right[arm.key])
        found.append(row)
    mark_front(found)
    order = list(dict.fromkeys(row["method"] for row in found))
    return sorted(found, key=lambda row: order.index(row["method"]))


def _accuracy(right: Sequence[np.ndarray], host: np.ndarray, items: Sequence[Item]) -> Row:
    mean = np.mean(right, axis=0)
    known = ~np.isnan(mean)
    kinds = dict.fromkeys(item.kind for item in items)
    by_kind = {}
    for kind in kinds:
        these = known & np.array([item.kind == kind for item in items])
        by_kind[kind] = float(mean[these].mean()) if these.any() else None
    if not known.any():
        return {"accuracy": None, "change": None, "by_seed": [], "by_kind": by_kind}
    return {
        "accuracy": asdict(bootstrap(mean[known])),
        "change": asdict(bootstrap((mean - host)[known])),
        "by_seed": [float(one[known].mean()) for one in right],
        "by_kind": by_kind,
    }


def _second(
    arm: Arm, answers: Sequence[str | None], asked: Sequence[Pair], items: Sequence[Item], right: np.ndarray
) -> Row | None:
    """The second questions, asked afresh and from what the first ones left, and the paired difference."""
    fresh, later = [], []
    for pair, answer in zip(asked, answers, strict=True):
        score = None if answer is None else items[pair.second].score(answer)
        if score is not None and not np.isnan(right[pair.second]):
            fresh.append(right[pair.second])
            later.append(score)
    if not later:
        return None
    change = asdict(bootstrap(np.array(later) - np.array(fresh)))
    return {"pairs": len(later), "fresh": float(np.mean(fresh)), "later": float(np.mean(later)), "change": change}


def mark_front(found: Sequence[Row]) -> None:
    """Sets ``front``: no other row is right as often for fewer FLOPs, or more often for no more.

    By the points, not their intervals. Rows without accuracy have no front; nor have methods off their own task.
    """
    for row in found:
        row["front"] = row.get("accuracy") is not None and not any(
            other.get("accuracy") is not None and other is not row and _beats(other, row) for other in found
        )


def _beats(one: Row, other: Row) -> bool:
    more, cheaper = one["accuracy"]["value"] - other["accuracy"]["value"], other["flops"] - one["flops"]
    return more >= 0 and cheaper >= 0 and (more > 0 or cheaper > 0)
