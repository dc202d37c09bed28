"""`eas claims --train`: the miniature's search against the lists that it could have found, and what comes of it.

Decided before the record (hosts, worlds and seeds of the record were not used to choose anything):

- Frozen hosts: ``hosts/0, hosts/1, ...`` in the output folder (mini hosts of other training seeds), or the one that
  ships. Two seeds a host, of the adapters' start, the order of the data, the search and the random lists; arms of one
  seed share the first two. Accuracy on test questions that no arm saw, the most likely of the four answers.
- "searched" is ahead of "random" when the paired difference to the mean of that seed's random lists (none holds layer
  0) exceeds its spread over hosts and seeds and LEAST points; alike for the other comparisons.
- Gates, without which comparisons of lists have no verdict: the reference (nothing skipped, equal parameters) answers
  between FLOOR and CEILING per cent (chance is 25 %); and with the search's adapters the best pair of removed
  attentions is GAP points above the worst, layer 0 left aside.
- "pairs": with the search's adapters every pair of attentions is removed and scored. The search holds when its two
  highest preferences stand RANK points above the middle of that ranking (in percentiles), and above their spread.

Two designs before this one asked for a letter in the place of a colour, and stayed at chance in development (24 to
37 %, and a loss of 1.53 where chance is 1.39), whatever the rate and however few the candidates; neither was ever
recorded. Why was not tested: perhaps because the adapters stand before attention, and a new answer would have to pass
through frozen matrices. With names in the question, development seed 100 on a former host reached 79 % with nothing
skipped and 72 % without four attentions; what that host answers untuned was not measured.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tenfold.cli import Experiments, Finding
from tenfold.ledger.seeds import kept, paired, row, run_each, show, verdict
from tenfold.runs import atomic_write_json, read_json

if TYPE_CHECKING:
    from eas.evidence.experiments import Design

SEEDS = (0, 1)
WORKERS = 1
MINUTES = 20
LEAST, GAP, FLOOR, CEILING, RANK = 2.0, 10.0, 35.0, 95.0, 25.0
SEARCHED, SENSITIVITY, RANDOM, REVERSED = "searched", "sensitivity", "random", "reversed"
NO_GLOBAL, EQUAL = "no_global", "equal"
ARMS = (SEARCHED, SENSITIVITY, RANDOM, REVERSED, NO_GLOBAL, EQUAL)


def experiments() -> Experiments:
    """What `claims --train` does."""
    return Experiments(
        f"searches and tunes {len(ARMS) + 1} lists of skipped attentions with {len(SEEDS)} seeds on every mini host in "
        f"hosts/ of the output folder (else on the one that ships): about {MINUTES} minutes of one core for three",
        conduct,
    )


def conduct(folder: Path, design: Design | None = None, workers: int = WORKERS) -> list[Finding]:
    """Run what is missing, host by host and seed by seed, then judge.

    Args:
        folder: for what is finished; a killed run goes on from it.
        design: other sizes than the record's.
    """
    from eas.evidence.experiments import Design

    design = design or Design()
    own = sorted(path for path in (folder / "hosts").glob("*") if path.is_dir())
    hosts: list[Path | None] = [*own] or [None]
    places = [(number, seed) for number in range(len(hosts)) for seed in SEEDS]
    missing = [place for place in places if not kept(folder, "host", place[0], "seed", place[1]).exists()]
    run_each([(measure, number, hosts[number], seed, folder, design) for number, seed in missing], workers)
    return judge([read_json(kept(folder, "host", number, "seed", seed)) for number, seed in places])


def measure(number: int, host: Path | None, seed: int, folder: Path, design: Design) -> dict[str, Any]:
    """Everything of one host and seed, kept as ``folder/host-<number>-seed-<seed>.json``."""
    import torch

    from eas.evidence.experiments import bench, equal_rank
    from tenfold.data import mini_host
    from tenfold.runs import fingerprint, sample_generator

    torch.set_num_threads(1)
    made = bench(design, host)
    layers, removed = made.layers, design.removed
    search, pairs, seconds = made.search(seed)
    losses = made.sensitivity()
    by_loss = sorted(range(layers), key=lambda layer: losses[layer])
    order = list(search.order())
    generator = sample_generator(seed, number, 9)
    lists = [
        sorted((1 + torch.randperm(layers - 1, generator=generator)[:removed]).tolist()) for _ in range(design.randoms)
    ]
    arms: dict[str, Any] = {
        SEARCHED: made.tune(order[:removed], seed),
        SENSITIVITY: made.tune(by_loss[:removed], seed),
        RANDOM: [made.tune(skip, seed) for skip in lists],
        REVERSED: made.tune(order[-removed:], seed),
        NO_GLOBAL: made.tune(order[:removed], seed, use_global=False),
        EQUAL: made.tune((), seed, adapter_rank=equal_rank(made.shape, design)),
    }
    found = {
        "host": fingerprint(host or mini_host.path()),
        "seed": seed,
        "design": vars(design),
        "layers": layers,
        "dense": made.dense(),
        "preferences": search.preferences.tolist(),
        "margin": search.margin(),
        "pairs": pairs,
        "sensitivity": losses,
        "search_cpu_seconds": seconds,
        "arms": arms,
    }
    atomic_write_json(kept(folder, "host", number, "seed", seed), found)
    return found


Seeds = Sequence[Mapping[str, Any]]


def percentile(one: Mapping[str, Any]) -> float:
    """Where the search's two highest preferences stand among all pairs: 100 is the best, 0 the worst, 50 the middle.

    Pairs with layer 0, which no host does without, do not count as beaten.
    """
    order = np.argsort(-np.asarray(one["preferences"]), kind="stable")
    first, second = sorted(int(site) for site in order[:2])
    chosen = (first, second)
    values = dict(zip(combinations(range(one["layers"]), 2), one["pairs"], strict=True))
    others = np.array([value for pair, value in values.items() if pair != chosen and 0 not in pair])
    own = values[chosen]
    return float(100 * ((others < own).mean() + 0.5 * (others == own).mean()))


def _later_pairs(one: Mapping[str, Any]) -> list[float]:
    """Accuracy without each pair of attentions, of those that leave layer 0."""
    return [value for pair, value in zip(combinations(range(one["layers"]), 2), one["pairs"], strict=True) if pair[0]]


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
    equal = accuracy(seeds, EQUAL)
    apart = np.array([np.ptp(_later_pairs(one)) for one in seeds])
    failed = []
    if not (equal >= FLOOR).all() or not (equal <= CEILING).all():
        failed.append(f"the reference answers {show(equal)} %, not {FLOOR:.0f} to {CEILING:.0f}")
    if apart.mean() < GAP:
        failed.append(f"the best pair is {show(apart)} points above the worst, not {GAP:.0f}")
    return not failed, "; ".join(failed) or f"reference {show(equal)} %, pairs {show(apart)} points apart"


def judge(seeds: Seeds) -> list[Finding]:
    """Findings, by the rules at the top."""
    valid, why = gates(seeds)
    values = {arm: accuracy(seeds, arm) for arm in ARMS}
    hosts = len({one["host"] for one in seeds})
    told = f"{hosts} host{'s' * (hosts > 1)}, {len(seeds)} runs; gates: {why}"
    table = [row(arm, values[arm], skip=_skips(seeds, arm)) for arm in ARMS]
    dense = np.array([one["dense"] for one in seeds])

    def compare(claim: str, ours: str, theirs: str, least: float = LEAST, **more: Any) -> Finding:
        difference = values[ours] - values[theirs]
        found = verdict(difference, least, valid)
        passed = {"holds": True, "no verdict": None}.get(found, False)
        detail = f"{found}: {show(values[ours])} against {show(values[theirs])} %, {paired(difference)}; {told}"
        return Finding(claim, float(difference.mean()), passed, detail, more)

    correlations = [rank_correlation(one["preferences"], [-loss for loss in one["sensitivity"]]) for one in seeds]
    rows = np.array([percentile(one) for one in seeds])
    pairs = verdict(rows - 50, RANK, valid)
    return [
        Finding("mini-gate", float(values[EQUAL].mean()), valid, f"{why}; untuned {show(dense)} %", {"table": table}),
        compare("mini-searched-random", SEARCHED, RANDOM),
        compare("mini-searched-reversed", SEARCHED, REVERSED),
        compare("mini-searched-sensitivity", SEARCHED, SENSITIVITY),
        compare("mini-global", SEARCHED, NO_GLOBAL),
        Finding(
            "mini-pairs",
            float(rows.mean()),
            {"holds": True, "no verdict": None}.get(pairs, False),
            f"{pairs}: {', '.join(f'{one:.0f}' for one in rows)}; {told}",
        ),
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
