"""A training in two stages: its settings, where it stands, and what its record says of it."""

import json
from pathlib import Path

import pytest
from pydantic import ValidationError

from tenfold import UserError
from tenfold.cli.stages import DataSettings, InstructStage, MiniSettings, TwoStages
from tenfold.runs.plan import StagePlan
from tenfold.runs.two_stages import handed_to, read_fingerprints, require_data, stage_metrics, stands_at


def stage(**values):
    numbers = {"batch": 8, "per_device": 4, "learning_rate": 1e-3, "max_length": 16, "sampler": "random"}
    return {"data": "a.json", "conversation": "v1"} | numbers | values


def settings(**values):
    return TwoStages[InstructStage].model_validate({"pretrain": stage(), "finetune": stage(data="b.json")} | values)


def plan(name, one, first=0, samples=32):
    return StagePlan(name, one, 0.0, samples, 1, first)


@pytest.mark.parametrize("values", [{"batch": 6}, {"group": 6}, {"learning_rate": 0}, {"max_length": 1}])
def test_numbers_that_do_not_fit_are_refused(values):
    with pytest.raises(ValidationError):
        settings(finetune=stage(**values))


def test_a_stage_without_epochs_does_not_run():
    assert settings().running == ("pretrain", "finetune")
    assert settings(pretrain=stage(epochs=0)).running == ("finetune",)
    for wrong in ({"stages": ("finetune", "pretrain")}, {"stages": ("pretrain",), "pretrain": stage(epochs=0)}):
        with pytest.raises(ValidationError):
            settings(**wrong)


def test_stage_2_begins_with_what_stage_1_trained_or_with_the_users_file():
    handed = Path("handed")
    assert handed_to("pretrain", settings(), handed, "given") is None
    assert handed_to("finetune", settings(), handed, "given") == handed
    alone = settings(stages=("finetune",))
    assert handed_to("finetune", alone, handed, "given") == Path("given")
    assert handed_to("finetune", alone, handed, None) is None


def test_a_training_stands_where_its_last_whole_checkpoint_does(tmp_path):
    """Fails if stage 1, done, is counted from its checkpoints, which are removed then."""
    one, two = plan("pretrain", settings().pretrain), plan("finetune", settings().finetune, first=4)
    assert stands_at(one, tmp_path / "none", tmp_path / "handed") == 0
    (tmp_path / "handed").mkdir()
    assert stands_at(one, tmp_path / "none", tmp_path / "handed") == one.end == 4
    assert stands_at(two, tmp_path / "none", tmp_path / "handed") == 0


def test_the_record_has_the_mean_loss_of_each_stages_last_tenth(tmp_path):
    rows = [{"stage": "pretrain", "step": step, "loss": float(step)} for step in range(1, 5)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    plans = [plan("pretrain", settings().pretrain), plan("finetune", settings().finetune, first=4)]
    found = stage_metrics(plans, tmp_path, ranks=2)
    assert found == {"ranks": 2, "pretrain": {"steps": 4, "loss": 4.0}, "finetune": {"steps": 4, "loss": None}}


def test_a_training_without_data_says_where_to_read(tmp_path):
    with pytest.raises(UserError, match="toy train --help"):
        require_data(settings(), "toy")
    with pytest.raises(UserError, match="no such folder"):
        require_data(settings(data=DataSettings(folder=str(tmp_path / "nothing"))), "toy")
    require_data(settings(data=DataSettings(mini=MiniSettings())), "toy")
    require_data(settings(data=DataSettings(folder=str(tmp_path))), "toy")


def test_what_a_training_read_is_known_by_content(tmp_path):
    """Fails if a changed file with the same name has the same fingerprint, or a stage that does not run is read."""
    (tmp_path / "b.json").write_text("[]")

    class Model:
        start, base = None, str(tmp_path / "b.json")

    only = settings(stages=("finetune",))
    before = read_fingerprints(only, tmp_path, Model, ["start", "base"])
    assert set(before) == {"finetune json", "base"}
    (tmp_path / "b.json").write_text("[ ]")
    assert read_fingerprints(only, tmp_path, Model, ["start"])["finetune json"] != before["finetune json"]
