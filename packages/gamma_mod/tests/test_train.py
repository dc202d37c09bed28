"""D4: training starts, resumes to the same bits, is shared by ranks, follows the paper's numbers, refuses the rest."""

import json
import sys

import pytest
import torch
from gamma_mod_training import STEPS, bits, die_after, in_ranks, lines, tiny_settings, weights

import gamma_mod
from gamma_mod.training import stage
from gamma_mod.training.plan import dry_run
from gamma_mod.training.run import run_train
from gamma_mod.training.settings import TrainSettings
from tenfold import UserError
from tenfold.cli import load_config
from tenfold.data import mini_host
from tenfold.runs import launch


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "run"
    run_train(tiny_settings(), 0, folder)
    return folder


def test_a_finished_training_holds_a_model_that_opens_its_record_and_its_curve(whole):
    """Fails if nothing is trained, the threshold is not calibrated, or the report mixes ratio and skip."""
    model, processor = gamma_mod.load(whole / "model", device="cpu")
    start, _ = mini_host.load()
    assert model.gamma_mod.config.layers == gamma_mod.place(
        "arank_mod", mini_host.config().text_config.num_hidden_layers
    )
    assert not torch.equal(model.lm_head.weight, start.lm_head.weight)
    curve = lines(whole)
    assert [row["step"] for row in curve] == list(range(1, STEPS + 1)) and curve[-1]["loss"] < curve[0]["loss"]
    record = json.loads((whole / "run.json").read_text())
    report = json.loads((whole / "skips.json").read_text())
    assert record["metrics"]["steps"] == STEPS and record["verb"] == "train"
    assert report["routing_ratio"] == 0.5 and 0 < report["training_skip"] < 0.5
    assert abs(report["prefill_skip"] - 0.3) < 0.1 and report["prefill_threshold"] > 0.005
    assert processor.tokenizer.pad_token == "<pad>"
    assert f"run `{record['id']}`" in (whole / "model" / "README.md").read_text()


def test_killed_on_progress_it_ends_with_the_same_bits(whole, tmp_path):
    """SIGKILL after a step that no checkpoint holds, in the second epoch. Fails if the order of the data depends on the
    steps before, or if router or optimiser are not taken up."""
    folder = tmp_path / "run"
    assert die_after(5, tiny_settings(), folder)
    assert not (folder / "run.json").exists() and not (folder / "model").exists()
    assert run_train(tiny_settings(), 0, folder, resume=True).resumed == 4
    assert bits(folder) == bits(whole)


def follows(run, one, steps=STEPS):
    """Losses and weights are those of one process.

    Args:
        steps: that agree but for rounding. Behind them a choice between tokens of nearly equal probability may fall
            otherwise: a hundredth in a step's loss, and of the weights a few.
    """
    assert len(lines(run)) == len(lines(one)) == STEPS
    for ours, theirs in zip(lines(run), lines(one), strict=True):
        close = ours["step"] <= steps
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-5 if close else 1e-2)
        assert not close or ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-4)
    ours, theirs = weights(run), weights(one)
    assert ours.keys() == theirs.keys()
    apart = torch.cat([(ours[name].float() - theirs[name].float()).abs().flatten() for name in ours])
    assert apart.mean() < 2e-5  # training moves a weight by 1.3e-3 on average
    assert steps < STEPS or apart.max() < 2e-4


def test_two_ranks_follow_one(tmp_path, whole):
    """Fails if a rank sees another's samples, or if auxiliary losses weigh by the number of ranks."""
    in_ranks(lambda: run_train(tiny_settings(), 0, tmp_path / "run"))
    follows(tmp_path / "run", whole)


@pytest.mark.slow
@pytest.mark.parametrize("zero", ["zero2", "zero3"])
def test_deepspeed_follows_one(zero, tmp_path, whole, monkeypatch):
    """The paper's ZeRO-3, and ZeRO-2: the router is one module, called from every converted layer. ZeRO-3
    rounds otherwise: its first epoch agrees to that. Fails if the router is registered under several names, or if what
    is saved is a rank's share."""
    pytest.importorskip("deepspeed", reason="DeepSpeed is not installed")
    monkeypatch.setattr(sys.modules["deepspeed.comm.torch"], "build_shm_op", lambda: None)
    monkeypatch.setattr(launch, "missing_tools", list)
    in_ranks(lambda: run_train(tiny_settings(stage={"deepspeed": zero}), 0, tmp_path / "run"), deadline=900)
    follows(tmp_path / "run", whole, steps=3 if zero == "zero3" else STEPS)
    routers = [
        gamma_mod.load(run / "model", device="cpu")[0].gamma_mod.router.weight for run in (tmp_path / "run", whole)
    ]
    assert torch.allclose(*routers, atol=2e-4)


def test_layers_by_arank_are_measured_once_and_kept(tmp_path):
    """Fails if ranks are measured after the conversion, or again by a continuation."""
    settings = tiny_settings(conversion={"layers": "arank", "num_dense": 2, "samples": 4}, stage={"epochs": 1})
    run_train(settings, 0, tmp_path / "run")
    found = json.loads((tmp_path / "run" / "arank.json").read_text())
    model, _ = gamma_mod.load(tmp_path / "run" / "model", device="cpu")
    assert model.gamma_mod.config.layers == gamma_mod.select_layers(found["arank"], num_dense=2)


@pytest.mark.parametrize("trainable", ["router", "all"])
def test_what_is_not_trained_stays(trainable, tmp_path, whole):
    """Fails if freezing leaves a parameter out, or if the router is frozen."""
    if trainable == "all":
        run, changed = whole, True
    else:
        run, changed = tmp_path / "run", False
        run_train(tiny_settings(stage={"trainable": "router", "epochs": 1}), 0, run)
    start = mini_host.load()[0].state_dict()
    trained = gamma_mod.load(run / "model", device="cpu")[0].state_dict()
    same = [torch.equal(value, trained[name]) for name, value in start.items()]
    assert all(same) is not changed and len(same) > 50
    fresh = gamma_mod.convert(mini_host.load()[0], "arank_mod", seed=0).gamma_mod.router.weight
    assert not torch.equal(fresh, trained["model.language_model.router.weight"])


@pytest.mark.parametrize(
    ("config", "converted", "parameters", "router", "steps"),
    [
        ("llava-hr-7b", tuple(range(3, 31)), 7_283_917_995, 8_192, 5198),
        ("llava-hr-13b", tuple(range(3, 39)), 13_571_856_555, 10_240, 5198),
        ("llava-1.5-7b", tuple(range(3, 31)), 7_062_910_976, 8_192, 5198),
    ],
)
def test_the_papers_configs_count_what_the_paper_counts(config, converted, parameters, router, steps):
    """Section 5: batch 128 on 8 GPUs, lr 2e-5, warm-up 3 %, no clipping, ZeRO-3, all parameters. Fails if a config or
    the plan says otherwise."""
    settings = load_config(TrainSettings, config)
    dry = dry_run(settings)
    assert (dry.layers, dry.parameters, dry.router) == (converted, parameters, router)
    assert dry.plan.steps == steps and dry.plan.warmup == 156
    stage_settings = settings.stage
    assert stage_settings.batch == 128 == stage_settings.per_device * dry.plan.accumulation * dry.plan.gpus
    assert stage_settings.learning_rate == 2e-5 and stage_settings.deepspeed == "zero3"
    assert settings.optimizer.clip is None and settings.conversion.aux_coefficient == 0.01
    frozen = 303_507_456 if config == "llava-1.5-7b" else 0
    assert dry.trainable == parameters - frozen
    if dry.skip is not None:
        assert round(dry.skip, 3) == 0.378


def test_a_loss_that_is_not_finite_ends_the_training(tmp_path, monkeypatch):
    """One line, with what to change; the last good checkpoint stays. Fails if training goes on."""

    class Breaks(stage.StageTrainer):
        def compute_loss(self, *args, **kwargs):
            loss = super().compute_loss(*args, **kwargs)
            return loss * float("nan") if self.state.global_step == 3 else loss

    monkeypatch.setattr(stage, "StageTrainer", Breaks)
    with pytest.raises(UserError, match=r"the loss is not finite.*step 4"):
        run_train(tiny_settings(), 0, tmp_path / "run")
    assert (tmp_path / "run" / "checkpoint-stage" / "checkpoint-2" / "COMPLETE").exists()
    assert not (tmp_path / "run" / "model").exists() and not (tmp_path / "run" / "run.json").exists()


def test_what_a_training_refuses(whole, tmp_path):
    """Each in one line, before anything is trained."""
    with pytest.raises(UserError, match="holds a finished run"):
        run_train(tiny_settings(), 0, whole)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("x")
    with pytest.raises(UserError, match="not empty"):
        run_train(tiny_settings(), 0, tmp_path / "full")
    with pytest.raises(UserError, match="no such folder"):
        run_train(tiny_settings(data={"folder": str(tmp_path / "no")}), 0, tmp_path / "a")
    with pytest.raises(UserError, match="no data"):
        run_train(tiny_settings(data={"mini": None}), 0, tmp_path / "b")
    with pytest.raises(UserError, match="no such model"):
        run_train(tiny_settings(model={"model": str(tmp_path / "no")}), 0, tmp_path / "c")
    with pytest.raises(UserError, match="already converted"):
        run_train(tiny_settings(model={"model": str(whole / "model")}), 0, tmp_path / "d")
    with pytest.raises(UserError, match="unknown placement"):
        run_train(tiny_settings(conversion={"layers": "middle"}), 0, tmp_path / "e")
    with pytest.raises(UserError, match=r"unknown setting stage\.learning_rat"):
        load_config(TrainSettings, "mini", ["stage.learning_rat=1"])
    with pytest.raises(UserError, match=r"no such CUDA device|torch sees no GPU"):
        run_train(tiny_settings(device="cuda"), 0, tmp_path / "f")


def test_a_continuation_must_agree(tmp_path):
    assert die_after(3, tiny_settings(), tmp_path / "run")
    with pytest.raises(UserError, match=r"begun with another conversion\.routing_ratio, seed"):
        run_train(tiny_settings(conversion={"routing_ratio": 0.34}), 1, tmp_path / "run", resume=True)
