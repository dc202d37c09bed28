"""What the arms and seeds of the miniature come to. The rules stand in claims.yaml and were fixed before the runs.

P@0.5 of the last weights on unseen scenes is the measure; arms are compared seed by seed. A difference holds when its
mean over the seeds exceeds its spread (standard deviation over the seeds) and LEAST points. Before that the gates:

    stage 0      masks from points reach POINTS mIoU in every seed
    default      the arm that the others are compared with finds between LOW and HIGH per cent
    sentences    L-DIT given another scene's sentences stays under OTHER mIoU

A gate that fails makes every comparison "no verdict".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tenfold.cli import Finding
from tenfold.ledger.seeds import counts, paired, show, told_apart, verdict

LEAST = 5.0
POINT_MIOU, LOW, HIGH, OTHER = 85.0, 25.0, 90.0, 20.0
# How far P@0.5 of sentences about places falls when their directions are turned.
TURNED = 10.0
MEASURE = "P@0.5"
# The arms, and stage 0.
DEFAULT, DEEPER, E_DIT, L_DIT = "default", "default_add_2", "e2e", "layer_wise"
POINTS = "points"
NAMES = {DEFAULT: "default", DEEPER: "default + 2 decoder layers", E_DIT: "E-DIT", L_DIT: "L-DIT"}
Measured = Mapping[str, Sequence[Mapping[str, Any]]]


def values(measured: Measured, arm: str, part: str = "all", name: str = MEASURE) -> np.ndarray:
    """A score of an arm, one for each seed, in per cent."""
    return np.array([run[part][name] for run in measured[arm]])


def gates(measured: Measured) -> dict[str, bool]:
    """Gate -> whether it passed."""
    points = np.array([run["point_mIoU"] for run in measured[POINTS]])
    return {
        "stage 0": bool((points >= POINT_MIOU).all()),
        "default": LOW <= values(measured, DEFAULT).mean() <= HIGH,
        "sentences": bool(values(measured, L_DIT, "other", "mIoU").mean() <= OTHER),
    }


def judge(measured: Measured) -> list[Finding]:
    """The findings, one for each claim of the miniature."""
    passed = gates(measured)
    valid = all(passed.values())
    failed = ", ".join(name for name, one in passed.items() if not one)
    points = np.array([run["point_mIoU"] for run in measured[POINTS]])
    other = values(measured, L_DIT, "other", "mIoU")
    told = (
        f"points {show(points)} mIoU (gate {POINT_MIOU:g} each), default {show(values(measured, DEFAULT))} P@0.5 (gate "
        f"{LOW:g} to {HIGH:g}), another scene's sentences {show(other)} mIoU (gate {OTHER:g})"
    )
    findings = [
        Finding("mini-gates", float(points.mean()), valid, told + (f"; failed: {failed}" if failed else "")),
        _compared(measured, "mini-layer-wise", L_DIT, DEFAULT, valid, failed, {"table": table(measured)}),
        _compared(measured, "mini-end-to-end", E_DIT, DEFAULT, valid, failed),
        _compared(measured, "mini-depth", L_DIT, DEEPER, valid, failed),
    ]
    between = values(measured, L_DIT) - values(measured, E_DIT)
    findings.append(
        Finding(
            "mini-order",
            float(between.mean()),
            None,
            f"L-DIT {show(values(measured, L_DIT))} against E-DIT {show(values(measured, E_DIT))} P@0.5, "
            f"{paired(between)}: {told_apart(between)}; no verdict was declared",
        )
    )
    place, turned = values(measured, L_DIT, "place"), values(measured, L_DIT, "place_turned")
    drop = place - turned
    findings.append(
        Finding(
            "mini-directions",
            float(drop.mean()),
            bool(counts(drop, TURNED)) if valid else None,
            f"sentences about places: L-DIT {show(place)} P@0.5, {show(turned)} with directions turned round, "
            f"{paired(drop)}; sentences about looks {show(values(measured, L_DIT, 'look'))}",
        )
    )
    return findings


def _compared(
    measured: Measured,
    claim: str,
    ours: str,
    theirs: str,
    valid: bool,
    failed: str,
    more: Mapping[str, Any] | None = None,
) -> Finding:
    difference = values(measured, ours) - values(measured, theirs)
    word = verdict(difference, LEAST, valid)
    passed = {"holds": True, "no verdict": None}.get(word, False)
    miou = ", ".join(f"{NAMES[arm]} {show(values(measured, arm, 'all', 'mIoU'))}" for arm in (ours, theirs))
    detail = (
        f"{NAMES[ours]} {show(values(measured, ours))} against {NAMES[theirs]} {show(values(measured, theirs))} P@0.5, "
        f"{paired(difference)}: {word}{f' (gate: {failed})' if failed else ''}; mIoU: {miou}; {len(difference)} seeds, "
        f"{measured[ours][0]['sentences']} sentences"
    )
    return Finding(claim, float(difference.mean()), passed, detail, more or {})


def table(measured: Measured) -> list[dict[str, Any]]:
    """Rows for the report: an arm's scores, seed by seed."""
    return [
        {
            "arm": NAMES[arm],
            "trainable": measured[arm][0]["trainable"],
            **{
                f"{part} {name}": [round(run[part][name], 2) for run in measured[arm]]
                for part in ("all", "look", "place", "other", "place_turned")
                for name in ("P@0.5", "mIoU", "oIoU")
            },
        }
        for arm in NAMES
    ]
