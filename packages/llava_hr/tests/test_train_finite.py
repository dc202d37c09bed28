"""A training whose numbers leave their range: it ends with one line, and without a model."""

import pytest
from llava_hr_training import tiny_settings, write_tiny_data, write_tiny_parts

from llava_hr.training.run import run_train
from tenfold import UserError


@pytest.mark.parametrize("stage", ["pretrain", "finetune"])
def test_a_rate_that_is_far_too_high_ends_the_training(stage, tmp_path):
    """Fails if NaN is trained on: transformers' Trainer shows a loss of 0 for it, and ends well."""
    data, parts = write_tiny_data(tmp_path / "data"), write_tiny_parts(tmp_path / "parts")
    settings = tiny_settings(data, parts, **{stage: {"learning_rate": 1e30}})
    with pytest.raises(UserError, match=rf"the loss is not finite .*{stage}, step"):
        run_train(settings, 0, tmp_path / "run")
    assert not (tmp_path / "run" / "model").exists() and not (tmp_path / "run" / "run.json").exists()
