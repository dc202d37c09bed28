"""`flashsloth claims --train`: the miniature's variants with three seeds each, and what their answers come to.

    average · sap · shuffle    a block's mean, SAP, pixel-shuffle: 9 visual tokens
    sap+embq                   FlashSloth
    none                       all 81 patches, uncompressed

What was decided before any of them was trained with these seeds and asked about the world TEST (claims.yaml has it in
words, too):

- Measured are questions about a sign's shape, by its colour, one a scene: PER_KIND about sparse scenes, where a block
  holds one sign at most, and PER_KIND about crowded ones, where two blocks hold three each. Chance is 17 %.
- Variants are compared seed by seed (`tenfold.ledger.seeds.verdict`): a claim holds when the mean difference over the
  seeds exceeds its spread and LEAST points; "equivalent" within LEAST; else it is not reproduced.
- Validity gates: uncompressed is at least HEADROOM points above the average in crowded scenes, and the arm that a claim
  compares with lies between 25 and 95 % there. Else there is no verdict.
- EmbQ is for blocks that hold several things: its gain in crowded scenes must exceed its gain in sparse ones, seed by
  seed, by the same rule.
- "Near uncompressed" means at most NEAR points below it. EmbQ's controls must each cost at least LEAST points.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tenfold.cli import Experiments, Finding
from tenfold.ledger.seeds import kept, paired, row, run_each, show, spread, verdict
from tenfold.runs import atomic_write_json, read_json

if TYPE_CHECKING:
    from flashsloth.evidence.experiments import Data, Plan
    from tenfold.ledger import Outcome

SEEDS = (1, 2, 3)
ARMS = ("average", "sap", "sap+embq", "shuffle", "none")
TEST = 104_729
PER_KIND = 300
WORKERS = 1
MINUTES = 20  # of one idle core; said up front
LEAST, HEADROOM, NEAR, SHARPER = 3.0, 15.0, 5.0, 0.1
SPARSE, CROWDED = "sparse shape", "crowded shape"


def experiments() -> Experiments:
    """What `claims --train` does."""
    return Experiments(
        f"trains {len(ARMS)} variants of the miniature with {len(SEEDS)} seeds each and asks each {PER_KIND} questions "
        f"of each kind: about {MINUTES} minutes of one core",
        conduct,
    )


def conduct(
    folder: Path,
    plan: Plan | None = None,
    per_kind: int = PER_KIND,
    workers: int = WORKERS,
    seeds: Sequence[int] = SEEDS,
    world: int = TEST,
) -> list[Finding]:
    """Train and measure every variant and seed, then judge the claims.

    Args:
        folder: for what is finished; a killed run goes on from it.
        plan: other steps than the usual ones.
        per_kind: questions of each level and kind.
        seeds, world: of other runs than the recorded ones.
    """
    from flashsloth.evidence.experiments import Plan

    plan = plan or Plan()
    missing = [(arm, seed) for seed in seeds for arm in ARMS if not kept(folder, arm, seed).exists()]
    run_each([(measure_run, arm, seed, folder, plan, per_kind, world) for arm, seed in missing], workers)
    return judge({arm: [read_json(kept(folder, arm, seed)) for seed in seeds] for arm in ARMS})


def measure_run(arm: str, seed: int, folder: Path, plan: Plan, per_kind: int, world: int) -> dict[str, Any]:
    """Train one variant with one seed and measure it on held-out scenes; kept as `folder/<arm>-<seed>.json`."""
    import torch

    from flashsloth.evidence import experiments as runs

    torch.set_num_threads(1)
    losses: list[float] = []
    data = training_data(plan)
    start = time.process_time()
    model = runs.train(arm, seed, data, plan, lambda _, loss: losses.append(loss))
    seconds = round(time.process_time() - start)
    curve = [round(float(np.mean(losses[at : at + 25])), 4) for at in range(0, len(losses), 25)]
    found = runs.measure(model, runs.held_out(world, per_kind), runs.VARIANTS[arm][1])
    found |= {"arm": arm, "seed": seed, "plan": asdict(plan), "cpu_seconds": seconds, "loss": curve}
    atomic_write_json(kept(folder, arm, seed), found)
    return found


@lru_cache(maxsize=1)
def training_data(plan: Plan) -> Data:
    """Drawn once a process."""
    from flashsloth.evidence.experiments import Data

    return Data.of(plan)


def judge(measured: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[Finding]:
    """Findings from every run's measurements, by the rules at the top."""

    def per_cent(arm: str, key: str = CROWDED) -> np.ndarray:
        return np.array([run[key] for run in measured[arm]])

    def controlled(name: str) -> np.ndarray:
        return np.array([run["controls"][name] for run in measured["sap+embq"]])

    crowded, sparse = ({arm: per_cent(arm, key) for arm in ARMS} for key in (CROWDED, SPARSE))
    headroom = crowded["none"] - crowded["average"]
    open_gate = bool(headroom.mean() >= HEADROOM)
    seeds = f"{len(measured['sap'])} seeds"

    def judged(difference: np.ndarray, base: str) -> tuple[str, bool | None]:
        said = verdict(difference, LEAST, open_gate and 25 <= crowded[base].mean() <= 95)
        return said, {"holds": True, "no verdict": None}.get(said, False)

    def compared(claim: str, ours: str, theirs: str) -> Finding:
        a, b = crowded[ours], crowded[theirs]
        said, passed = judged(a - b, theirs)
        detail = f"{CROWDED}: {ours} {show(a)}, {theirs} {show(b)} %, {paired(a - b)}: {said}; {seeds}"
        return Finding(claim, float((a - b).mean()), passed, detail)

    gains = {level: of["sap+embq"] - of["sap"] for level, of in (("crowded", crowded), ("sparse", sparse))}
    more = gains["crowded"] - gains["sparse"]
    said, pays = judged(more, "sap")
    behind = crowded["none"] - crowded["sap+embq"]
    near = bool(behind.mean() + spread(behind) <= NEAR) if open_gate else None
    drops = {name: crowded["sap+embq"] - controlled(name) for name in ("blind", "other question", "other image")}
    used = all(verdict(drop, LEAST) == "holds" for drop in drops.values()) if open_gate else None
    sharp = np.array([run["sharpness"] for run in measured["sap"]])
    table = [
        row(arm, crowded[arm], sparse=float(sparse[arm].mean()), tokens=measured[arm][0]["tokens"],
            milliseconds=float(np.median([run["milliseconds"] for run in measured[arm]])))
        for arm in ARMS
    ]  # fmt: skip
    return [
        Finding(
            "mini-gate", float(headroom.mean()), open_gate,
            f"{CROWDED}: uncompressed {show(crowded['none'])}, average {show(crowded['average'])} %, "
            f"{paired(headroom)}; at least {HEADROOM:g} asked for; {seeds}", {"table": table},
        ),
        compared("mini-sap", "sap", "average"),
        compared("mini-embq", "sap+embq", "sap"),
        compared("mini-shuffle", "sap+embq", "shuffle"),
        Finding(
            "mini-crowding", float(more.mean()), pays,
            f"EmbQ's gain over SAP: crowded {show(gains['crowded'])}, sparse {show(gains['sparse'])} points (SAP alone "
            f"{show(sparse['sap'])} % there), {paired(more)}: {said}; {seeds}",
        ),
        Finding(
            "mini-near-uncompressed", float(behind.mean()), near,
            f"{CROWDED}: sap+embq {show(crowded['sap+embq'])} % with 9 visual tokens, uncompressed "
            f"{show(crowded['none'])} % with 81, {paired(behind)} behind; at most {NEAR:g} allowed, "
            f"spread included; {seeds}",
        ),
        Finding(
            "mini-controls", float(min(drop.mean() for drop in drops.values())), used,
            f"{CROWDED}: " + ", ".join(f"{name} {show(controlled(name))} %" for name in drops)
            + f", untouched {show(crowded['sap+embq'])} %; {seeds}",
        ),
        Finding(
            "mini-sharpness", float(sharp.mean()), bool(sharp.mean() > 1 / 9 + SHARPER),
            f"SAP's weight on a sign's patch, alone in its block: {show(sharp, 2)}, evenly 0.11; {seeds}",
        ),
    ]  # fmt: skip


def shipped_outcome(per_kind: int = 40) -> Outcome:
    """The shipped model on scenes of a world of their own: crowded shapes, with EmbQ's look and without.

    Raises:
        UserError: no model ships with this installation.
    """
    import torch

    from flashsloth.evidence import experiments as runs
    from flashsloth.miniature.model import shipped_folder
    from flashsloth.modeling import FlashSlothForConditionalGeneration
    from tenfold.ledger import Outcome

    folder = shipped_folder()
    model = FlashSlothForConditionalGeneration.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
    asked = next(one for one in runs.held_out(TEST + 1, per_kind) if (one.level, one.kind) == ("crowded", "shape"))
    seen, blind = (float(np.mean(runs.rights(model.eval(), asked, name))) for name in (None, "blind"))
    detail = f"crowded shapes; {100 * blind:.1f} % without EmbQ's look; {per_kind} questions"
    return Outcome(round(100 * seen, 2), bool(100 * (seen - blind) >= LEAST), detail)
