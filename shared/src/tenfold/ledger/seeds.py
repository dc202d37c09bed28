"""Mini experiments over seeds: run what is missing in processes of its own, keep it, and judge paired differences.

run_each([(measure_run, arm, seed, folder) for arm in ARMS for seed in SEEDS if not kept(...).exists()], workers=2)
verdict(ours - theirs, least=2.0)              # "holds", "equivalent" or "not reproduced"
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import active_children, get_context
from pathlib import Path
from typing import Any

import numpy as np


def run_each(work: Iterable[tuple[Callable[..., Any], *tuple[Any, ...]]], workers: int = 2) -> list[Any]:
    """What every ``(function, *arguments)`` returns, in their order, each in a spawned process.

    The first failure is raised when all have ended; an interruption (Ctrl-C, SIGTERM) ends them. With one worker they
    run here, one after the other.
    """
    tasks = list(work)
    if workers == 1 or not tasks:
        return [function(*arguments) for function, *arguments in tasks]
    # Spawned: a forked child would share torch's threads.
    others = active_children()
    with ProcessPoolExecutor(min(workers, len(tasks)), mp_context=get_context("spawn")) as pool:
        try:
            return [done.result() for done in [pool.submit(function, *arguments) for function, *arguments in tasks]]
        except BaseException as error:
            if not isinstance(error, Exception):  # Ctrl-C or a signal: leaving the pool waits for what runs, hours even
                pool.shutdown(wait=False, cancel_futures=True)
                for child in active_children():
                    if child not in others:
                        child.terminate()
            raise


def kept(folder: Path, *names: object) -> Path:
    """Where a run's measurements lie: ``<folder>/<name>-<name>.json``."""
    return folder / f"{'-'.join(str(name) for name in names)}.json"


def spread(values: np.ndarray) -> float:
    """Standard deviation over the seeds; 0 for a single one."""
    return float(values.std(ddof=1)) if len(values) > 1 else 0.0


def counts(difference: np.ndarray, margin: float = 0.0) -> bool:
    """Whether a paired difference is above its spread and the margin."""
    return bool(difference.mean() > spread(difference) and difference.mean() >= margin)


def apart(higher: np.ndarray, lower: np.ndarray) -> bool:
    """Unpaired: whether the means differ by more than the larger spread."""
    return bool(higher.mean() - lower.mean() > max(spread(higher), spread(lower)))


def told_apart(difference: np.ndarray) -> str:
    """ "ahead", "behind" or "tie" of a paired difference."""
    if counts(difference):
        return "ahead"
    return "behind" if counts(-difference) else "tie"


def interval(difference: np.ndarray, seed: int = 0, draws: int = 2000) -> tuple[float, float]:
    """The 95 % bootstrap interval of a mean.

    Args:
        difference: ``[seeds]``, or ``[seeds, items]`` paired over both: then both are drawn anew.
    """
    values = np.atleast_2d(difference.T).T  # [seeds, items]
    rng = np.random.default_rng(seed)
    rows = rng.integers(len(values), size=(draws, len(values)))
    means = np.empty(draws)
    for draw, row in enumerate(rows):
        picked = values[row]
        if picked.shape[1] > 1:
            picked = picked[:, rng.integers(picked.shape[1], size=picked.shape[1])]
        means[draw] = picked.mean()
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


def verdict(difference: np.ndarray, least: float, valid: bool = True) -> str:
    """The house's rule for a paired difference over seeds.

    Args:
        difference: ``[seeds]``, positive where the claim holds; or ``[seeds, items]``, paired over both: then the
            interval draws both anew, and means are over the items.
        least: the least effect that counts, stated before the runs.
        valid: whether every validity gate passed.

    Returns:
        "no verdict" where a gate failed; "holds" where the mean exceeds its spread and the least effect; "equivalent"
        where the bootstrap interval lies within that effect; else "not reproduced".
    """
    if not valid:
        return "no verdict"
    if counts(difference.reshape(len(difference), -1).mean(1), least):
        return "holds"
    low, high = interval(difference)
    return "equivalent" if -least < low and high < least else "not reproduced"


def show(values: np.ndarray, digits: int = 1) -> str:
    """Mean ± spread."""
    return f"{values.mean():.{digits}f} ± {spread(values):.{digits}f}"


def paired(difference: np.ndarray, unit: str = "points", digits: int = 1) -> str:
    """A paired difference, mean ± spread and every seed's."""
    each = ", ".join(f"{one:+.{digits}f}" for one in difference)
    return f"{difference.mean():+.{digits}f} ± {spread(difference):.{digits}f} {unit} ({each})"


def row(name: str, values: np.ndarray, **more: Any) -> dict[str, Any]:
    """A row of a table of findings: name, mean, spread and every seed's value."""
    return {"name": name, "mean": float(values.mean()), "spread": spread(values), "seeds": values.tolist(), **more}


def all_kept(folder: Path, variants: Sequence[object], seeds: Sequence[int]) -> bool:
    """Whether every run's measurements lie in the folder."""
    return all(kept(folder, variant, seed).exists() for variant in variants for seed in seeds)
