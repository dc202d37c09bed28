"""Training in two stages (sheet section 5, D4)."""

import json
import sys

import pytest
import torch
from flashsloth_runs import train_settings
from safetensors.torch import load_file

from flashsloth.data.mini import write_mini_data
from flashsloth.miniature.model import new_model
from flashsloth.training import run as training
from flashsloth.training.plan import dry_run, plan
from flashsloth.training.run import run_train
from flashsloth.training.settings import TrainSettings
from flashsloth.training.start import new_parts
from tenfold import UserError
from tenfold.cli import load_config
from tenfold.runs import launch
from tenfold.runs.stages import Curve
from tenfold.testing.processes import in_ranks


@pytest.mark.parametrize("config", ["3.2b-mix665k", "hd-3.2b-mix665k"])
def test_dry_run_equals_the_sheet(config):
    """Trainable and total parameters, batches, steps and rates. Fails if one of them is changed in a config."""
    dry = dry_run(load_config(TrainSettings, config))
    first, second = dry.stages
    assert (first.parameters, first.trainable, second.trainable) == (3_196_373_985, 10_837_249, 2_798_628_545)
    assert (first.plan.samples, second.plan.samples) == (558_128, 665_296)
    assert (first.plan.steps, second.plan.steps) == (2181, 5198)
    assert (first.plan.settings.batch, first.plan.accumulation, second.plan.accumulation) == (256, 1, 2)
    assert (first.plan.rate(first.plan.warmup), second.plan.rate(second.plan.warmup)) == (1e-3, 2e-5)
    assert (first.plan.warmup, second.plan.settings.deepspeed) == (66, "zero3")
    assert first.visual_tokens == (405 if "hd" in config else 81)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A whole training of two steps a stage."""
    folder = tmp_path_factory.mktemp("train") / "whole"
    return folder, run_train(train_settings(), 0, folder)


def test_a_killed_training_goes_on_to_the_same_bits(trained, tmp_path, monkeypatch):
    """Ended after the third of four steps. Fails if order, optimiser or random state are not those of the whole run."""
    whole, _ = trained
    folder = tmp_path / "killed"
    original = Curve.on_step_end

    def die(self, args, state, control, **rest):
        original(self, args, state, control, **rest)
        if self.plan.name == "finetune" and state.global_step == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Curve, "on_step_end", die)
        run_train(train_settings(), 0, folder)
    again = run_train(train_settings(), 0, folder, resume=True)
    assert again.resumed == 3
    for name in ("model/model.safetensors", "stage1.safetensors"):
        assert (folder / name).read_bytes() == (whole / name).read_bytes()


def test_what_each_stage_trains(trained):
    """Stage 1: SAP and projector; stage 2: all but the tower. Fails if a freeze is lost, or stage 2 forgets stage 1."""
    folder, result = trained
    first = load_file(folder / "stage1.safetensors")
    assert {name.split(".")[1] for name in first} == {"pooling", "multi_modal_projector"}
    start, end = new_model(0).state_dict(), load_file(result.model / "model.safetensors")
    parts = new_parts(new_model(0).config, 0)
    changed = {name for name in end if not torch.equal(end[name], parts.get(name, start[name]))}
    assert not any(name.startswith("model.vision_tower.") for name in changed)
    for part in ("pooling", "multi_modal_projector", "query_tokens", "embq", "language_model"):
        assert any(name.startswith(f"model.{part}.") for name in changed)
    assert json.loads((folder / "run.json").read_text())["metrics"]["finetune"]["steps"] == 2


def test_sap_may_begin_anew_in_stage_2(trained, tmp_path):
    """`reinit_sap_in_stage2`, the official trap. Fails if stage 2 takes stage 1's SAP all the same."""
    folder, _ = trained
    settings = train_settings(
        stages='["finetune"]', reinit_sap_in_stage2="true", **{"model.stage1": folder / "stage1.safetensors"}
    )
    from contextlib import ExitStack

    from flashsloth.training.start import model_config, starting_weights

    with ExitStack() as files:
        config = model_config(settings)
        given = starting_weights(settings, config, "finetune", 0, folder / "stage1.safetensors", files)
    sap, projector = "model.pooling.mlp.0.weight", "model.multi_modal_projector.linear_1.weight"
    first = load_file(folder / "stage1.safetensors")
    assert torch.equal(given[sap].read(), new_parts(config, 0)[sap])
    assert torch.equal(given[projector].read(), first[projector])


def test_a_loss_that_is_not_finite_ends_the_training(tmp_path):
    """One line with stage and step; no model is written. Fails if NaN goes on, or is logged as 0."""
    settings = train_settings(**{"pretrain.learning_rate": 1e25, "optimizer.clip": "null", "pretrain.steps": 4})
    with pytest.raises(UserError, match=r"not finite.*pretrain, step"):
        run_train(settings, 0, tmp_path / "run")
    assert not (tmp_path / "run/model").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pretrain.batch": 5}, "no multiple"),
        ({"stages": '["finetune","pretrain"]'}, "stages should be"),
        ({"precision": "int8"}, "precision"),
        ({"nonsense": 1}, "nonsense"),
    ],
)
def test_settings_that_do_not_fit(changes, message):
    with pytest.raises(UserError, match=message):
        train_settings(**changes)


def test_other_settings_do_not_go_on(trained, tmp_path):
    """Fails if a continuation with another learning rate passes, or a finished folder is written to."""
    folder, _ = trained
    with pytest.raises(UserError, match="finished run"):
        run_train(train_settings(), 0, folder, resume=True)
    other = tmp_path / "other"
    other.mkdir()
    (other / "checkpoint-identity.json").write_bytes((folder / "checkpoint-identity.json").read_bytes())
    with pytest.raises(UserError, match="learning_rate"):
        run_train(train_settings(**{"pretrain.learning_rate": 1e-4}), 0, other, resume=True)


def test_a_broken_record_is_named(tmp_path):
    """By file, number and id. Fails if a neighbour takes its place, as in the official code."""
    data = write_mini_data(tmp_path / "data", train=8)
    (data / "images/000000000003.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match="000000000003"):
        run_train(train_settings(**{"data.folder": data}), 0, tmp_path / "run")


def test_plan_over_ranks():
    settings = train_settings()
    assert plan(settings, {"pretrain": 16, "finetune": 16}, 2)[0].accumulation == 1
    with pytest.raises(UserError, match="over 3 ranks"):
        plan(settings, {"pretrain": 16, "finetune": 16}, 3)


@pytest.mark.slow
def test_two_ranks_follow_one(trained, tmp_path):
    """gloo, equal global batch: the losses of the first steps within 1e-4. Fails if a rank sees another's samples."""
    folder = tmp_path / "two"
    data = trained[0] / training.DATA
    in_ranks(lambda: run_train(train_settings(**{"data.folder": data}), 0, folder))
    one, two = ([json.loads(row)["loss"] for row in (at / "metrics.jsonl").open()] for at in (trained[0], folder))
    assert one == pytest.approx(two, abs=1e-4)


@pytest.mark.slow
def test_the_paper_s_deepspeed_follows_one(trained, tmp_path, monkeypatch):
    """ZeRO-2 for stage 1 and ZeRO-3 for stage 2, one row a rank at a time, so that the text-only one is alone on its
    rank: losses and weights of one process. Fails if what is saved is a rank's share, or a rank without an image runs
    other modules than the other (it hangs)."""
    pytest.importorskip("deepspeed", reason="DeepSpeed is not installed")
    monkeypatch.setattr(sys.modules["deepspeed.comm.torch"], "build_shm_op", lambda: None)
    monkeypatch.setattr(launch, "missing_tools", list)
    changes = {"data.folder": trained[0] / training.DATA, "finetune.sampler": "random", "finetune.per_device": 1}
    changes |= {"finetune.steps": 4}  # an epoch: all sixteen rows
    run_train(train_settings(**changes), 0, tmp_path / "one")
    changes |= {"pretrain.deepspeed": "zero2", "finetune.deepspeed": "zero3"}
    in_ranks(lambda: run_train(train_settings(**changes), 0, tmp_path / "zero"))
    one, two = ([json.loads(row)["loss"] for row in (tmp_path / at / "metrics.jsonl").open()] for at in ("one", "zero"))
    assert one == pytest.approx(two, abs=1e-4)
    ours, theirs = (load_file(tmp_path / at / "model/model.safetensors") for at in ("zero", "one"))
    assert ours.keys() == theirs.keys()
    assert max((ours[name].float() - theirs[name].float()).abs().max().item() for name in ours) < 5e-4
