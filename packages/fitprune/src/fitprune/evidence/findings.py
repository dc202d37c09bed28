"""What the mini hosts' measurements say about the claims.

A difference between two methods is one of means over the hosts' seeds; it counts when it exceeds the larger spread
(standard deviation over the seeds). What does not exceed it is a tie, and is called so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tenfold.cli import Finding
from tenfold.ledger.seeds import spread

UNPRUNED, METHOD, ALL = "unpruned", "fitprune", "all"
TWO_HOP = "two-hop"
# After this layer, counted from 0, two-hop accuracy must still rise; and a host must answer such questions at all.
GATE_LAYER, GATE_ACCURACY = 2, 0.9
LOSS = 0.02  # what 40 and 60 % may cost
FAR = 0.1  # "far ahead"
CONTROLS = ("random", "inverse")
PEERS = ("fastv", "pyramiddrop")

Measured = Mapping[int, Mapping[str, Any]]


class Scores:
    """Accuracies by method, ratio and kind of question.

    Args:
        measured: by seed, as `mini_claims.measure` gives it.
    """

    def __init__(self, measured: Measured) -> None:
        self.seeds = len(measured)
        self._rows: dict[tuple[str, float, str], list[Mapping[str, Any]]] = {}
        for one in measured.values():
            for row in one["rows"]:
                self._rows.setdefault((row["method"], row["ratio"], row["kind"]), []).append(row)

    @property
    def kinds(self) -> list[str]:
        return list(dict.fromkeys(kind for _, _, kind in self._rows))

    @property
    def ratios(self) -> list[float]:
        return sorted({ratio for method, ratio, _ in self._rows if method == METHOD})

    def of(self, method: str, ratio: float = 0.0, kind: str = ALL) -> np.ndarray | None:
        """``[seeds]``; None where a host or more was left out."""
        rows = self._rows.get((method, ratio, kind), [])
        return np.array([row["accuracy"] for row in rows]) if len(rows) == self.seeds else None

    def table(self) -> list[dict[str, Any]]:
        """One row for each method, ratio and kind, for figures: mean, spread and every seed's accuracy."""
        table = []
        for (method, ratio, kind), rows in self._rows.items():
            values = np.array([row["accuracy"] for row in rows])
            shares = {name: round(float(np.mean([row[name] for row in rows])), 5) for name in _SHARES}
            found = {"mean": round(float(values.mean()), 5), "spread": round(spread(values), 5)}
            seeds = [round(value, 5) for value in values.tolist()]
            table.append({"method": method, "ratio": ratio, "kind": kind, **shares, **found, "seeds": seeds})
        return table


_SHARES = ("visual_reduction", "prompt_reduction")


def judge(measured: Measured) -> list[Finding]:
    """Findings from every seed's measurements."""
    scores = Scores(measured)
    gate = judge_gate(measured)
    return [
        gate,
        judge_accuracy(scores),
        judge_when(scores),
        judge_peers(scores),
        judge_which(scores, measured, bool(gate.passed)),
        judge_statistics(scores),
        judge_rounding(measured),
    ]


def judge_gate(measured: Measured) -> Finding:
    """Whether the hosts still read the picture where tokens are dropped."""
    from tenfold.data.mini_lessons import LAST

    curves = np.array([one["gate"]["two_hop"] for one in measured.values()])  # [seeds, layers]
    early, whole = curves[:, GATE_LAYER], curves[:, -1]
    rises = verdict(whole, early) == "ahead" and bool((whole > early).all() and whole.min() > GATE_ACCURACY)
    detail = (
        f"two-hop accuracy {show(whole)} %, {show(early)} % with one visual token left after layer {GATE_LAYER}, "
        f"{len(measured)} seeds; hints in their training led these hosts to look there, after {LAST} of "
        f"{curves.shape[1]} layers: no evidence of where larger models look"
    )
    shown = {kind: [one["gate"][kind] for one in measured.values()] for kind in next(iter(measured.values()))["gate"]}
    hosts = {str(seed): one.get("host") for seed, one in measured.items()}
    return Finding("mini-gate", 100 * float((whole - early).mean()), rises, detail, {"curves": shown, "hosts": hosts})


def judge_accuracy(scores: Scores) -> Finding:
    """What 40 and 60 % cost, in every kind of question."""
    losses = {}
    for ratio in (0.4, 0.6):
        for kind in scores.kinds:
            before, after = scores.of(UNPRUNED, 0.0, kind), scores.of(METHOD, ratio, kind)
            if kind != ALL and before is not None and after is not None:
                losses[ratio, kind] = before - after
    if not losses:
        return Finding("mini-accuracy", None, None, "no recipe in reach")
    worst = max(float(loss.mean()) for loss in losses.values())
    told = "; ".join(
        f"{ratio:.0%}: "
        + ", ".join(f"{kind} {show(-loss)}" for (budget, kind), loss in losses.items() if budget == ratio)
        for ratio in dict.fromkeys(ratio for ratio, _ in losses)
    )
    return Finding("mini-accuracy", 100 * worst, worst <= LOSS, f"change in points, {told}; {scores.seeds} seeds")


def judge_when(scores: Scores) -> Finding:
    """A recipe against random removal before layer 0, on all questions."""
    pairs = _pairs(scores, "random-before", ALL, [ratio for ratio in scores.ratios if ratio >= 0.6])
    if not pairs:
        return Finding("mini-when", None, None, "no recipe in reach")
    leads = {ratio: float((ours - theirs).mean()) for ratio, (ours, theirs) in pairs.items()}
    far = all(verdict(*pair) == "ahead" and leads[ratio] >= FAR for ratio, pair in pairs.items())
    kinds = "; ".join(
        f"{kind} {_leads(_pairs(scores, 'random-before', kind, list(pairs)))}" for kind in scores.kinds if kind != ALL
    )
    detail = f"recipe against random, all questions, {_told(pairs)}; in points, {kinds}; {scores.seeds} seeds"
    return Finding("mini-when", 100 * min(leads.values()), far, detail)


def judge_peers(scores: Scores) -> Finding:
    """The method against published pruners, on all questions, at every budget that they can save."""
    pairs = {name: _pairs(scores, name, ALL, scores.ratios) for name in PEERS}
    verdicts = [verdict(*pair) for found in pairs.values() for pair in found.values()]
    if not verdicts:
        return Finding("mini-peers", None, None, "no budget in reach")
    passed = False if "behind" in verdicts else "ahead" in verdicts or None
    leads = [float((ours - theirs).mean()) for found in pairs.values() for ours, theirs in found.values()]
    told = "; ".join(f"{name}, {_told(found)}" for name, found in pairs.items() if found)
    return Finding("mini-peers", 100 * min(leads), passed, f"all questions: {told}; {scores.seeds} seeds")


def judge_which(scores: Scores, measured: Measured, gate: bool) -> Finding:
    """The product rule against random and inverse under the same recipe, on two-hop questions."""
    verdicts, told = [], []
    for control in CONTROLS:
        pairs = _pairs(scores, control, TWO_HOP, scores.ratios)
        verdicts.append([verdict(*pair) for pair in pairs.values()])
        told.append(f"{control}: {_told(pairs)}")
    passed: bool | None = all("ahead" in one for one in verdicts) or None  # nothing but ties: nothing was told apart
    if any("behind" in one for one in verdicts):
        passed = False
    if not gate:
        passed, told = None, [*told, "the gate is not passed: this says nothing"]
    lead = _pairs(scores, "random", TWO_HOP, [0.6]).get(0.6)
    value = None if lead is None else 100 * float((lead[0] - lead[1]).mean())
    left_out = {str(seed): dict(one["left_out"]) for seed, one in measured.items()}
    detail = f"product against {'; '.join(told)}; {scores.seeds} seeds"
    return Finding("mini-which", value, passed, detail, {"table": scores.table(), "left_out": left_out})


def judge_statistics(scores: Scores, ratio: float = 0.6) -> Finding:
    """The three statistics under three schedules, on two-hop questions."""
    names = {
        "recipe": (METHOD, "self", "cross"),
        "uniform steps": ("uniform", "self in uniform steps", "cross in uniform steps"),
        "single cut": ("single-cut", "self in a single cut", "cross in a single cut"),
    }
    told = []
    for schedule, methods in names.items():
        found = [scores.of(method, ratio, TWO_HOP) for method in methods]
        product = found[0]
        if product is None:
            continue
        others = [
            f"{name} {show(values)} ({_said(verdict(product, values))})"
            for name, values in zip(("self", "cross"), found[1:], strict=True)
            if values is not None
        ]
        told.append(f"{schedule}: product {show(product)}, {', '.join(others)}")
    ours = scores.of(METHOD, ratio, TWO_HOP)
    value = None if ours is None else 100 * float(ours.mean())
    return Finding(
        "mini-statistics", value, None, f"two-hop accuracy at {ratio:.0%}, {'; '.join(told)}; {scores.seeds} seeds"
    )


def judge_rounding(measured: Measured) -> Finding:
    """What both ways of rounding deliver of the budgets that were fitted on every host."""
    recipes: dict[float, list[Mapping[str, Any]]] = {}
    for one in measured.values():
        for recipe in one["recipes"]:
            recipes.setdefault(recipe["ratio"], []).append(recipe)
    told, short, holds = [], [], True
    for ratio, found in recipes.items():
        floor, ours = (
            np.array([recipe["delivered"][name] for recipe in found]) for name in ("floor", "largest_remainder")
        )
        token = 1 / found[0]["visual_tokens"]  # of the budget: one visual token in every layer
        holds &= bool((floor < ratio).all() and (abs(ours - ratio) <= token).all())
        short.append(ratio - floor.mean())
        prompt = np.array([recipe["whole_prompt"] for recipe in found])
        told.append(
            f"asked {ratio:.0%}: rounded down {show(floor)}, largest remainder {show(ours)}, of a whole prompt "
            f"{show(prompt)}"
        )
    value = 100 * float(np.mean(short)) if short else None
    rows = {str(seed): one["recipes"] for seed, one in measured.items()}
    detail = f"% of the visual FLOPs saved, {'; '.join(told)}; {len(measured)} seeds"
    return Finding("mini-rounding", value, holds if short else None, detail, {"recipes": rows})


def verdict(ours: np.ndarray, theirs: np.ndarray) -> str:
    """ "ahead", "behind" or "tie": a difference of means counts when it exceeds the larger spread."""
    difference = float(ours.mean() - theirs.mean())
    if abs(difference) <= max(spread(ours), spread(theirs)):
        return "tie"
    return "ahead" if difference > 0 else "behind"


def show(values: np.ndarray) -> str:
    """Mean ± spread of shares, in per cent."""
    return f"{100 * values.mean():.1f} ± {100 * spread(values):.1f}"


def _said(found: str) -> str:
    return {"ahead": "product ahead", "behind": "product behind"}.get(found, found)


def _pairs(
    scores: Scores, other: str, kind: str, ratios: Sequence[float]
) -> dict[float, tuple[np.ndarray, np.ndarray]]:
    """Ratio -> accuracies of the method and of another one, where both could be run on every host."""
    found = {ratio: (scores.of(METHOD, ratio, kind), scores.of(other, ratio, kind)) for ratio in ratios}
    return {ratio: (a, b) for ratio, (a, b) in found.items() if a is not None and b is not None}


def _told(pairs: Mapping[float, tuple[np.ndarray, np.ndarray]]) -> str:
    return ", ".join(
        f"{ratio:.0%}: {show(ours)} against {show(theirs)} ({verdict(ours, theirs)})"
        for ratio, (ours, theirs) in pairs.items()
    )


def _leads(pairs: Mapping[float, tuple[np.ndarray, np.ndarray]]) -> str:
    return ", ".join(
        f"{ratio:.0%}: {100 * (ours.mean() - theirs.mean()):+.1f} ({verdict(ours, theirs)})"
        for ratio, (ours, theirs) in pairs.items()
    )
