"""`eas claims --train`: the miniature's search against the lists that it could have found, and what comes of it.

Decided before the record (worlds and seeds of the record were not used to choose anything):

- One frozen host, the mini host. Seeds are those of the adapters' start, the order of the data, the search and the
  random lists; arms of one seed share the first two. Accuracy on TEST questions that no arm saw, first token only.
- "searched" is ahead of "random" when the paired difference to the mean of that seed's random lists (none holds layer
  0) exceeds its spread over the seeds and LEAST points; alike for the other comparisons.
- Gates, without which comparisons of lists have no verdict: the reference (nothing skipped, equal parameters) answers
  between 35 and 95 % (chance is 25 %), and after tuning the best single removal is GAP points above the worst.
- The host's own answers are colours: before tuning it is right in no more than 5 %.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tenfold.cli import Experiments, Finding
from tenfold.ledger.seeds import kept, paired, row, run_each, show, verdict
from tenfold.runs import atomic_write_json, read_json

if TYPE_CHECKING:
    from eas.evidence.experiments import Design

SEEDS = (0, 1, 2)
WORKERS = 2
MINUTES = 20
LEAST, GAP, FLOOR, CEILING = 2.0, 10.0, 35.0, 95.0
SEARCHED, SENSITIVITY, RANDOM, REVERSED = "searched", "sensitivity", "random", "reversed"
NO_GLOBAL, NOTHING, EQUAL, BEST, WORST = "no_global", "nothing", "equal", "best_single", "worst_single"
ARMS = (SEARCHED, SENSITIVITY, RANDOM, REVERSED, NO_GLOBAL, NOTHING, EQUAL, BEST, WORST)


def experiments() -> Experiments:
    """What `claims --train` does."""
    return Experiments(
        f"searches and tunes {len(ARMS) + 2} lists of skipped attentions on the mini host with {len(SEEDS)} seeds: "
        f"about {MINUTES} minutes of one core, half of it on two",
        conduct,
    )


def conduct(folder: Path, design: Design | None = None, workers: int = WORKERS) -> list[Finding]:
    """Run what is missing, seed by seed, then judge.

    Args:
        folder: for what is finished; a killed run goes on from it.
        design: other sizes than the record's.
    """
    from eas.evidence.experiments import Design

    design = design or Design()
    missing = [seed for seed in SEEDS if not kept(folder, "seed", seed).exists()]
    run_each([(measure, seed, folder, design) for seed in missing], workers)
    return judge([read_json(kept(folder, "seed", seed)) for seed in SEEDS])


def measure(seed: int, folder: Path, design: Design) -> dict[str, Any]:
    """Everything of one seed, kept as ``folder/seed-<seed>.json``."""
    import torch

    from eas.evidence.experiments import bench, equal_rank
    from tenfold.runs import sample_generator

    torch.set_num_threads(1)
    made = bench(design)
    layers, removed = made.layers, design.removed
    search, seconds = made.search(seed)
    losses = made.sensitivity()
    by_loss = sorted(range(layers), key=lambda layer: losses[layer])
    order = list(search.order())
    generator = sample_generator(seed, 0, 9)
    lists = [
        sorted((1 + torch.randperm(layers - 1, generator=generator)[:removed]).tolist()) for _ in range(design.randoms)
    ]
    arms: dict[str, Any] = {
        SEARCHED: made.tune(order[:removed], seed),
        SENSITIVITY: made.tune(by_loss[:removed], seed),
        RANDOM: [made.tune(skip, seed) for skip in lists],
        REVERSED: made.tune(order[-removed:], seed),
        NO_GLOBAL: made.tune(order[:removed], seed, use_global=False),
        NOTHING: made.tune((), seed),
        EQUAL: made.tune((), seed, adapter_rank=equal_rank(made.shape, design)),
        BEST: made.tune(order[:1], seed),
        WORST: made.tune(order[-1:], seed),
    }
    found = {
        "seed": seed,
        "design": vars(design),
        "layers": layers,
        "dense": made.dense(),
        "preferences": search.preferences.tolist(),
        "margin": search.margin(),
        "sensitivity": losses,
        "search_cpu_seconds": seconds,
        "arms": arms,
    }
    atomic_write_json(kept(folder, "seed", seed), found)
    return found


Seeds = Sequence[Mapping[str, Any]]


def accuracy(seeds: Seeds, arm: str) -> np.ndarray:
    """Per cent, ``[seeds]``; of the random lists their mean."""
    found = [one["arms"][arm] for one in seeds]
    values = [
        one["accuracy"] if isinstance(one, dict) else np.mean([each["accuracy"] for each in one]) for one in found
    ]
    return np.array(values, dtype=float)


def rank_correlation(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Spearman's, of two rankings without ties that matter."""
    first, second = (np.argsort(np.argsort(np.asarray(one))) for one in (ours, theirs))
    return float(np.corrcoef(first, second)[0, 1])


def gates(seeds: Seeds) -> tuple[bool, str]:
    """Whether lists can be compared at all, and why not."""
    equal, single = accuracy(seeds, EQUAL), accuracy(seeds, BEST) - accuracy(seeds, WORST)
    dense = np.array([one["dense"] for one in seeds])
    failed = []
    if not (equal >= FLOOR).all() or not (equal <= CEILING).all():
        failed.append(f"the reference answers {show(equal)} %, not {FLOOR:.0f} to {CEILING:.0f}")
    if single.mean() < GAP:
        failed.append(f"best less worst single removal {show(single)} points, not {GAP:.0f}")
    if dense.max() > 5:
        failed.append(f"the untuned host answers {dense.max():.0f} %, not 5 at most")
    return not failed, "; ".join(failed) or f"reference {show(equal)} %, single removals {show(single)} points apart"


def judge(seeds: Seeds) -> list[Finding]:
    """Findings, by the rules at the top."""
    valid, why = gates(seeds)
    values = {arm: accuracy(seeds, arm) for arm in ARMS}
    told = f"{len(seeds)} seeds; gates: {why}"
    table = [row(arm, values[arm], skip=_skips(seeds, arm)) for arm in ARMS]

    def compare(claim: str, ours: str, theirs: str, least: float = LEAST, **more: Any) -> Finding:
        difference = values[ours] - values[theirs]
        found = verdict(difference, least, valid)
        passed = {"holds": True, "no verdict": None}.get(found, False)
        detail = f"{found}: {show(values[ours])} against {show(values[theirs])} %, {paired(difference)}; {told}"
        return Finding(claim, float(difference.mean()), passed, detail, more)

    correlations = [rank_correlation(one["preferences"], [-loss for loss in one["sensitivity"]]) for one in seeds]
    gate = values[BEST] - values[WORST]
    return [
        Finding("mini-gate", float(gate.mean()), valid, why, {"table": table}),
        compare("mini-searched-random", SEARCHED, RANDOM),
        compare("mini-searched-reversed", SEARCHED, REVERSED),
        compare("mini-searched-sensitivity", SEARCHED, SENSITIVITY),
        compare("mini-global", SEARCHED, NO_GLOBAL),
        _not_worse(values, valid, told),
        Finding(
            "mini-correlation",
            float(np.mean(correlations)),
            None,
            f"Spearman's, preferences against sensitivity: {', '.join(f'{one:+.2f}' for one in correlations)}; "
            f"margins {', '.join(format(one['margin'], '.4f') for one in seeds)}",
        ),
    ]


def _not_worse(values: Mapping[str, np.ndarray], valid: bool, told: str) -> Finding:
    """Skipping costs no more than LEAST points against nothing skipped at equal parameters."""
    difference = values[SEARCHED] - values[EQUAL]
    passed = bool(difference.mean() >= -LEAST) if valid else None
    found = "no verdict" if passed is None else "holds" if passed else "not reproduced"
    detail = f"{found}: {show(values[SEARCHED])} against {show(values[EQUAL])} %, {paired(difference)}; {told}"
    return Finding("mini-equal", float(difference.mean()), passed, detail)


def _skips(seeds: Seeds, arm: str) -> list[Any]:
    found = [one["arms"][arm] for one in seeds]
    return [one["skip"] if isinstance(one, dict) else [each["skip"] for each in one] for one in found]
