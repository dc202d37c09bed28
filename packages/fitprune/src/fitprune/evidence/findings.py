"""What the mini hosts' measurements say about the claims.

A comparison is paired: every host answers the same questions under both arms. It is judged by the house's rule
(`tenfold.ledger.seeds.verdict`) over three training seeds, with the least effects below, which claims.yaml states; the
interval is a bootstrap over seeds and questions together. A gate that a host does not pass makes the comparisons that
rest on it "no verdict".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fitprune.evidence.experiments import ARMS, RATIOS, SEEDS, UNPRUNED
from tenfold.cli import Finding
from tenfold.ledger.seeds import interval, show, spread, verdict

METHOD = "product"
RATIO = 0.6  # at which claims are judged; the other budgets are shown
# Least effects, in points: against chance, and against rules and schedules that look at attention, too.
AGAINST_CHANCE, AGAINST_RULES, COST = 5.0, 2.0, 2.0
CHANCE, STATISTICS, PEERS = ("random", "grid"), ("self", "cross", "last-token"), ("fastv", "pyramiddrop")
# name -> (least, most): what a host must show for a comparison of which tokens leave, and of when they leave.
WHICH = {
    "unpruned accuracy": (25.0, 95.0),
    "AUC of the product": (0.8, None),
    "loss by the oracle": (None, 2.0),
    "loss by chance": (15.0, None),
    "product over inverse": (10.0, None),
}
WHEN = {"layers of the recipe": (3.0, None)}

Measured = Mapping[int, Mapping[str, Any]]


class Scores:
    """Shares of right answers by arm and budget, in per cent.

    Args:
        measured: by seed, as `experiments.measure` gives it.
    """

    def __init__(self, measured: Measured) -> None:
        self.seeds = tuple(measured)
        self._measured = measured
        self.kinds = np.array(next(iter(measured.values()))["kinds"])

    def questions(self, arm: str, ratio: float = RATIO) -> np.ndarray | None:
        """``[seeds, questions]``; None where a host or more was left out."""
        key = "0" if arm == UNPRUNED else f"{ratio:g}"
        rows = [one["right"].get(arm, {}).get(key) for one in self._measured.values()]
        return None if any(row is None for row in rows) else 100 * np.array(rows)

    def of(self, arm: str, ratio: float = RATIO) -> np.ndarray | None:
        """``[seeds]``."""
        found = self.questions(arm, ratio)
        return None if found is None else found.mean(1)

    def table(self) -> list[dict[str, Any]]:
        """One row for each arm, budget and kind of question, for figures: shares of right answers, every seed's too."""
        rows = []
        for arm in (UNPRUNED, *ARMS):
            for ratio in (0.0,) if arm == UNPRUNED else RATIOS:
                found = self.questions(arm, ratio)
                if found is None:
                    continue
                saved = [one["saved"].get(arm, {}).get(f"{ratio:g}", 0.0) for one in self._measured.values()]
                for kind in ("all", *dict.fromkeys(self.kinds.tolist())):
                    values = found[:, self.kinds == kind].mean(1) if kind != "all" else found.mean(1)
                    seeds = [round(value / 100, 5) for value in values.tolist()]
                    middle = {"mean": round(float(values.mean()) / 100, 5), "spread": round(spread(values) / 100, 5)}
                    rows.append(
                        {"method": arm, "ratio": ratio, "kind": kind, "visual_reduction": float(np.mean(saved))}
                        | {**middle, "seeds": seeds}
                    )
        return rows


def gates(scores: Scores, measured: Measured) -> dict[str, tuple[list[float], bool]]:
    """Every gate's values over the seeds, and whether all of them lie within its bounds."""
    signal = [one["signal"].get(f"{RATIO:g}") for one in measured.values()]
    values: dict[str, np.ndarray | None] = {
        "unpruned accuracy": scores.of(UNPRUNED),
        "AUC of the product": None if None in signal else np.array([one["auc"] for one in signal if one]),
        "loss by the oracle": _difference(scores, UNPRUNED, "oracle"),
        "loss by chance": _difference(scores, UNPRUNED, "random"),
        "product over inverse": _difference(scores, METHOD, "inverse"),
        "layers of the recipe": None if None in signal else np.array([one["layers"] for one in signal if one]),
    }
    found = {}
    for name, (least, most) in {**WHICH, **WHEN}.items():
        value = values[name]
        within = value is not None and all(
            (least is None or one >= least) and (most is None or one <= most) for one in value
        )
        found[name] = ([] if value is None else [round(float(one), 3) for one in value], within)
    return found


def judge(measured: Measured) -> list[Finding]:
    """Findings from every seed's measurements."""
    scores = Scores(measured)
    found = gates(scores, measured)
    which = all(found[name][1] for name in WHICH)
    when = which and all(found[name][1] for name in WHEN)
    return [
        judge_gates(found, measured),
        judge_accuracy(scores, which),
        _compare(scores, "mini-which", CHANCE, AGAINST_CHANCE, which, {"table": scores.table()}),
        _compare(scores, "mini-when", ("random-before",), AGAINST_CHANCE, which),
        _compare(scores, "mini-statistics", STATISTICS, AGAINST_RULES, which),
        _compare(scores, "mini-schedule", ("uniform",), AGAINST_RULES, when),
        _compare(scores, "mini-peers", PEERS, AGAINST_RULES, when),
        judge_rounding(measured),
    ]


def judge_gates(found: Mapping[str, tuple[list[float], bool]], measured: Measured) -> Finding:
    """Whether the hosts can tell rules, and schedules, from one another."""
    missed = [name for name, (_, within) in found.items() if not within]
    shown = "; ".join(f"{name} {', '.join(f'{value:g}' for value in values)}" for name, (values, _) in found.items())
    among = [one["signal"].get(f"{RATIO:g}", {}).get("auc among objects") for one in measured.values()]
    near = ", ".join("none" if one is None else f"{one:.2f}" for one in among)
    detail = (
        f"{shown}; AUC among objects' patches alone {near}; missed: {', '.join(missed) or 'none'}; {_of(measured)}; "
        "masks and hints in their training led these hosts to look where they do: no evidence of where larger models "
        "look"
    )
    more = {"gates": {name: {"values": values, "passed": within} for name, (values, within) in found.items()}}
    return Finding("mini-gate", len(found) - len(missed), not missed, detail, more)


def judge_accuracy(scores: Scores, valid: bool) -> Finding:
    """What a budget costs: within COST of the unpruned host or not."""
    told, worst = [], None
    for ratio in RATIOS:
        loss = _difference(scores, UNPRUNED, METHOD, ratio)
        if loss is not None:
            told.append(f"{ratio:.0%}: {show(-loss)}")
            worst = float(loss.mean()) if ratio == RATIO else worst
    passed = None if worst is None or not _enough(scores, valid) else worst <= COST
    said = "" if _enough(scores, valid) else "no verdict; "
    detail = f"{said}change in points, {'; '.join(told)}; {_said(scores, valid)}"
    return Finding("mini-accuracy", worst, passed, detail)


def _compare(
    scores: Scores,
    claim: str,
    others: Sequence[str],
    least: float,
    valid: bool,
    more: Mapping[str, Any] | None = None,
) -> Finding:
    """The method against other arms at RATIO, by the house's rule: holds where it holds against every one."""
    verdicts, told, leads = [], [], []
    for other in others:
        lead = _difference(scores, METHOD, other)
        if lead is None:
            told.append(f"{other}: out of reach at {RATIO:.0%}")
            continue
        said = verdict(lead, least, _enough(scores, valid))
        ours, theirs = scores.questions(METHOD), scores.questions(other)
        low, high = interval(ours - theirs)  # type: ignore[operator]
        away = [
            f"{ratio:.0%} {show(difference)}"
            for ratio in RATIOS
            if ratio != RATIO and (difference := _difference(scores, METHOD, other, ratio)) is not None
        ]
        told.append(f"{other}: {show(lead)} [{low:.1f}, {high:.1f}] {said} ({', '.join(away)})")
        verdicts.append(said)
        leads.append(float(lead.mean()))
    if not verdicts or "no verdict" in verdicts:
        passed = None
    else:
        passed = all(said == "holds" for said in verdicts) or (False if "not reproduced" in verdicts else None)
    detail = f"product at {RATIO:.0%}, points ahead of {'; '.join(told)}; {_said(scores, valid)}"
    return Finding(claim, min(leads) if leads else None, passed, detail, more or {})


def judge_rounding(measured: Measured) -> Finding:
    """What both ways of rounding deliver of the budgets that were fitted on every host."""
    recipes: dict[float, list[Mapping[str, Any]]] = {}
    for one in measured.values():
        for recipe in one["recipes"]:
            recipes.setdefault(recipe["ratio"], []).append(recipe)
    told, short, holds = [], [], True
    for ratio, found in recipes.items():
        floor, ours = (
            100 * np.array([recipe["delivered"][name] for recipe in found]) for name in ("floor", "largest_remainder")
        )
        token = 100 / found[0]["visual_tokens"]  # of the budget: one visual token in every layer
        holds &= bool((floor < 100 * ratio).all() and (abs(ours - 100 * ratio) <= token).all())
        short.append(100 * ratio - floor.mean())
        prompt = 100 * np.array([recipe["whole_prompt"] for recipe in found])
        told.append(
            f"asked {ratio:.0%}: rounded down {show(floor)}, largest remainder {show(ours)}, of a whole prompt "
            f"{show(prompt)}"
        )
    value = float(np.mean(short)) if short else None
    rows = {str(seed): one["recipes"] for seed, one in measured.items()}
    detail = f"% of the visual FLOPs saved, {'; '.join(told)}; {_of(measured)}"
    return Finding("mini-rounding", value, holds if short else None, detail, {"recipes": rows})


def _difference(scores: Scores, ours: str, theirs: str, ratio: float = RATIO) -> np.ndarray | None:
    """``[seeds]``: points that one arm is ahead of another."""
    one, other = scores.of(ours, ratio), scores.of(theirs, ratio)
    return None if one is None or other is None else one - other


def _enough(scores: Scores, valid: bool) -> bool:
    """A comparison is judged on at least three seeds whose gates are passed."""
    return valid and len(scores.seeds) >= len(SEEDS)


def _said(scores: Scores, valid: bool) -> str:
    gate = "" if valid else "; a gate was missed: this says nothing"
    few = "" if len(scores.seeds) >= len(SEEDS) else f"; too few for a verdict, which takes {len(SEEDS)}"
    return f"{len(scores.seeds)} seed{'s' if len(scores.seeds) > 1 else ''}{few}{gate}"


def _of(measured: Measured) -> str:
    return f"{len(measured)} seed{'s' if len(measured) > 1 else ''}"
