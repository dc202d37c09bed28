"""`dtnet claims --train`: run the miniature's arms and judge them by the rule that claims.yaml states.

The loss of a word on val, scene by scene, is the measure of every comparison of arms, paired over seeds and scenes: a
difference is positive where the joint router (or what the claim names) loses less.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tenfold.cli import Experiments, Finding
from tenfold.ledger.seeds import interval, kept, paired, row, run_each, show, verdict
from tenfold.runs import read_json

if TYPE_CHECKING:
    from numpy.typing import NDArray

SEEDS = tuple(range(8))
MINUTES = 30
# Least effects: of the loss of a word in nats, of CIDEr-D, and of a caption's log-probability.
LOSS, SWAP, CIDER, LOG_PROB = 0.01, 0.005, 10.0, 0.05
# Gates.
POOLED, SINGLE, LOWEST, HIGHEST, OVER_BLIND, HEADROOM = 0.95, 0.9, 25.0, 95.0, 5.0, 0.02
UNIFORM, SPATIAL, CHANNEL, JOINT, LEAKY = "uniform", "spatial", "channel", "joint", "leaky"
ORACLE, PLAIN, BLIND = "oracle", "plain", "blind"
LABELS = {
    PLAIN: "plain transformer", UNIFORM: "five cells, uniform", SPATIAL: "router: spatial branch",
    CHANNEL: "router: channel branch", JOINT: "joint router", LEAKY: "joint router that leaks (deviation)",
    ORACLE: "paths told by tag (oracle)", BLIND: "joint, another image's features",
}  # fmt: skip
PASSED = {"holds": True, "equivalent": None, "no verdict": None, "not reproduced": False}
Measured = Mapping[str, Sequence[Mapping[str, Any]]]


def experiments() -> Experiments:
    """What `claims --train` does."""
    return Experiments(
        f"trains {len(LABELS)} arms of the mini model with {len(SEEDS)} seeds each (one of them self-critically too) "
        f"and measures them on 500 scenes: about {MINUTES} minutes on two cores",
        conduct,
    )


def conduct(folder: Path, changes: Sequence[str] = (), workers: int = 2) -> list[Finding]:
    """Train and measure what is missing in the folder, then judge.

    Args:
        changes: further ``key=value`` of every training's settings.
    """
    from dtnet.evidence import experiments as runs

    folder.mkdir(parents=True, exist_ok=True)
    runs.prepare(folder, changes)
    # The joint arm first: it takes longest.
    missing = [(seed, arm) for seed in SEEDS for arm in runs.ARMS if not kept(folder, arm, seed).exists()]
    run_each([(runs.run_arm, arm, seed, folder, changes) for seed, arm in missing], workers)
    measured = {arm: [read_json(kept(folder, arm, seed)) for seed in SEEDS] for arm in runs.ARMS}
    return judge(measured, runs.signal(folder, changes), runs.nearest(folder, changes))


def gates(measured: Measured, signal: Mapping[str, float]) -> dict[str, str]:
    """Gate -> why it failed; the gates that passed are not there.

    "signal": the tag is seen in the mean over positions, less in one. "reference": uniform weights name neither
    nearly all words nor hardly more than without images. "headroom": the oracle's paths are worth something. "live": in
    half of the seeds a joint router has a unit that fires.
    """
    failed = {}
    if signal["pooled"] < POOLED or signal["single"] > SINGLE:
        failed["signal"] = f"the tag's area is {signal['pooled']:.3f} pooled and {signal['single']:.3f} at one position"
    right, blind = (_values(measured[arm], "right").mean() for arm in (UNIFORM, BLIND))
    if not LOWEST <= right <= HIGHEST or right - blind < OVER_BLIND:
        failed["reference"] = f"uniform weights name {right:.1f} % of the words, {blind:.1f} % without images"
    if verdict(_ahead(measured, ORACLE, UNIFORM).mean(axis=1), HEADROOM) != "holds":
        failed["headroom"] = (
            f"the oracle is {_ahead(measured, ORACLE, UNIFORM).mean():+.4f} nats ahead of uniform weights"
        )
    alive = [any(router["firing"] for router in one["routing"]["routers"]) for one in measured[JOINT]]
    if np.mean(alive) < 0.5:
        failed["live"] = f"every joint router is dead in {len(alive) - sum(alive)} of {len(alive)} seeds"
    return failed


def judge(measured: Measured, signal: Mapping[str, float], baseline: float) -> list[Finding]:
    """Findings from every arm's measurements, by the rule of claims.yaml.

    Args:
        measured: arm -> `experiments.run_arm` of each seed. signal: of `experiments.signal`. baseline: CIDEr-D of the
            nearest training caption.
    """
    failed = gates(measured, signal)
    # Captions alone need the reference; paths need all.
    reference = {name: why for name, why in failed.items() if name == "reference"}
    paths = {name: why for name, why in failed.items() if name != "live"}
    return [
        _gates(measured, signal, failed),
        _caption(measured, baseline, reference),
        _against_start(measured, "mini-scst", reference),
        _beams(measured, reference),
        _compared("mini-cells", measured, JOINT, PLAIN, failed),
        _compared("mini-router", measured, JOINT, UNIFORM, failed),
        _compared("mini-router-spatial", measured, JOINT, SPATIAL, failed),
        _compared("mini-router-channel", measured, JOINT, CHANNEL, failed),
        _compared("mini-router-leaky", measured, LEAKY, UNIFORM, paths),
        _swapped("mini-paths", measured, JOINT, failed),
        _swapped("mini-paths-leaky", measured, LEAKY, paths),
    ]


def _gates(measured: Measured, signal: Mapping[str, float], failed: Mapping[str, str]) -> Finding:
    headroom = _ahead(measured, ORACLE, UNIFORM)
    right, blind = (_values(measured[arm], "right") for arm in (UNIFORM, BLIND))
    detail = (
        f"tag: area {signal['pooled']:.3f} pooled, {signal['single']:.3f} at one position (gate {POOLED:g}, at most "
        f"{SINGLE:g}); uniform weights name {show(right)} % of the words, without images {show(blind)} (gate "
        f"{LOWEST:g} to {HIGHEST:g}, {OVER_BLIND:g} over it); oracle over uniform {_said(headroom)} (gate "
        f"{HEADROOM:g}); {_dead(measured[JOINT])}" + (f"; failed: {', '.join(failed)}" if failed else "")
    )
    rows = [_row(arm, _losses(measured[arm]).mean(axis=1), arm == JOINT) for arm in LABELS]
    split = {arm: _by_tag(measured[arm]) for arm in LABELS}
    curves = {arm: np.mean([run["curve"] for run in measured[arm]], axis=0).tolist() for arm in LABELS}
    more = {
        "table": rows, "by_tag": split, "curves": curves, "signal": dict(signal), "failed": dict(failed),
        "headroom": headroom.mean(axis=1).tolist(), "right": right.tolist(), "blind": blind.tolist(),
    }  # fmt: skip
    return Finding("mini-gates", float(headroom.mean()), not failed, detail, more)


def _caption(measured: Measured, baseline: float, failed: Mapping[str, str]) -> Finding:
    ours, blind = (_values(measured[arm], "captions", "beam", "cider") for arm in (JOINT, BLIND))
    after = _values(measured[JOINT], "scst", "beam", "cider")
    words = [verdict(difference, CIDER, not failed) for difference in (ours - blind, ours - baseline)]
    # The weaker of the two; where the gate failed, both are "no verdict".
    outcome = next(word for word in ("no verdict", "not reproduced", "equivalent", "holds") if word in words)
    detail = (
        f"{_outcome(outcome, failed)}: CIDEr-D {show(ours)} after cross entropy; nearest training caption "
        f"{baseline:.1f}, without images {show(blind)}; exactly a reference "
        f"{show(_values(measured[JOINT], 'captions', 'beam', 'exact'))} %; {len(ours)} seeds"
    )
    table = [
        row("joint, self-critical", after), row("joint, cross entropy", ours, ours=True),
        row("nearest training caption", np.array([baseline])), row("without images", blind),
    ]  # fmt: skip
    return Finding("mini-caption", float(ours.mean()), PASSED[outcome], detail, {"verdict": outcome, "table": table})


def _against_start(measured: Measured, claim: str, failed: Mapping[str, str]) -> Finding:
    before, after = (_values(measured[JOINT], stage, "beam", "cider") for stage in ("captions", "scst"))
    outcome = verdict(after - before, CIDER, not failed)
    detail = (
        f"{_outcome(outcome, failed)}: CIDEr-D {show(before)} before, {show(after)} after; paired "
        f"{paired(after - before, 'CIDEr-D')}; {len(before)} seeds"
    )
    return Finding(claim, float((after - before).mean()), PASSED[outcome], detail, {"verdict": outcome})


def _beams(measured: Measured, failed: Mapping[str, str]) -> Finding:
    def gain(stage: str, name: str) -> NDArray[np.float64]:
        return _values(measured[JOINT], stage, "beam", name) - _values(measured[JOINT], stage, "greedy", name)

    log_prob, cider = gain("captions", "log_prob"), gain("captions", "cider")
    outcome = verdict(log_prob, LOG_PROB, not failed)
    # More likely captions that are worse would be no gain.
    if outcome == "holds" and interval(cider)[1] < -CIDER:
        outcome = "not reproduced"
    detail = (
        f"{_outcome(outcome, failed)}: 5 beams over greedy, same weights: log-probability "
        f"{paired(log_prob, 'nats', 3)}, CIDEr-D {show(cider)}; after self-critical training "
        f"{show(gain('scst', 'log_prob'), 3)} and {show(gain('scst', 'cider'))}; {len(cider)} seeds"
    )
    return Finding("mini-beam", float(log_prob.mean()), PASSED[outcome], detail, {"verdict": outcome})


def _compared(claim: str, measured: Measured, ours: str, theirs: str, failed: Mapping[str, str]) -> Finding:
    ahead = _ahead(measured, ours, theirs)
    outcome = verdict(ahead.mean(axis=1), LOSS, not failed)
    detail = (
        f"{_outcome(outcome, failed)}: {LABELS[ours]} {show(_losses(measured[ours]).mean(axis=1), 4)}, "
        f"{LABELS[theirs]} {show(_losses(measured[theirs]).mean(axis=1), 4)} nats a word; {_said(ahead)}; "
        f"{len(ahead)} seeds"
    )
    return Finding(claim, float(ahead.mean()), PASSED[outcome], detail, {"verdict": outcome})


def _swapped(claim: str, measured: Measured, arm: str, failed: Mapping[str, str]) -> Finding:
    routing = [one["routing"] for one in measured[arm]]
    dearer = np.array([np.mean(one["another"]) - one["own"] for one in routing])
    mean = np.array([one["mean"] - one["own"] for one in routing])
    outcome = verdict(dearer, SWAP, not failed)
    largest = np.array([max(cell["spread"] for cell in one["cells"]) for one in routing])
    shares = np.array([one["share"] for one in routing])
    also = {
        other: np.array([np.mean(one["routing"]["another"]) - one["routing"]["own"] for one in measured[other]])
        for other in (SPATIAL, CHANNEL)
    }
    detail = (
        f"{_outcome(outcome, failed)}: another image's weights ({len(routing[0]['another'])} permutations a seed) cost "
        f"{paired(dearer, 'nats a word', 4)}, the mean ones {show(mean, 4)}; largest spread of a weight "
        f"{show(largest, 3)}, {shares.mean():.0%} of it between tagged and other scenes; {_dead(measured[arm])}; "
        f"of one branch: spatial {show(also[SPATIAL], 4)}, channel {show(also[CHANNEL], 4)}; {len(dearer)} seeds"
    )
    more = {"verdict": outcome, "routing": routing, "dearer": dearer.tolist(), "mean": mean.tolist()}
    return Finding(claim, float(dearer.mean()), PASSED[outcome], detail, more)


def _dead(runs: Sequence[Mapping[str, Any]]) -> str:
    routers = [router for run in runs for router in run["routing"]["routers"]]
    dead = sum(not router["firing"] for router in routers)
    live = sum(router["firing"] for router in routers) / sum(router["units"] for router in routers)
    return f"{dead} of {len(routers)} routers are dead, {live:.0%} of their last units live"


def _outcome(word: str, failed: Mapping[str, str]) -> str:
    return f"{word} ({'; '.join(failed.values())})" if failed else word


def _said(ahead: NDArray[np.float64]) -> str:
    """A paired difference, with its interval over seeds and scenes."""
    low, high = interval(ahead)
    return f"ahead by {paired(ahead.mean(axis=1), 'nats a word', 4)} [{low:.4f}, {high:.4f}]"


def _ahead(measured: Measured, ours: str, theirs: str) -> NDArray[np.float64]:
    """How much less of a loss an arm has than another: `[seeds, scenes]`."""
    return _losses(measured[theirs]) - _losses(measured[ours])


def _losses(runs: Sequence[Mapping[str, Any]]) -> NDArray[np.float64]:
    return np.array([one["losses"] for one in runs], dtype=np.float64)


def _by_tag(runs: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    losses, tagged = _losses(runs), np.array(runs[0]["tagged"])
    return {"tagged": float(losses[:, tagged].mean()), "other": float(losses[:, ~tagged].mean())}


def _values(runs: Sequence[Mapping[str, Any]], *keys: str) -> NDArray[np.float64]:
    found = []
    for one in runs:
        value: Any = one
        for key in keys:
            value = value[key]
        found.append(value)
    return np.array(found, dtype=np.float64)


def _row(arm: str, values: NDArray[np.float64], ours: bool) -> dict[str, Any]:
    return row(LABELS[arm], values, **({"ours": True} if ours else {}))
