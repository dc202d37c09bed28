"""`e3-facenet claims --train`: run the miniature's arms and judge them by the rule that claims.yaml states."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tenfold.cli import Experiments, Finding
from tenfold.ledger.seeds import counts, kept, paired, row, run_each, show, verdict
from tenfold.runs import read_json

if TYPE_CHECKING:
    from numpy.typing import NDArray

# As recorded on two cores that had much other work as well; said up front.
MINUTES = 25
# Least effects, and gates.
ACCURACY, COSINE, DEPTH = 3.0, 0.01, 0.05
JUDGE_GATE, LOWEST, HIGHEST, OVER_SHUFFLED = 95.0, 55.0, 95.0, 10.0
FULL, NO_SCE, PLAIN, NO_REG, SWAPPED = "full", "no_sce", "plain", "no_reg", "swapped"
ARMS = (FULL, NO_SCE, PLAIN, NO_REG, SWAPPED)
SEEDS = (0, 1, 2)
LABELS = {
    FULL: "full", NO_SCE: "without the enhancer", PLAIN: "plain offsets, equal parameters",
    NO_REG: "without L_reg", SWAPPED: "enhancer reads another caption",
}  # fmt: skip


def experiments() -> Experiments:
    """What `claims --train` does."""
    return Experiments(
        f"trains a CLIP and a judge of the mini world, one start and {len(ARMS)} arms for each of {len(SEEDS)} seeds, "
        f"and measures {len(ARMS) * len(SEEDS)} generators: about {MINUTES} minutes on two cores",
        conduct,
    )


def conduct(folder: Path, workers: int = 2) -> list[Finding]:
    """Train and measure what is missing in the folder, then judge."""
    from e3_facenet.evidence import experiments as runs

    folder.mkdir(parents=True, exist_ok=True)
    runs.prepare(folder)
    missing_starts = [seed for seed in SEEDS if not (folder / f"start-{seed}.safetensors").is_file()]
    run_each([(runs.start, folder, seed) for seed in missing_starts], workers)
    work = [(runs.run_arm, arm, seed, folder) for seed in SEEDS for arm in ARMS if not kept(folder, arm, seed).exists()]
    run_each(work, workers)
    measured = {arm: [read_json(kept(folder, arm, seed)) for seed in SEEDS] for arm in ARMS}
    return judge(measured, runs.judge_gate(folder), runs.latent_search(folder))


def gates(full: Sequence[Mapping[str, Any]], judge_accuracy: float) -> list[str]:
    """Which validity gates fail, in words; empty where all pass."""
    accuracy, shuffled = _values(full, "accuracy").mean(), _values(full, "shuffled").mean()
    failed = []
    if judge_accuracy < JUDGE_GATE:
        failed.append(f"the judge names {judge_accuracy:.1f} % of real attributes, not {JUDGE_GATE:g}")
    if not LOWEST <= accuracy <= HIGHEST:
        failed.append(f"full accuracy {accuracy:.1f} % is not within {LOWEST:g} to {HIGHEST:g}")
    if accuracy - shuffled < OVER_SHUFFLED:
        failed.append(f"full is {accuracy - shuffled:+.1f} points over shuffled captions, not {OVER_SHUFFLED:g}")
    return failed


def judge(
    measured: Mapping[str, Sequence[Mapping[str, Any]]], judge_accuracy: float, search: Mapping[str, float]
) -> list[Finding]:
    """Findings from every arm's measurements, by the rule of claims.yaml.

    Args:
        measured: arm -> `experiments.measure` of each seed. judge_accuracy: of the gate. search: of `latent_search`.
    """
    failed = gates(measured[FULL], judge_accuracy)
    found = [
        _compared("mini-sce", measured, NO_SCE, "accuracy", ACCURACY, failed, "points"),
        _compared("mini-sce-plain", measured, PLAIN, "accuracy", ACCURACY, failed, "points"),
        _compared("mini-sce-swapped", measured, SWAPPED, "accuracy", ACCURACY, failed, "points"),
    ]
    flat = _values(measured[FULL], "reprojection") - _values(measured[NO_REG], "reprojection")
    worse = [f"reprojection error {paired(flat, '', 4)} against no L_reg is worse"] if counts(flat) else []
    found.append(_compared("mini-views", measured, NO_REG, "cosine", COSINE, failed + worse, "of cosine", 4))
    found.append(_compared("mini-depth", measured, NO_REG, "depth", DEPTH, failed + worse, "of correlation", 3))
    gain = search["search_seconds"] / search["generate_seconds"]
    reached = search["generate_score"] >= search["search_score"]
    speed_failed = failed if reached else [*failed, "the search reaches a better score"]
    detail = (
        f"{'no verdict: ' + '; '.join(speed_failed) + '. ' if speed_failed else ''}"
        f"{search['generate_seconds']:.3f} s against {search['search_seconds']:.2f} s of 100 Adam steps; score "
        f"{search['generate_score']:.3f} against {search['search_score']:.3f}; mini, not to be set beside 471.75"
    )
    found.append(Finding("mini-speed", gain, None if speed_failed else gain > 1, detail))
    return found


def _compared(
    claim: str,
    measured: Mapping[str, Sequence[Mapping[str, Any]]],
    other: str,
    key: str,
    least: float,
    failed: Sequence[str],
    unit: str,
    digits: int = 1,
) -> Finding:
    difference = _values(measured[FULL], key) - _values(measured[other], key)
    outcome = verdict(difference, least, valid=not failed)
    reason = f" ({'; '.join(failed)})" if failed else ""
    table = [row(LABELS[arm], _values(measured[arm], key), ours=arm == FULL) for arm in ARMS]
    detail = (
        f"{outcome}{reason}: full {show(_values(measured[FULL], key), digits)}, {LABELS[other]} "
        f"{show(_values(measured[other], key), digits)}; paired {paired(difference, unit, digits)}; {len(SEEDS)} seeds"
    )
    passed = {"holds": True, "equivalent": None, "no verdict": None}.get(outcome, False)
    more = {"verdict": outcome, "table": table, "measured": {arm: list(rows) for arm, rows in measured.items()}}
    return Finding(claim, float(difference.mean()), passed, detail, more)


def _values(rows: Sequence[Mapping[str, Any]], key: str) -> NDArray[np.float64]:
    return np.array([one[key] for one in rows], dtype=np.float64)
