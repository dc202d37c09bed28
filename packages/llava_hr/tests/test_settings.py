"""Settings of the training: the paper's numbers in the shipped files, and what is refused."""

from __future__ import annotations

import pytest
from llava_hr_training import TINY

from llava_hr.training.plan import deepspeed_config
from llava_hr.training.settings import TrainSettings
from tenfold import UserError
from tenfold.cli import load_config
from tenfold.cli.settings import checked

# Sheet, section 5: data, pixels, aspect ratio, template, batch, a GPU's, rate, text tokens, sampler, DeepSpeed.
STAGE_1 = ("blip_laion_cc_sbu_558k.json", 384, "square", "plain", 256, 32, 1e-3, 2048, "random", "zero2")
STAGE_2 = ("llava_v1_5_mix665k.json", 1024, "pad", "vicuna_v1", 128, 8, 2e-5, 2496, "modality", "zero3")


@pytest.mark.parametrize("name", ["7b", "13b", "x-13b"])
def test_the_shipped_configs_hold_the_numbers_of_the_paper(name: str) -> None:
    """Fails if a number of section 5 is another one in a shipped file."""
    settings = load_config(TrainSettings, name)
    for stage, numbers in ((settings.pretrain, STAGE_1), (settings.finetune, STAGE_2)):
        found = (
            stage.data.rpartition("/")[2],
            *(stage.image_size, stage.image_aspect_ratio, stage.conversation, stage.batch, stage.per_device),
            *(stage.learning_rate, stage.max_length, stage.sampler, stage.deepspeed),
        )
        assert found == numbers and stage.epochs == 1 and stage.steps is None
    assert settings.finetune.group == 8 * 8  # what eight GPUs take at a time
    optimizer = settings.optimizer
    assert (optimizer.betas, optimizer.eps, optimizer.weight_decay) == ((0.9, 0.999), 1e-8, 0.0)
    assert (optimizer.warmup_ratio, optimizer.clip) == (0.03, None)
    assert settings.precision == "bf16" and settings.tf32 and settings.gradient_checkpointing
    assert (settings.data.workers, settings.data.expected.gpus) == (4, 8)
    assert (settings.data.expected.pretrain, settings.data.expected.finetune) == (558_128, 665_298)
    assert settings.model.size == name and settings.stages == ("pretrain", "finetune")
    assert settings.model.language_model == f"lmsys/vicuna-{'7b' if name == '7b' else '13b'}-v1.5"


def test_the_deepspeed_files_are_those_of_llava() -> None:
    """Fails if ZeRO-3 does not gather 16-bit weights on save, or a bucket has a size of its own."""
    settings = load_config(TrainSettings, "7b")
    zero2, zero3 = deepspeed_config(settings.pretrain), deepspeed_config(settings.finetune)
    common = {"overlap_comm": True, "contiguous_gradients": True, "sub_group_size": 1e9, "reduce_bucket_size": "auto"}
    assert zero2["zero_optimization"] == {"stage": 2, **common}
    assert zero3["zero_optimization"] == {
        "stage": 3,
        **common,
        "stage3_prefetch_bucket_size": "auto",
        "stage3_param_persistence_threshold": "auto",
        "stage3_max_live_parameters": 1e9,
        "stage3_max_reuse_distance": 1e9,
        "stage3_gather_16bit_weights_on_model_save": True,
    }
    for content in (zero2, zero3):
        assert content["bf16"] == {"enabled": "auto"} and content["train_batch_size"] == "auto"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("finetune.learning_rat=1", "unknown setting finetune.learning_rat.*finetune.learning_rate, perhaps"),
        ("model.size=9b", "model.size: Input should be '7b', '13b'"),
        ("finetune.batch=12", "a batch of 12 is no multiple of per_device, 8"),
        ("finetune.group=20", "a group of 20 is no multiple"),
        ("stages=[finetune, pretrain]", "stages should be"),
        ("device=gpu", "device"),
        ("finetune.epochs=-1", "greater than or equal to 0"),
        ("finetune.sampler=sorted", "finetune.sampler"),
    ],
)
def test_settings_that_do_not_exist_or_fit_are_named(override: str, message: str) -> None:
    """Fails if a setting is passed by in silence."""
    with pytest.raises(UserError, match=message):
        load_config(TrainSettings, "7b", [override])


def test_what_a_training_starts_from_goes_with_its_stages() -> None:
    """Fails if a projector that is trained anyway, or a whole model, is taken into stage 1."""
    for model, message in (({"start": "somewhere"}, "a whole model"), ({"projector": "there.bin"}, "begins stage 2")):
        with pytest.raises(UserError, match=message):
            checked(TrainSettings, {**TINY, "model": model}, "here")
        assert checked(TrainSettings, {**TINY, "model": model, "stages": ["finetune"]}).running == ("finetune",)
    with pytest.raises(UserError, match="nothing to train"):
        checked(TrainSettings, {**TINY, "stages": ["pretrain"], "pretrain": {**TINY["pretrain"], "epochs": 0}})
