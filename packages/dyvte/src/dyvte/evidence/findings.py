"""What the miniature's measurements say of each claim, by the rule that stands in `claims.yaml`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tenfold.cli import Finding
from tenfold.ledger.seeds import counts, paired, spread, verdict

LEAST = 2.0  # points, or the share of budgets below
BUDGETS_NEEDED = 2
DENSE = (25.0, 95.0)
HEADROOM, WITHIN_KIND_SPREAD = 8.0, 0.5
CURVE_WITHIN, LAYERS_EARLIER = 1.0, 0.25
CONTROLS = {"mini-dynamic": "shuffled", "mini-fixed": "fixed_mixture", "mini-within-kind": "within_kind"}
GATES_OF_RECORD = "slack"


def judge(hosts: Sequence[Mapping[str, Any]]) -> list[Finding]:
    """The findings of all mini claims.

    Args:
        hosts: what `dyvte.evidence.experiments.measure` gave of each.
    """
    shut = gates_that_fail(hosts)
    said = f"{len(hosts)} host{'s' * (len(hosts) > 1)}, {len(hosts[0]['seeds'])} gate seeds"
    more = {
        "curve": [
            {"exit": e, "accuracy": float(np.mean([host["curve"][e + 1] for host in hosts]))}
            for e in range(-1, hosts[0]["layers"])
        ],
        "budgets": mean_rows(hosts, GATES_OF_RECORD),
        "oracle": [host["oracle"] for host in hosts],
        "exit_labels": [host["exit_labels"] for host in hosts],
        "curve_by_kind": [host["curve_by_kind"] for host in hosts],
        "published_rule": [row["published labels"]["published_rule"] for host in hosts for row in host["seeds"]],
        "hosts": [host["host"] for host in hosts],
        "gates": shut,
    }
    findings = []
    for claim, control in CONTROLS.items():
        failed = [text for name, text in shut.items() if name == "all" or name == claim]
        told, value = compare(hosts, GATES_OF_RECORD, control, valid=not failed)
        findings.append(_finding(claim, told, value, f"{said}; {value['text']}", failed, more))
    told, value = compare(hosts, "published steps", "fixed_mixture", valid="all" not in shut)
    findings.append(
        _finding(
            "mini-published-steps", told, value, f"{said}; {value['text']}", [shut[n] for n in shut if n == "all"], {}
        )
    )
    return [*findings, curve_finding(hosts), slack_finding(hosts, said, "all" not in shut)]


def gates_that_fail(hosts: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Validity gates that fail: claim (or "all") -> in words."""
    failed = {}
    dense = float(np.mean([host["curve"][-1] for host in hosts]))
    room = float(np.mean([host["oracle"]["dynamic"] - host["oracle"]["fixed_mixture"] for host in hosts]))
    within = float(np.mean([host["oracle"]["spread_within_kinds"] for host in hosts]))
    if not DENSE[0] <= dense <= DENSE[1]:
        failed["all"] = f"the dense host answers {dense:.1f} %, not between {DENSE[0]:g} and {DENSE[1]:g}"
    elif room < HEADROOM:
        failed["all"] = f"the oracle is {room:.1f} points above the best fixed mixture, not {HEADROOM:g}"
    if within < WITHIN_KIND_SPREAD:
        failed["mini-within-kind"] = (
            f"the oracle's exits vary by {within:.2f} layers inside kinds, not {WITHIN_KIND_SPREAD}"
        )
    return failed


def compare(hosts: Sequence[Mapping[str, Any]], gates: str, control: str, *, valid: bool) -> tuple[str, dict[str, Any]]:
    """Dynamic exits against a control at every budget, paired; the verdict over the budgets."""
    differences = differences_of(hosts, gates, control)  # [budgets, seeds]
    each = [verdict(row, LEAST) for row in differences]
    text = "; ".join(
        f"mean exit {mean['mean_exit']:.2f}: {paired(row)}"
        for mean, row in zip(mean_rows(hosts, gates), differences, strict=True)
    )
    if not valid:
        told = "no verdict"
    elif each.count("holds") >= BUDGETS_NEEDED:
        told = "holds"
    else:
        near = all(abs(row.mean()) + spread(row) < LEAST for row in differences)
        told = "equivalent" if near else "not reproduced"
    return told, {"text": text, "points": [float(row.mean()) for row in differences], "budgets": each}


def differences_of(hosts: Sequence[Mapping[str, Any]], gates: str, control: str) -> np.ndarray:
    """``[budgets, seeds]`` points; over hosts where there are several (each the mean of its gate seeds)."""
    per_host = [
        np.array([[b["dynamic"] - b[control] for b in row[gates]["budgets"]] for row in host["seeds"]]).T
        for host in hosts
    ]
    return per_host[0] if len(hosts) == 1 else np.stack([one.mean(1) for one in per_host], axis=1)


def mean_rows(hosts: Sequence[Mapping[str, Any]], gates: str) -> list[dict[str, float]]:
    """Per budget, every number's mean over hosts and gate seeds."""
    rows = [row[gates]["budgets"] for host in hosts for row in host["seeds"]]
    return [{key: float(np.mean([one[i][key] for one in rows])) for key in rows[0][i]} for i in range(len(rows[0]))]


def curve_finding(hosts: Sequence[Mapping[str, Any]]) -> Finding:
    """Whether a fixed exit before the last layer already gives the dense accuracy."""
    curves = np.array([host["curve"] for host in hosts]).mean(0)  # after layer -1, 0, ...
    layers, dense = hosts[0]["layers"], curves[-1]
    enough = next(e for e in range(-1, layers) if curves[e + 1] >= dense - CURVE_WITHIN)
    reached = f"within {CURVE_WITHIN:g} point of {dense:.1f} % from layer {enough} of {layers} on"
    text = f"{reached}; without the image {curves[0]:.1f} %"
    return Finding("mini-curve", int(enough), enough < layers - 1, text)


def slack_finding(hosts: Sequence[Mapping[str, Any]], said: str, valid: bool) -> Finding:
    """How much earlier gates with slack leave, at the middle budget's threshold of the published labels."""
    pairs = [
        (row["published labels"]["published_rule"], row["slack"]["published_rule"])
        for host in hosts
        for row in host["seeds"]
    ]
    earlier = np.array([published["mean_exit"] - slack["mean_exit"] for published, slack in pairs])
    points = np.array([slack["dynamic"] - published["dynamic"] for published, slack in pairs])
    text = f"{said}; at threshold 0 earlier by {paired(earlier, 'layers', 2)}, accuracy {paired(points)}"
    if not valid:
        return Finding("mini-slack", float(earlier.mean()), None, f"no verdict; {text}")
    holds = counts(earlier, LAYERS_EARLIER) and points.mean() >= -LEAST
    return Finding("mini-slack", float(earlier.mean()), bool(holds), text)


def _finding(
    claim: str, told: str, value: Mapping[str, Any], text: str, failed: Sequence[str], more: Mapping[str, Any]
) -> Finding:
    passed = None if told == "no verdict" else told == "holds"
    detail = f"{told}: {'; '.join((*failed, text))}"
    return Finding(claim, round(float(np.mean(value["points"])), 2), passed, detail, {"verdict": told, **more})
