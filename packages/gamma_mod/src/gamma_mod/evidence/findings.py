"""What the miniature's runs say about the claims: the rules, stated before the record (`claims.yaml`, mini).

Differences are paired over seeds, in points of accuracy on the same questions. A comparison holds when its mean exceeds
its spread and `LEAST`; it is equivalent when its bootstrap interval lies within that; else it is not reproduced.
Gates come first, and where one fails the comparisons say nothing for or against the paper ("no verdict"):

- headroom: before any step, with p = 1, skipping empty patches first answers at least `HEADROOM` points more than
  skipping at random;
- range: the dense host after as many steps answers between 25 and 95 %.

A seed is that of the host (where one of that training seed was there), of router, scenes and their order. Random
routing keeps the router's scale p in front of the MLP, as learned routing does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tenfold.cli import Finding
from tenfold.ledger.seeds import paired, row, show, verdict

LEAST, HEADROOM, RANGE = 3.0, 8.0, (25.0, 95.0)
# Claim -> the arm that should answer more, the other one.
COMPARISONS = {
    "mini-learned": ("learned", "random"),
    "mini-learned-redraw": ("learned", "random-redraw"),
    "mini-shared": ("learned", "separate"),
    "mini-protection": ("learned", "unprotected"),
}
Runs = Mapping[tuple[str, int], Mapping[str, Any]]


def judge(runs: Runs, seeds: Sequence[int]) -> list[Finding]:
    """Every mini claim of the ledger.

    Args:
        runs: (arm, seed) -> what was measured.
    """

    def accuracy(arm: str) -> np.ndarray:
        return np.array([runs[arm, seed]["accuracy"] for seed in seeds])

    def start(name: str) -> np.ndarray:
        return np.array([runs["start", seed][name] for seed in seeds])

    headroom = start("oracle") - start("random")
    dense = accuracy("dense")
    valid = bool(headroom.mean() >= HEADROOM and RANGE[0] <= dense.mean() <= RANGE[1])
    names = list(dict.fromkeys(arm for arm, _ in runs if arm != "start"))
    table = [row(name, accuracy(name)) for name in names]
    table += [row(f"{name}, before any step", start(name)) for name in ("dense", "oracle", "random", "anti")]
    before = f"oracle {show(start('oracle'))} against random {show(start('random'))} before any step"
    gate = f"{before}; dense {show(dense)} after"
    hosts = {runs["start", seed]["host"] for seed in seeds}
    gate += f"; {len(hosts)} {'host' if len(hosts) == 1 else 'hosts'} for {len(seeds)} seeds"
    found = [Finding("mini-gate", float(headroom.mean()), valid, gate, {"table": table, "hosts": sorted(hosts)})]
    for claim, (higher, lower) in COMPARISONS.items():
        found.append(_compared(claim, accuracy(higher), accuracy(lower), (higher, lower), valid, table))
    third, half = accuracy("learned-0.34"), accuracy("learned")
    said = "holds" if (third - half).mean() > -LEAST else "not reproduced"
    detail = f"{'no verdict' if not valid else said}: {show(third)} against {show(half)}; {paired(third - half)}"
    found.append(Finding("mini-ratio", float((third - half).mean()), None if not valid else said == "holds", detail))
    ranks = np.array([runs["start", seed]["arank"] for seed in seeds])
    order = ", ".join(str(layer) for layer in np.argsort(ranks.mean(0), kind="stable")[:4])
    detail = f"ARank {', '.join(f'{rank:.1f}' for rank in ranks.mean(0))}; lowest: layers {order}"
    found.append(Finding("mini-arank", float(ranks.mean()), None, detail, {"arank": ranks.mean(0).tolist()}))
    return [*found, _curve(runs, seeds)]


def _compared(
    claim: str, higher: np.ndarray, lower: np.ndarray, names: tuple[str, str], valid: bool, table: list[dict[str, Any]]
) -> Finding:
    difference = higher - lower
    said = verdict(difference, LEAST, valid)
    detail = f"{said}: {names[0]} {show(higher)}, {names[1]} {show(lower)}; {paired(difference)}"
    passed = None if said == "no verdict" else said == "holds"
    return Finding(claim, float(difference.mean()), passed, detail, {"table": table})


def _curve(runs: Runs, seeds: Sequence[int]) -> Finding:
    curves = [runs["learned", seed]["curve"] for seed in seeds]
    points = [
        {name: float(np.mean([curve[place][name] for curve in curves])) for name in curves[0][0]}
        for place in range(len(curves[0]))
    ]
    detail = "; ".join(f"threshold {p['threshold']:.3f}: skip {p['skip']:.0%}, {p['accuracy']:.1f} %" for p in points)
    return Finding("mini-thresholds", points[0]["skip"] * 100, None, detail, {"curve": points})
