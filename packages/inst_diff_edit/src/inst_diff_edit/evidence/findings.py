"""`inst-diff-edit claims --train`: the mini model trained with three seeds, and what its masks and edits come to.

Every seed trains and is measured in a process of its own, two at a time; what a seed has finished is kept in the
folder, so that a killed run goes on.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tenfold.cli import Experiments, Finding
from tenfold.ledger.seeds import apart, run_each, spread
from tenfold.runs import atomic_write_json, last_complete_checkpoint, read_json

SEEDS = (0, 1, 2)
# Of the scenes that are recorded; trainers draw from other streams. Captions, model and steps were chosen on world 101.
WORLD = 3001
CHOOSING, TESTING, GATE = 50, 100, 100
WORKERS = 2
METHOD = "method"
PARTS = ("reference word only", "last word only", "random word", "mean of words", "no background subtraction")
DIFFEDITS = ("repository's DiffEdit", "DiffEdit as in diffusers")
GATE_AUC = 0.8


def experiments() -> Experiments:
    """What `claims --train` does."""
    return Experiments(
        f"trains the mini model with {len(SEEDS)} seeds and tests masks and edits on {TESTING} scenes: "
        "about 45 minutes on two cores",
        conduct,
    )


def conduct(folder: Path) -> list[Finding]:
    """Train and measure every seed, then judge the claims."""
    measured = run_each([(measure_seed, seed, folder) for seed in SEEDS], WORKERS)
    return judge(dict(zip(SEEDS, measured, strict=True)))


def measure_seed(seed: int, folder: Path) -> dict[str, Any]:
    """Train one seed (or take what is there) and measure it; kept as ``folder/seed-N.json``."""
    kept = folder / f"seed-{seed}.json"
    if kept.exists():
        return read_json(kept)
    from inst_diff_edit.miniature import model as mini
    from inst_diff_edit.training.run import TrainSettings, train

    work = folder / f"seed-{seed}"
    if not (work / "model").is_dir():
        resume = work.is_dir() and last_complete_checkpoint(work) is not None
        train(TrainSettings(), seed, work, every=250, resume=resume, project=None)
    measured = measure(mini.load(work / "model"))
    atomic_write_json(kept, measured)
    return measured


def measure(pipe: Any, choosing: int = CHOOSING, testing: int = TESTING, gate: int = GATE) -> dict[str, Any]:
    """Everything that is measured of one trained model: `gates`, "iou" by rule, "edits" by variant."""
    from inst_diff_edit.evidence import experiments as lab

    scores = lab.localisation(pipe, WORLD, choosing, testing)
    return {
        **gates(pipe, gate),
        "iou": {name: float(found.iou.mean()) for name, found in scores.items()},
        "threshold": {name: found.threshold for name, found in scores.items()},
        "edits": lab.editing(pipe, WORLD, choosing, testing, scores[METHOD].threshold),
    }


def gates(pipe: Any, count: int = GATE) -> dict[str, float]:
    """AUC of the last word's attention for its object, in prompts that name one and both; "other": against the other
    object alone."""
    from inst_diff_edit.evidence import experiments as lab

    (one, one_other), (both, both_other) = (lab.gate(pipe, WORLD, count, both=both) for both in (False, True))
    return {"gate": one, "gate_other": one_other, "gate_both": both, "gate_both_other": both_other}


def judge(measured: Mapping[int, Mapping[str, Any]]) -> list[Finding]:
    """Findings from every seed's measurements. A claim holds when the difference of means exceeds the larger spread."""
    rules = list(next(iter(measured.values()))["iou"])
    iou = {rule: np.array([seed["iou"][rule] for seed in measured.values()]) for rule in rules}
    table = [
        {"rule": rule, "mean": values.mean(), "spread": spread(values), "seeds": values.tolist()}
        for rule, values in iou.items()
    ]
    one, one_other, both, both_other = (
        np.array([seed[name] for seed in measured.values()])
        for name in ("gate", "gate_other", "gate_both", "gate_both_other")
    )
    edits = {
        variant: {
            name: np.array([seed["edits"][variant][name] for seed in measured.values()])
            for name in ("outside", "done", "kept")
        }
        for variant in ("method", "true mask", "SDEdit")
    }
    ours, sdedit = edits["method"], edits["SDEdit"]
    controls, count = ("start token only", "centre box"), f"{len(measured)} seeds"
    return [
        Finding(
            "mini-gate", one.mean(), bool(min(one.min(), both.min()) > GATE_AUC),
            f"AUC {_show(one)} in prompts that name one object, {_show(both)} in those that name both; against the "
            f"other object alone {_show(one_other)} and {_show(both_other)}, where 0.5 is chance; {count}",
            {
                "seeds": one.tolist(), "seeds_both": both.tolist(),
                "other": one_other.tolist(), "other_both": both_other.tolist(),
            },
        ),
        Finding(
            "mini-iou", iou[METHOD].mean(), _ahead(iou, controls),
            f"method {_show(iou[METHOD])}, {_list(iou, controls)}, {count}", {"table": table},
        ),
        Finding(
            "mini-parts", iou[METHOD].mean(), _ahead(iou, PARTS), f"method {_show(iou[METHOD])}, {_list(iou, PARTS)}",
        ),
        Finding(
            "mini-diffedit", iou[METHOD].mean(), _ahead(iou, DIFFEDITS),
            f"method {_show(iou[METHOD])}, {_list(iou, DIFFEDITS)}",
        ),
        Finding(
            "mini-background", ours["outside"].mean(), apart(sdedit["outside"], ours["outside"]),
            f"mean change outside of the true mask {_show(ours['outside'], 4)}, SDEdit {_show(sdedit['outside'], 4)}",
        ),
        Finding(
            "mini-edit", ours["done"].mean(), None,
            f"done {_show(ours['done'])} and other object kept {_show(ours['kept'])}; with the true mask "
            f"{_show(edits['true mask']['done'])} and {_show(edits['true mask']['kept'])}; SDEdit "
            f"{_show(sdedit['done'])} and {_show(sdedit['kept'])}",
        ),
    ]  # fmt: skip


def _ahead(iou: Mapping[str, np.ndarray], others: tuple[str, ...]) -> bool:
    return all(apart(iou[METHOD], iou[other]) for other in others)


def _show(values: np.ndarray, digits: int = 3) -> str:
    return f"{values.mean():.{digits}f} ± {spread(values):.{digits}f}"


def _list(iou: Mapping[str, np.ndarray], names: tuple[str, ...]) -> str:
    return ", ".join(f"{name} {_show(iou[name])}" for name in names)
