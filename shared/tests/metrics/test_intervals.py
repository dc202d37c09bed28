"""Bootstrap intervals against scipy, theory and themselves."""

from __future__ import annotations

import numpy as np
import pytest

from tenfold import UserError
from tenfold.metrics import bootstrap


def test_the_interval_agrees_with_scipy() -> None:
    """Fails if the interval is not the percentile one, or the tails have the wrong mass."""
    stats = pytest.importorskip("scipy.stats")
    values = np.random.default_rng(1).beta(2, 5, size=200)
    ours = bootstrap(values, confidence=0.9, resamples=20_000)
    theirs = stats.bootstrap(
        (values,), np.mean, confidence_level=0.9, n_resamples=20_000, method="percentile", rng=np.random.default_rng(2)
    ).confidence_interval
    assert ours.value == pytest.approx(values.mean())
    # Two seeds of 20,000 resamples each differ by far less than a hundredth of the standard deviation.
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=0.001)


def test_the_interval_has_the_width_that_theory_gives_a_proportion() -> None:
    """Fails if fewer or more rows than there are enter a resample."""
    values = np.repeat([0.0, 1.0], 200)
    interval = bootstrap(values, resamples=10_000)
    half = 1.96 * 0.5 / np.sqrt(400)
    assert (interval.low, interval.high) == pytest.approx((0.5 - half, 0.5 + half), abs=0.003)


def test_same_seed_same_interval_and_the_global_state_is_left_alone() -> None:
    """Fails if resamples are drawn from numpy's global generator."""
    values = np.arange(50.0)
    np.random.seed(0)
    before = np.random.get_state()[1].tolist()
    first = bootstrap(values, seed=3)
    assert np.random.get_state()[1].tolist() == before
    np.random.seed(1)
    assert bootstrap(values, seed=3) == first
    assert bootstrap(values, seed=4) != first


def test_a_statistic_sees_rows_that_stay_together() -> None:
    """The difference of two models that differ by a constant has an interval of no width.

    Fails if columns are resampled apart.
    """
    scores = np.random.default_rng(0).random((100, 2))
    scores[:, 1] = scores[:, 0] + 0.25
    interval = bootstrap(scores, statistic=lambda rows: float((rows[:, 1] - rows[:, 0]).mean()))
    assert (interval.low, interval.value, interval.high) == pytest.approx((0.25, 0.25, 0.25))


def test_many_rows_are_resampled_in_blocks_with_the_same_result() -> None:
    """Fails if a block is dropped or written over another."""
    values = np.random.default_rng(0).random(3000)
    interval = bootstrap(values, resamples=1000)
    drawn = np.random.default_rng(0).integers(3000, size=(1000, 3000))
    means = np.array([values[row].mean() for row in drawn])
    assert (interval.low, interval.high) == pytest.approx(tuple(np.quantile(means, (0.025, 0.975))))


@pytest.mark.parametrize(
    ("values", "options"),
    [([], {}), (3.0, {}), ([1.0], {"confidence": 1.0}), ([1.0], {"resamples": 0}), ([[1.0, 2.0]], {})],
)
def test_impossible_requests_are_errors(values: object, options: dict[str, float]) -> None:
    with pytest.raises(UserError):
        bootstrap(values, **options)  # type: ignore[arg-type]
