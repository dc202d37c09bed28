"""What the miniature's arms and seeds come to. The rule stands in claims.yaml and was fixed before the runs.

Answers are compared question by question and seed by seed, in points of right answers; every kind of question weighs
the same. `tenfold.ledger.seeds.verdict` is the rule, with the least effects below; what a comparison cannot do without
is a gate, which every seed must pass, else there is no verdict.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from llava_hr.data.mini_questions import COARSE, FINE, KINDS
from tenfold.cli import Finding
from tenfold.ledger.seeds import counts, interval, paired, show, spread, verdict

SEEDS = (0, 1, 2)
VIT, CONVNEXT, ALIGN, MRA, LOW_TO_HIGH, VIT_DOUBLE = "vit", "convnext", "align", "mra", "low_to_high", "vit_double"
MRA_HALF = "mra_96"
ARMS = (MRA, ALIGN, VIT, CONVNEXT, LOW_TO_HIGH, VIT_DOUBLE, MRA_HALF)
NAMES = {
    VIT: "(a) ViT, 84 px",
    CONVNEXT: "(b) ConvNeXt, 192 px",
    ALIGN: "(c) both, final align only",
    MRA: "(d) MRA",
    LOW_TO_HIGH: "(e) low to high",
    VIT_DOUBLE: "(f) ViT, 168 px, 144 tokens",
    MRA_HALF: "(d) MRA, trained at 96 px",
}
# Coarse questions that the language model can answer: it has to count visual tokens to find a column, and finds half.
ANSWERABLE = tuple(kind for kind in COARSE if kind != "column")
# Steps that a point of a loss curve is the mean of.
CURVE = 50

# Least effects, in points.
LEAST = 2.0  # of pathways, adapters and their direction
WIDE = 20.0  # fine(d) over fine(a)
RISE = 10.0  # of fine from 96 to 192 pixels: (d) at least that much, (a) less
NEAR = 5.0  # fine(d) under fine(f)
SEEN = 20.0  # a picture of one's own over another question's


@dataclass(frozen=True)
class Gate:
    """What every seed must show.

    Attributes:
        values: a number for each seed.
        least, most: between which they must lie.
    """

    values: np.ndarray
    least: float = -np.inf
    most: float = np.inf

    @property
    def passed(self) -> bool:
        return bool(((self.values >= self.least) & (self.values <= self.most)).all())

    def __str__(self) -> str:
        bounds = (f"at least {self.least:g}" if np.isfinite(self.least) else "",
                  f"at most {self.most:g}" if np.isfinite(self.most) else "")  # fmt: skip
        return f"{', '.join(f'{value:.1f}' for value in self.values)} ({' and '.join(filter(None, bounds))})"


FINE_SEEN, COARSE_SEEN = "the picture is needed for fine questions", "the picture is needed for coarse questions"
HIDDEN, READER, ROOM, REFERENCE = "fine by (a)", "fine by (b)", "coarse without columns by (b)", "fine by (c)"
# Claim -> the gates that it needs.
NEEDS = {
    "mini-fine": (FINE_SEEN, HIDDEN),
    "mini-cost": (FINE_SEEN,),
    "mini-resolution": (FINE_SEEN, HIDDEN),
    "mini-coarse": (COARSE_SEEN, ROOM),
    "mini-both": (FINE_SEEN, COARSE_SEEN, READER),
    "mini-adapters": (FINE_SEEN, READER, REFERENCE),
    "mini-direction": (FINE_SEEN, READER, REFERENCE),
}
Runs = Mapping[str, Sequence[Mapping[str, Any]]]


def gates(measured: Runs) -> dict[str, Gate]:
    """The gates, by name."""
    lead = {
        kinds: mean_accuracy(measured[MRA], kinds) - mean_accuracy(measured[MRA], kinds, "swapped")
        for kinds in (FINE, COARSE)
    }
    return {
        FINE_SEEN: Gate(lead[FINE], SEEN),
        COARSE_SEEN: Gate(lead[COARSE], SEEN),
        HIDDEN: Gate(mean_accuracy(measured[VIT], FINE), most=40.0),
        READER: Gate(mean_accuracy(measured[CONVNEXT], FINE), 75.0, 92.0),
        ROOM: Gate(mean_accuracy(measured[CONVNEXT], ANSWERABLE), most=95.0),
        REFERENCE: Gate(mean_accuracy(measured[ALIGN], FINE), 25.0, 95.0),
    }


def judge(measured: Runs, zero: float) -> list[Finding]:
    """Findings from every run's measurements.

    Args:
        measured: arm -> `arms.measure_run` of every seed.
        zero: of `arms.step_zero`.
    """
    found = gates(measured)
    told = "; ".join(f"{name} {gate}" for name, gate in found.items())
    missed = [name for name, gate in found.items() if not gate.passed]
    shown = {
        name: {"values": gate.values.tolist(), "passed": gate.passed}
        | {side: bound for side in ("least", "most") if np.isfinite(bound := getattr(gate, side))}
        for name, gate in found.items()
    }
    lead = found[FINE_SEEN].values
    seen = f"fine {show(mean_accuracy(measured[MRA], FINE))}, with another question's picture "
    seen += (
        f"{show(mean_accuracy(measured[MRA], FINE, 'swapped'))} %; coarse {show(mean_accuracy(measured[MRA], COARSE))} "
    )
    seen += f"and {show(mean_accuracy(measured[MRA], COARSE, 'swapped'))} %; {len(lead)} seeds"
    return [
        Finding("mini-gates", len(found) - len(missed), not missed,
                f"{told}; missed: {', '.join(missed) or 'none'}",
                {"gates": shown, "runs": [_kept(run) for runs in measured.values() for run in runs]}),
        Finding("mini-seen", float(lead.mean()), found[FINE_SEEN].passed and found[COARSE_SEEN].passed, seen),
        _compared(measured, found, "mini-fine", (VIT,), FINE, WIDE, {"table": table(measured)}),
        _compared(measured, found, "mini-coarse", (CONVNEXT,), ANSWERABLE, LEAST),
        _compared(measured, found, "mini-both", (CONVNEXT, VIT), KINDS, LEAST),
        _compared(measured, found, "mini-adapters", (ALIGN,), FINE, LEAST),
        _compared(measured, found, "mini-direction", (LOW_TO_HIGH,), FINE, LEAST),
        _cost(measured, found),
        Finding("mini-step-zero", zero, zero == 0.0,
                "largest difference between the visual tokens of (d) and (c) before their training"),
        _resolution(measured, found),
    ]  # fmt: skip


def _missed(found: Mapping[str, Gate], claim: str) -> list[str]:
    return [f"{name} {found[name]}" for name in NEEDS[claim] if not found[name].passed]


def _compared(
    measured: Runs,
    found: Mapping[str, Gate],
    claim: str,
    others: Sequence[str],
    kinds: Sequence[str],
    least: float,
    more: Mapping[str, Any] | None = None,
) -> Finding:
    """(d) against other arms; holds where it holds against every one. Its value is the smallest lead."""
    missed, told, words, leads = _missed(found, claim), [], [], []
    gate = np.array([run["gate"] for run in measured[MRA]]).mean(0)
    for other in others:
        difference = right(measured[MRA], kinds) - right(measured[other], kinds)
        words.append(verdict(difference, least, not missed))
        low, high = interval(difference)
        leads.append(float(difference.mean()))
        parts = [
            f"{name} {show(mean_accuracy(measured[MRA], part))} against {show(mean_accuracy(measured[other], part))}"
            for name, part in (("fine", FINE), ("coarse", COARSE))
            if set(part) <= set(kinds)
        ]
        told.append(
            f"{words[-1]}: {NAMES[other]} {paired(difference.mean(1))} [{low:.1f}, {high:.1f}]; "
            + (f"{', '.join(parts)} %; " if parts else "")
            + kinds_told(measured, (MRA, other), kinds)
        )
    passed = None if missed else all(word == "holds" for word in words)
    reason = f"gate missed, {'; '.join(missed)}. " if missed else ""
    detail = f"{reason}{'. '.join(told)}; mean |gate| {', '.join(f'{value:.2f}' for value in gate)}"
    return Finding(claim, min(leads), passed, detail, {"verdict": _together(words), **(more or {})})


def _together(words: Sequence[str]) -> str:
    """One word for several comparisons that must all hold."""
    return next(word for word in ("no verdict", "not reproduced", "equivalent", "holds") if word in words)


def _cost(measured: Runs, found: Mapping[str, Gate]) -> Finding:
    """Fewer multiply-accumulates than (f), and fine questions answered as well: the interval's lower end decides."""
    missed = _missed(found, "mini-cost")
    macs = {arm: measured[arm][0]["macs"] / 1e6 for arm in (MRA, VIT_DOUBLE)}
    difference = right(measured[MRA], FINE) - right(measured[VIT_DOUBLE], FINE)
    low, high = interval(difference)
    holds = macs[MRA] < macs[VIT_DOUBLE] and low > -NEAR
    word = "no verdict" if missed else "holds" if holds else "not reproduced"
    reason = f" (gate missed, {'; '.join(missed)})" if missed else ""
    detail = (
        f"{word}{reason}: {macs[MRA]:.1f} against {macs[VIT_DOUBLE]:.1f} million multiply-accumulates, "
        f"{measured[MRA][0]['tokens']} against {measured[VIT_DOUBLE][0]['tokens']} visual tokens, "
        f"{milliseconds(measured[MRA])} against {milliseconds(measured[VIT_DOUBLE])} ms a question; fine "
        f"{show(mean_accuracy(measured[MRA], FINE))} against {show(mean_accuracy(measured[VIT_DOUBLE], FINE))} %, "
        f"{paired(difference.mean(1))} [{low:.1f}, {high:.1f}]"
    )
    return Finding(
        "mini-cost", macs[MRA] / macs[VIT_DOUBLE], None if missed else holds, detail, {"verdict": word}
    )  # fmt: skip


def _resolution(measured: Runs, found: Mapping[str, Gate]) -> Finding:
    """Trained and asked at 96 and at 192 pixels; and what was trained at 192 asked at 96."""
    missed = _missed(found, "mini-resolution")
    trained = right(measured[MRA], FINE) - right(measured[MRA_HALF], FINE)
    fine = {arm: mean_accuracy(measured[arm], FINE) for arm in (MRA, MRA_HALF, VIT)}
    half = {arm: mean_accuracy(measured[arm], FINE, "half") for arm in (MRA, VIT)}
    word = verdict(trained, RISE, not missed)
    if word == "holds" and not (counts(fine[MRA] - half[MRA], RISE) and (fine[VIT] - half[VIT]).mean() < RISE):
        word = "not reproduced"
    low, high = interval(trained)
    reason = f" (gate missed, {'; '.join(missed)})" if missed else ""
    detail = (
        f"{word}{reason}: fine of (d) {show(fine[MRA_HALF])} % trained and asked at 96 pixels, {show(fine[MRA])} at "
        f"192, {paired(trained.mean(1))} [{low:.1f}, {high:.1f}]; the same models asked at 96 and 192: (d) "
        f"{show(half[MRA])} and {show(fine[MRA])}, (a) {show(half[VIT])} and {show(fine[VIT])}"
    )
    passed = None if missed else word == "holds"
    return Finding("mini-resolution", float(trained.mean()), passed, detail, {"verdict": word})


def right(runs: Sequence[Mapping[str, Any]], kinds: Sequence[str]) -> np.ndarray:
    """Which questions of some kinds were answered rightly, 100 or 0: `[seeds, questions]`."""
    return np.array([[100.0 * int(sign) for kind in kinds for sign in run["right"][kind]] for run in runs])


def mean_accuracy(runs: Sequence[Mapping[str, Any]], kinds: Sequence[str], key: str = "accuracy") -> np.ndarray:
    """Per cent, `[seeds]`: the mean over kinds of questions."""
    return np.array([100 * np.mean([run[key][kind] for kind in kinds]) for run in runs])


def milliseconds(runs: Sequence[Mapping[str, Any]]) -> str:
    """Median of a question over the seeds."""
    return f"{np.median([run['milliseconds'] for run in runs]):.0f}"


def kinds_told(measured: Runs, arms: Sequence[str], kinds: Sequence[str]) -> str:
    """Kind by kind, the means of several variants."""
    means = {kind: [mean_accuracy(measured[arm], [kind]).mean() for arm in arms] for kind in kinds}
    return ", ".join(f"{kind} {' / '.join(f'{value:.0f}' for value in values)}" for kind, values in means.items())


def _kept(run: Mapping[str, Any]) -> dict[str, Any]:
    """What figures and a second judge need of a run."""
    names = ("arm", "seed", "accuracy", "swapped", "half", "right", "caption_loss", "loss", "gate")
    return {name: run[name] for name in names if name in run}


def table(measured: Runs) -> list[dict[str, Any]]:
    """A row for each variant: accuracy coarse, fine and by kind, tokens, multiply-accumulates, parameters, gate."""
    rows = []
    for arm, runs in measured.items():
        row: dict[str, Any] = {"arm": arm, "name": NAMES[arm], "seeds": len(runs)}
        for name, kinds in (("coarse", COARSE), ("fine", FINE)):
            values = mean_accuracy(runs, kinds)
            row[name] = {"mean": values.mean(), "spread": spread(values), "seeds": values.tolist()}
        row["kinds"] = {kind: mean_accuracy(runs, [kind]).mean() for kind in (*COARSE, *FINE)}
        for key in ("tokens", "macs", "parameters"):
            row[key] = runs[0].get(key)
        for key in ("milliseconds", "cpu_seconds"):
            row[key] = float(np.median([run[key] for run in runs])) if key in runs[0] else None
        row["gate"] = np.mean([run["gate"] for run in runs], axis=0).tolist() if runs[0].get("gate") else None
        row["plan"] = dict(runs[0]["plan"])
        rows.append(row)
    return rows
