"""`inst-diff-edit claims --train`: run the miniature's seeds and judge them by the rule that claims.yaml states.

Differences are paired: every rule has a mask of every scene, under every seed. The interval is a bootstrap over seeds
and scenes together. A gate that a seed misses makes every comparison "no verdict".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from inst_diff_edit.evidence import arms
from inst_diff_edit.evidence.arms import METHOD, SDEDIT, TESTING, TRUE_MASK, VARIANTS
from tenfold.cli import Experiments, Finding
from tenfold.ledger.seeds import counts, interval, paired, row, run_each, show

SEEDS = (0, 1, 2)
MINUTES = 45
# Least effects: of IoU, and of the mean change of pixels in [0, 1].
IOU, OUTSIDE = 0.03, 0.005
# name -> (least, most), of every seed.
GATES: dict[str, tuple[float | None, float | None]] = {
    "noun against the other object, AUC": (0.85, None),
    "start token against the sum of words, |correlation|": (None, 0.9),
    "ground's word on the ground, AUC": (0.7, None),
    "prompts whose ground has the background's role": (0.3, None),
    "noun told above both objects told, IoU": (IOU, None),
}
PARTS = (arms.REFERENCE, arms.LAST, arms.MEAN, arms.SUM, arms.UNSUBTRACTED)
DIFFEDITS = (arms.REPOSITORY, arms.DIFFUSERS)
WORDLESS = (arms.BOTH, arms.FULL, arms.BOX)

Measured = Mapping[int, Mapping[str, Any]]


def experiments() -> Experiments:
    """What `claims --train` does."""
    return Experiments(
        f"trains the mini model with {len(SEEDS)} seeds and tests masks and edits on {TESTING} scenes: "
        f"about {MINUTES} minutes on two cores",
        conduct,
    )


def conduct(folder: Path, workers: int = 2) -> list[Finding]:
    """Train and measure every seed that is not in the folder yet, then judge the claims."""
    from inst_diff_edit.evidence.experiments import run_seed

    folder.mkdir(parents=True, exist_ok=True)
    measured = run_each([(run_seed, seed, folder) for seed in SEEDS], workers)
    return judge(dict(zip(SEEDS, measured, strict=True)))


def gates(measured: Measured) -> dict[str, tuple[list[float], bool]]:
    """Every gate's values over the seeds, and whether all of them lie within its bounds."""
    values: dict[str, list[float]] = {name: [] for name in GATES}
    for one in measured.values():
        found, ground = one["gates"], one["roles"]["whole"]["ground"]
        start = max(abs(found["start and words, first step"]), abs(found["start and words, last step"]))
        told, both = (float(np.mean(one["iou"][rule])) for rule in (arms.NOUN, arms.BOTH))
        share = ground["background"] / sum(ground.values())
        shown = (found["noun against other"], start, found["ground"], share, told - both)
        for name, value in zip(GATES, shown, strict=True):
            values[name].append(round(float(value), 4))
    return {
        name: (
            values[name],
            all((least is None or value >= least) and (most is None or value < most) for value in values[name]),
        )
        for name, (least, most) in GATES.items()
    }


def judge(measured: Measured) -> list[Finding]:
    """The findings, one for each claim of the miniature, from every seed's measurements."""
    found = gates(measured)
    missed = [name for name, (_, within) in found.items() if not within]
    return [
        _gates(found, missed, measured),
        _ahead("mini-iou", measured, (arms.START,), missed, {"table": table(measured)}),
        _ahead("mini-parts", measured, PARTS, missed),
        _ahead("mini-diffedit", measured, DIFFEDITS, missed),
        _ahead("mini-word", measured, WORDLESS, missed),
        _reference(measured),
        _background(measured, missed),
        _done(measured),
    ]


def table(measured: Measured) -> list[dict[str, Any]]:
    """Rows for the report: a rule's IoU by seed, its thresholds, its UNet forwards, and how far the method leads."""
    forwards, rows = arms.forwards(), []
    for rule in next(iter(measured.values()))["iou"]:
        lead = _ious(measured, METHOD) - _ious(measured, rule)
        low, high = interval(lead)
        rows.append(
            row(
                rule, _ious(measured, rule).mean(1), forwards=forwards[rule],
                thresholds=[one["threshold"][rule] for one in measured.values()],
                lead=float(lead.mean()), lead_interval=[low, high],
            )
        )  # fmt: skip
    return sorted(rows, key=lambda one: -one["mean"])


def paired_verdict(difference: np.ndarray, least: float, valid: bool) -> str:
    """The house's rule for differences ``[seeds, scenes]``, with an interval over both.

    Returns:
        "no verdict" where a gate failed; "holds" where the mean exceeds its spread over the seeds and the least effect,
        and the interval is above zero; "equivalent" where the interval lies within that effect; else "not reproduced".
    """
    if not valid:
        return "no verdict"
    low, high = interval(difference)
    if counts(difference.mean(1), least) and low > 0:
        return "holds"
    return "equivalent" if -least < low and high < least else "not reproduced"


def _ious(measured: Measured, rule: str) -> np.ndarray:
    """``[seeds, scenes]``."""
    return np.array([one["iou"][rule] for one in measured.values()], dtype=float)


def _edits(measured: Measured, variant: str, what: str) -> np.ndarray:
    """``[seeds, scenes]``."""
    return np.array([one["edits"][variant][what] for one in measured.values()], dtype=float)


def _valid(measured: Measured, missed: Sequence[str]) -> bool:
    """A comparison is judged on all declared seeds, whose gates are passed."""
    return not missed and len(measured) >= len(SEEDS)


def _why(measured: Measured, missed: Sequence[str]) -> str:
    few = [] if len(measured) >= len(SEEDS) else [f"{len(measured)} of {len(SEEDS)} seeds"]
    reasons = [*(f"gate missed: {name}" for name in missed), *few]
    return f" ({'; '.join(reasons)})" if reasons else ""


def _gates(found: Mapping[str, tuple[list[float], bool]], missed: Sequence[str], measured: Measured) -> Finding:
    shown = "; ".join(f"{name} {', '.join(f'{value:.3f}' for value in values)}" for name, (values, _) in found.items())
    more = {name: [one["gates"][name] for one in measured.values()] for name in next(iter(measured.values()))["gates"]}
    both = np.array(more["noun against other, both named"])
    detail = (
        f"{shown}; missed: {', '.join(missed) or 'none'}; noun against the other object where both are named "
        f"{show(both, 3)}; {len(measured)} seeds. A small price on attention in training, the same at every pixel, led "
        "these models to look where words help: no place was taught, and it is no evidence of where larger models look"
    )
    bounds = {
        name: {"values": values, "passed": within, "bounds": GATES[name]} for name, (values, within) in found.items()
    }
    curves = {str(seed): one["curve"] for seed, one in measured.items() if "curve" in one}
    return Finding(
        "mini-gate", len(found) - len(missed), not missed, detail, {"gates": bounds, "measured": more, "curves": curves}
    )


def _ahead(
    claim: str,
    measured: Measured,
    others: Sequence[str],
    missed: Sequence[str],
    more: Mapping[str, Any] | None = None,
) -> Finding:
    """The method's masks against other rules': holds where it holds against every one; the number is the least lead."""
    ours = _ious(measured, METHOD)
    told, words, leads = [], [], []
    for other in others:
        lead = ours - _ious(measured, other)
        low, high = interval(lead)
        words.append(paired_verdict(lead, IOU, _valid(measured, missed)))
        leads.append(float(lead.mean()))
        told.append(
            f"{other} {show(_ious(measured, other).mean(1), 3)}: {paired(lead.mean(1), 'of IoU', 3)}, "
            f"interval {low:+.3f} to {high:+.3f}, {words[-1]}"
        )
    order = ("no verdict", "not reproduced", "equivalent", "holds")
    outcome = min(words, key=order.index)
    detail = f"{outcome}{_why(measured, missed)}: method {show(ours.mean(1), 3)} against {'; '.join(told)}"
    passed = {"holds": True, "not reproduced": False}.get(outcome)
    return Finding(claim, min(leads), passed, detail, {"verdict": outcome, **(more or {})})


def _reference(measured: Measured) -> Finding:
    """How often the rule's reference word is the noun, and what masks come to where little else can be chosen."""
    shares = {}
    for prompts in ("whole", "short"):
        chosen = [one["reference"][prompts] for one in measured.values()]
        shares[prompts] = np.array([one["noun"] / sum(one.values()) for one in chosen])
    summed: dict[str, int] = {}
    for one in measured.values():
        for kind, count in one["reference"]["whole"].items():
            summed[kind] = summed.get(kind, 0) + count
    listed = ", ".join(f"{kind} {count}" for kind, count in sorted(summed.items(), key=lambda pair: -pair[1]))
    short = _ious(measured, arms.SHORT) - _ious(measured, METHOD)
    low, high = interval(short)
    detail = (
        f"share of prompts whose reference is the noun {show(shares['whole'], 3)} ({listed}), in prompts of noun and "
        f"ground alone {show(shares['short'], 3)}; masks there {show(_ious(measured, arms.SHORT).mean(1), 3)}, "
        f"{paired(short.mean(1), 'of IoU', 3)}, interval {low:+.3f} to {high:+.3f}; no verdict was declared"
    )
    more = {
        "reference": {str(seed): one["reference"] for seed, one in measured.items()},
        "roles": {str(seed): one["roles"] for seed, one in measured.items()},
    }
    return Finding("mini-reference", float(shares["whole"].mean()), None, detail, more)


def _background(measured: Measured, missed: Sequence[str]) -> Finding:
    ours, free = (_edits(measured, variant, "outside") for variant in (METHOD, SDEDIT))
    outcome = paired_verdict(free - ours, OUTSIDE, _valid(measured, missed))
    low, high = interval(free - ours)
    detail = (
        f"{outcome}{_why(measured, missed)}: mean change outside of the true mask {show(ours.mean(1), 4)}, SDEdit "
        f"{show(free.mean(1), 4)}, with the true mask {show(_edits(measured, TRUE_MASK, 'outside').mean(1), 4)}; "
        f"{paired((free - ours).mean(1), 'less', 4)}, interval {low:+.4f} to {high:+.4f}"
    )
    passed = {"holds": True, "not reproduced": False}.get(outcome)
    return Finding("mini-background", float((free - ours).mean()), passed, detail, {"verdict": outcome})


def _done(measured: Measured) -> Finding:
    shown = [
        f"{variant}: done {show(_edits(measured, variant, 'done').mean(1), 3)}, other object kept "
        f"{show(_edits(measured, variant, 'kept').mean(1), 3)}"
        for variant in VARIANTS
    ]
    detail = f"{'; '.join(shown)}; no verdict was declared"
    return Finding("mini-edit", float(_edits(measured, METHOD, "done").mean()), None, detail)
