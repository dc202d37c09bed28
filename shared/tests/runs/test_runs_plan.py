"""Plans of stages: steps, rates and bytes by hand; batches and DeepSpeed files that cannot be."""

import json
from types import SimpleNamespace

import pytest

from tenfold import UserError
from tenfold.runs.plan import count_records, deepspeed_config, plan_stages, state_bytes, zero_stage


def stage(**changes):
    return SimpleNamespace(**{"epochs": 2, "steps": None, "batch": 8, "per_device": 2, "learning_rate": 1.0, **changes})


def test_steps_are_counted_by_hand():
    """Fails if an incomplete batch is no step, epochs are forgotten, or the second stage begins at nought."""
    first, second = plan_stages([("a", stage()), ("b", stage(steps=3))], {"a": 17, "b": 100}, 0.25, gpus=2)
    assert (first.accumulation, first.epoch_steps, first.steps, first.warmup) == (2, 3, 6, 2)
    assert (second.first, second.epoch_samples, second.steps, second.end) == (6, 24, 6, 12)


def test_the_rate_rises_and_falls():
    """Fails if the rise begins at its first step's rate, or the cosine does not end at nought."""
    (plan,) = plan_stages([("a", stage(epochs=1))], {"a": 64}, 0.25, gpus=1)
    assert [plan.rate(step) for step in (0, 1, 2, 5, 8)] == pytest.approx([0, 0.5, 1, 0.5, 0])


def test_a_batch_that_ranks_cannot_share_is_refused():
    with pytest.raises(UserError, match=r"batch of 8 over 3 ranks.*a\.batch.*multiple of 6"):
        plan_stages([("a", stage())], {"a": 64}, 0.0, gpus=3)


def test_bytes_of_a_gpu_by_hand():
    """100 parameters, 10 trained: float32 everywhere, then 2 bytes and 12 of the optimiser's, shared out."""
    assert state_bytes(100, 10, 2, 0, "bf16") == 400 + 40 + 80
    assert state_bytes(100, 10, 2, 2, "bf16") == 200 + (20 + 120) // 2
    assert state_bytes(100, 10, 2, 3, "bf16") == (200 + 20 + 120) // 2


@pytest.mark.parametrize(
    "content", ["[]", "{}", '{"zero_optimization": {"stage": 1}}', '{"zero_optimization": 3}', "{"]
)
def test_other_deepspeed_files_are_refused(content, tmp_path):
    path = tmp_path / "zero.json"
    path.write_text(content)
    with pytest.raises(UserError, match=r"zero\.json"):
        deepspeed_config(path)


def test_deepspeeds_stage_is_read(tmp_path):
    (tmp_path / "zero.json").write_text(json.dumps({"zero_optimization": {"stage": 3}}))
    assert zero_stage(deepspeed_config(tmp_path / "zero.json")) == 3
    assert deepspeed_config(None) is None and zero_stage(None) == 0


@pytest.mark.parametrize("content", ["[]", "{}"])
def test_records_are_counted(content, tmp_path):
    (tmp_path / "data.json").write_text('[{"id": 1}, {"id": 2}]')
    assert count_records(tmp_path / "data.json") == 2
    (tmp_path / "data.json").write_text(content)
    with pytest.raises(UserError, match="no records"):
        count_records(tmp_path / "data.json")
