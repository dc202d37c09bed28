"""The learning rates of the paper and of short trainings, and the plan that `--dry-run` prints."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from safetensors.torch import load_file

from dtnet.training.plan import dry_run, plan
from dtnet.training.schedule import EPOCHS, cosine_rate, paper_rate
from dtnet.training.settings import TrainSettings
from tenfold import UserError
from tenfold.cli import load_config

GOLDENS = Path(__file__).parent / "goldens"


def test_every_epoch_has_the_rate_of_the_official_loop() -> None:
    """Fails if a stretch ends an epoch early or late, or a rate is another one."""
    golden = load_file(GOLDENS / "lr_schedule.safetensors")
    rates = [paper_rate("xe", epoch) for epoch in range(26)] + [paper_rate("scst", epoch) for epoch in range(35)]
    assert rates == pytest.approx(golden["out/lr_per_epoch"].tolist(), rel=1e-12)
    assert golden["out/is_rl_epoch"].tolist() == [0] * EPOCHS["xe"] + [1] * EPOCHS["scst"]


def test_the_table_of_the_paper() -> None:
    """Fails if the last XE epoch keeps 4e-6, or warm-up starts at zero."""
    assert [paper_rate("xe", epoch) for epoch in (0, 1, 2, 3, 9, 10, 19, 20, 24, 25)] == pytest.approx(
        [2.5e-5, 5e-5, 7.5e-5, 1e-4, 1e-4, 2e-5, 2e-5, 4e-6, 4e-6, 5e-6], rel=1e-12
    )
    assert [paper_rate("scst", epoch) for epoch in (0, 14, 15, 24, 25, 29, 30, 34, 99)] == pytest.approx(
        [5e-6, 5e-6, 5e-7, 5e-7, 2.5e-7, 2.5e-7, 5e-8, 5e-8, 5e-8], rel=1e-12
    )


def test_a_cosine_rises_to_its_peak_and_falls_to_almost_nothing() -> None:
    """Fails if the warm-up does not end at the peak, or the descent does not reach the end of the stage."""
    rates = [cosine_rate(step, 100, 10, 1e-3) for step in range(100)]
    assert rates[0] == pytest.approx(1e-4) and rates[9] == rates[10] == 1e-3
    assert all(later < earlier for earlier, later in itertools.pairwise(rates[10:]))
    assert 0 < rates[-1] < 1e-6
    assert cosine_rate(0, 1, 0, 1e-3) == 1e-3


def test_the_dry_run_of_the_paper_counts_what_the_paper_trains() -> None:
    """Fails if xe keeps its incomplete last batch, scst drops its own, or the frozen positions are trained."""
    dry = dry_run(load_config(TrainSettings, "coco"))
    xe, scst = dry.stages
    assert (xe.items, xe.size, xe.steps, xe.settings.epochs, xe.end) == (566_747, 50, 11_334, 26, 26 * 11_334)
    assert (scst.items, scst.size, scst.steps, scst.settings.epochs) == (113_287, 20, 5_665, 35)
    assert scst.end == 26 * 11_334 + 35 * 5_665
    assert (dry.parameters, dry.trainable) == (36_179_384, 36_151_224)
    assert (xe.settings.betas, scst.settings.betas) == ((0.9, 0.98), (0.9, 0.999))
    rates = [(stage.name, epochs, rate) for stage, epochs, rate in dry.rates()]
    assert rates[0] == ("xe", "0", "2.5e-05") and rates[3] == ("xe", "3-9", "0.0001")
    assert rates[-1] == ("scst", "56-60", "5e-08") and len(rates) == 11


def test_steps_of_an_epoch_can_be_capped_and_stages_left_out() -> None:
    """Fails if a cap adds steps that the data do not have, or a stage without epochs stays in the plan."""
    settings = TrainSettings.model_validate({"xe": {"epochs": 2, "steps": 3}, "scst": {"epochs": 1, "steps": 99}})
    xe, scst = plan(settings, captions=200, images=41)
    assert (xe.steps, xe.end, scst.first, scst.steps, scst.end) == (3, 6, 6, 3, 9)
    only = plan(settings.model_copy(update={"stages": ("scst",)}), captions=200, images=41)
    assert [(stage.name, stage.first) for stage in only] == [("scst", 0)]
    with pytest.raises(UserError, match="at least one batch of 50"):
        plan(settings, captions=49, images=41)
    nothing = TrainSettings.model_validate({"xe": {"epochs": 0}, "scst": {"epochs": 0}})
    with pytest.raises(UserError, match="nothing to train"):
        plan(nothing, captions=200, images=41)
