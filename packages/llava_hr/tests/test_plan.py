"""`llava-hr train --dry-run`: what it counts is what the sheet says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from llava_hr_training import tiny_settings
from transformers import get_cosine_schedule_with_warmup

from llava_hr.training.plan import dry_run, plan
from llava_hr.training.settings import TrainSettings
from llava_hr.training.start import model_config
from tenfold import UserError
from tenfold.cli import load_config
from tenfold.runs.plan import state_bytes

# Sheet, section 4.4: trained in stage 1, and all that an official checkpoint holds.
SIZES = {
    "7b": (23_603_200, 7_283_909_803, 18_255_363),
    "13b": (34_091_008, 13_571_846_315, 18_255_363),
    "x-13b": (35_663_872, 14_245_718_891, 44_212_227),
}


@pytest.mark.parametrize("name", SIZES)
def test_a_dry_run_at_full_size_equals_the_sheet(name: str) -> None:
    """Models on the meta device, no data. Fails if a stage trains something else, has other steps or other tokens."""
    trained, total, adapters = SIZES[name]
    first, second = dry_run(load_config(TrainSettings, name)).stages
    assert first.trainable == trained and second.trainable == second.parameters
    assert second.parameters + second.unused == total
    assert second.parameters - first.parameters == adapters
    assert (first.plan.steps, second.plan.steps, second.plan.end) == (2181, 5198, 2181 + 5198)
    assert (first.visual_tokens, second.visual_tokens) == (576, 1024)
    assert (first.positions, second.positions) == (2623, 3519)
    assert [stage.plan.accumulation for stage in (first, second)] == [1, 2]
    assert [(stage.plan.settings.batch, stage.plan.gpus) for stage in (first, second)] == [(256, 8), (128, 8)]
    assert (first.plan.warmup, second.plan.warmup) == (66, 156)  # 3 %, rounded up
    # Of 16 bytes a parameter, ZeRO-3 leaves an eighth on each of eight GPUs.
    assert second.state_bytes == 16 * second.parameters // 8
    assert first.state_bytes == 2 * first.parameters + 14 * trained // 8


def test_the_rate_of_a_step_is_that_of_the_trainer() -> None:
    """Against transformers' schedule. Fails if warm-up is rounded down, or the cosine does not end at zero."""
    settings = load_config(TrainSettings, "7b", ["finetune.batch=64", "finetune.steps=97"])
    (_, stage) = plan(settings, {"pretrain": 512, "finetune": 10_000}, 8)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(()))], lr=stage.settings.learning_rate)
    schedule = get_cosine_schedule_with_warmup(optimizer, stage.warmup, stage.steps)
    for step in range(stage.steps + 1):
        assert stage.rate(step) == pytest.approx(schedule.get_last_lr()[0], abs=1e-12)
        optimizer.step()
        schedule.step()
    assert stage.first == 2 and stage.steps == 97 and stage.rate(97) == 0


def test_a_batch_is_the_same_on_any_number_of_ranks() -> None:
    """Fails if fewer ranks take a smaller batch, or a batch is cut that they cannot share."""
    settings = load_config(TrainSettings, "7b")
    for gpus, accumulation in ((1, (8, 16)), (2, (4, 8)), (8, (1, 2))):
        stages = plan(settings, {"pretrain": 558_128, "finetune": 665_298}, gpus)
        assert tuple(stage.accumulation for stage in stages) == accumulation
        assert [stage.steps for stage in stages] == [2181, 5198]
    with pytest.raises(UserError, match=r"a batch of 256 over 3 ranks.*multiple of 96"):
        plan(settings, {"pretrain": 558_128, "finetune": 665_298}, 3)


def test_bytes_of_weights_gradients_and_averages() -> None:
    """By hand, for 100 parameters of which 10 are trained. Fails if a share is not divided, or one that is kept is."""
    assert state_bytes(100, 10, 2, 0, "bf16") == 400 + 40 + 80  # float32, on every GPU
    assert state_bytes(100, 10, 2, 2, "bf16") == 200 + (20 + 120) // 2
    assert state_bytes(100, 10, 2, 3, "bf16") == (200 + 20 + 120) // 2


def test_samples_are_counted_where_there_are_data(tmp_path: Path) -> None:
    """Fails if the config's count stands although there are data, or broken ones are passed by."""
    settings = tiny_settings(tmp_path, {})
    for name, count in (("captions.json", 17), ("instruct.json", 20)):
        (tmp_path / name).write_text(json.dumps([{}] * count))
    dry = dry_run(settings)
    assert dry.counted and [stage.plan.samples for stage in dry.stages] == [17, 20]
    assert [stage.plan.steps for stage in dry.stages] == [3, 6]
    for text, message in (("[", "broken|not"), ("[]", "no records"), ("{}", "no records")):
        (tmp_path / "instruct.json").write_text(text)
        with pytest.raises(UserError, match=message):
            dry_run(settings)
    own = tmp_path / "own.json"
    own.write_text('{"zero_optimization": {"stage": 1}}')
    with pytest.raises(UserError, match="not a DeepSpeed config"):
        dry_run(tiny_settings(tmp_path, {}, stages=["pretrain"], pretrain={"deepspeed": str(own)}))


def test_another_encoder_by_name_brings_its_own_sizes() -> None:
    """Row "ConvNeXt-XXL" of table 3. Fails if the sizes of ConvNeXt-L stay behind under the other name."""
    settings = load_config(TrainSettings, "7b", ["model.config={vision_config: {high_res_name: convnext_xxlarge}}"])
    config = model_config(settings, "finetune").vision_config
    assert (config.high_res_dims, config.high_res_eps) == ([384, 768, 1536, 3072], 1e-5)
    assert config.high_res_weights.startswith("convnext_xxlarge")
