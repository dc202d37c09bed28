"""Every training, fit and evaluation on a GPU gives what the CPU gives.

    python -m pytest -m cuda tests/test_cuda.py                        # `benchmarks/gpu.sh` runs them
    TENFOLD_DEVICE=cpu python -m pytest -m cuda tests/test_cuda.py     # a dry run of the tests themselves

`make test` and `make test-all` leave them out: they need a device.
"""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tenfold.runs import read_json

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))
from small_runs import RUNS, Run, words_of  # noqa: E402

DEVICE = os.environ.get("TENFOLD_DEVICE", "cuda")
# Losses and scores after a few steps in float32: other kernels add in another order.
RELATIVE, ABSOLUTE = 2e-2, 2e-3
# What says how long or where something ran.
HISTORY = ("second", "time", "peak", "memory", "per_s", "device", "duration", "speed")


def device_words(run: Run, device: str) -> list[str]:
    """How a verb is told where to run."""
    if run.verb in ("eval", "fit") or run.package == "dyvte":
        return ["--device", device]
    return ["--set", f"device={device}"]


def numbers(tree: object, at: str = "") -> dict[str, float]:
    """The numbers of a record's metrics by place, without those of time and memory."""
    if isinstance(tree, bool) or any(word in at.rsplit(".", 1)[-1] for word in HISTORY):
        return {}
    if isinstance(tree, int | float):
        return {at: float(tree)}
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    return {name: value for key, part in items for name, value in numbers(part, f"{at}.{key}").items()}


def compare(ours: dict[str, float], theirs: dict[str, float]) -> list[str]:
    """Places at which two runs' numbers lie further apart than the tolerance, or are not finite."""
    return [
        f"{place}: {ours.get(place)} on the device, {theirs.get(place)} on the CPU"
        for place in sorted(set(ours) | set(theirs))
        if place not in ours
        or place not in theirs
        or not math.isfinite(ours[place])
        or not math.isclose(ours[place], theirs[place], rel_tol=RELATIVE, abs_tol=ABSOLUTE)
    ]


@pytest.fixture(scope="session")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {name: tmp_path_factory.mktemp(name) for name in ("cpu", "device")}


def execute(run: Run, places: dict[str, Path], side: str) -> dict[str, float]:
    """A run's numbers; where it needs a training, the CPU's, which is made when there is none yet."""
    out = places[side] / f"{run.package}-{run.verb}" / "whole"
    if not (out / "run.json").exists():
        if "{train}" in run.words:
            execute(next(one for one in RUNS if one.package == run.package and one.verb == "train"), places, "cpu")
        words = [*words_of(run, places["cpu"], out), *device_words(run, DEVICE if side == "device" else "cpu")]
        out.parent.mkdir(parents=True, exist_ok=True)
        done = subprocess.run([sys.executable, "-m", run.package, *words], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    return numbers(read_json(out / "run.json")["metrics"])


# Its trainer, of a model that only the miniature needs, runs on the CPU.
ON_DEVICE = [run for run in RUNS if (run.package, run.verb) != ("inst_diff_edit", "train")]


@pytest.mark.cuda
@pytest.mark.parametrize(
    "run",
    [
        pytest.param(run, id=f"{run.package}-{run.verb}", marks=pytest.mark.xdist_group(run.package))
        for run in ON_DEVICE
    ],
)
def test_a_device_gives_what_the_cpu_gives(run, places):
    ours, theirs = execute(run, places, "device"), execute(run, places, "cpu")
    assert theirs
    assert not (apart := compare(ours, theirs)), "\n".join(apart)


def test_the_comparison_can_fail():
    theirs = numbers({"loss": 2.0, "seconds": 3.0, "score": {"pope": [50.0, True]}})
    assert theirs == {".loss": 2.0, ".score.pope.0": 50.0}
    assert compare({".loss": 2.01, ".score.pope.0": 50.0}, theirs) == []
    assert len(compare({".loss": 2.2, ".score.pope.0": math.nan}, theirs)) == 2
    assert len(compare({".loss": 2.0}, theirs)) == 1
