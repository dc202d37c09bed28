"""Training: its plan, its steps, what it leaves alone, and how it goes on."""

import json

import pytest
import torch

from dyvte import LabelRule, load_gates
from dyvte.data.samples import drawn, epoch_order, mini_samples, single_rounds
from dyvte.gates import GateConfig
from dyvte.training import run as training
from dyvte.training.batches import exit_layers, samples_of
from dyvte.training.plan import plan
from dyvte.training.settings import TrainSettings
from tenfold import UserError
from tenfold.cli.config import load_config
from tenfold.cli.settings import HostSettings
from tenfold.data.formats import LlavaInstructSample, Picture
from tenfold.data.formats.llava_instruct import Turn
from tenfold.hosts.loading import load_host
from tenfold.testing.processes import in_ranks

SMALL = {"limit": 12, "batch": 6, "width": 8, "steps": 6, "rate": 1e-3, "checkpoint_steps": 2, "device": "cpu"}


@pytest.fixture(scope="module")
def host():
    return load_host(HostSettings(device="cpu"))


def settings(**changes):
    return TrainSettings(**{**SMALL, **changes})


def weights(folder):
    return load_gates(folder / "gates").state_dict()


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_the_published_plan_is_the_sheet():
    """About 6.65 k samples of batch 128: 52 steps, 1 to 2 updates a gate; 537,001,984 trainable parameters."""
    found = plan(load_config(TrainSettings, "llava-1.5-7b"), 6653, GateConfig(32, 4096), 7_062_902_784)
    assert (found.steps, found.batch, found.warmup, found.rate, found.trainable) == (52, 128, 2, 4e-5, 537_001_984)
    assert found.updates == 1.625 and any("7,599,904,768" in line for line in found.lines())
    larger = load_config(TrainSettings, "llava-1.5-13b")
    assert larger.rate == 6e-5 and plan(larger, 6653, GateConfig(40, 5120), 1).trainable == 839_024_640


def test_the_schedule_warms_up_and_follows_half_a_cosine():
    found = plan(settings(steps=100, warmup=0.1), 12, GateConfig(2, 8, 4), 1)
    shares = [found.schedule(step) for step in range(100)]
    assert shares[0] == 0 and shares[10] == 1.0 and shares[55] == pytest.approx(0.5) and shares[99] < 0.001


def test_settings_agree_with_the_rule_and_the_configs():
    """The command line reads its defaults without torch: they are written twice."""
    given, rule = TrainSettings(), LabelRule()
    assert (given.agreement, given.ratio, given.slack) == (rule.agreement, rule.ratio, rule.slack)
    assert given.rate == 4e-5 and given.batch == 128 and given.width == 2048 and given.clip == 1.0


def test_layers_and_samples_of_a_step_are_a_function_of_seed_and_step():
    """Every rank draws the same layer; an epoch goes through every sample once."""
    one = settings()
    layers = [exit_layers(step, one, 3, 6) for step in range(200)]
    assert layers == [exit_layers(step, one, 3, 6) for step in range(200)]
    assert {k for (k,) in layers} == set(range(6))
    assert exit_layers(0, settings(layers_a_step="all"), 3, 6) == list(range(6))
    assert sorted(samples_of(0, 10, 4, 1) + samples_of(1, 10, 4, 1) + samples_of(2, 10, 4, 1)) == list(range(10))
    assert samples_of(3, 10, 4, 1) == epoch_order(10, 1, 1)[:4] != epoch_order(10, 1, 0)[:4]


def test_only_the_drawn_gate_moves(host, tmp_path):
    """Fails if a missing gradient is turned into zero: AdamW's momentum would move gates that were not drawn."""
    one = settings(steps=4, checkpoint_steps=1)
    seen = []

    def look(self, step):
        before = {name: value.clone() for name, value in self.gates.state_dict().items()}
        original(self, step)
        moved = {
            name.split(".")[1]
            for name, value in self.gates.state_dict().items()
            if not torch.equal(value, before[name])
        }
        seen.append((exit_layers(step, one, 0, len(self.gates)), moved))

    original = training.Training._train
    training.Training._train = look
    try:
        training.run_train(one, 0, tmp_path / "run", host)
    finally:
        training.Training._train = original
    assert all(moved <= {str(k) for k in layers} for layers, moved in seen)
    assert any(moved for _, moved in seen[1:])  # the first step warms up at rate 0


@pytest.mark.parametrize("offline", [False, True])
def test_a_killed_training_goes_on_with_the_same_bits(host, tmp_path, monkeypatch, offline):
    """Killed at step 3 and inside the checkpoint of step 4. Fails if any state is not kept."""
    whole = training.run_train(settings(offline=offline), 0, tmp_path / "whole", host)
    assert whole.resumed == 0
    original = training.Training._train

    def die(self, step):
        if step == 3:
            raise KeyboardInterrupt
        original(self, step)

    monkeypatch.setattr(training.Training, "_train", die)
    with pytest.raises(KeyboardInterrupt):
        training.run_train(settings(offline=offline), 0, tmp_path / "broken", host)
    monkeypatch.setattr(training.Training, "_train", original)
    save = training.Training._save

    def torn(self, folder):
        save(self, folder)
        if self.step == 4:
            raise KeyboardInterrupt

    monkeypatch.setattr(training.Training, "_save", torn)
    with pytest.raises(KeyboardInterrupt):
        training.run_train(settings(offline=offline), 0, tmp_path / "broken", host)
    monkeypatch.setattr(training.Training, "_save", save)
    resumed = training.run_train(settings(offline=offline), 0, tmp_path / "broken", host)
    assert resumed.resumed == 2
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "broken"))
    assert whole.metrics["loss"] == resumed.metrics["loss"]


def test_mined_labels_train_the_same_gates(host, tmp_path):
    """Offline and online see the same samples, layers and labels."""
    for offline in (False, True):
        training.run_train(settings(offline=offline), 0, tmp_path / str(offline), host)
    online, offline = weights(tmp_path / "False"), weights(tmp_path / "True")
    for name in online:
        torch.testing.assert_close(online[name], offline[name], atol=1e-5, rtol=1e-4)


def test_another_seed_or_setting_does_not_go_on(host, tmp_path, monkeypatch):
    monkeypatch.setattr(training.Training, "run", lambda self: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        training.run_train(settings(), 0, tmp_path / "run", host)
    with pytest.raises(UserError, match="begun with another seed"):
        training.run_train(settings(), 1, tmp_path / "run", host)
    with pytest.raises(UserError, match="begun with another width"):
        training.run_train(settings(width=9), 0, tmp_path / "run", host)


def test_a_loss_that_is_not_finite_ends_the_training(host, tmp_path, monkeypatch):
    """One line with step and layer; no gates are written."""
    monkeypatch.setattr(training, "gate_loss", lambda logits, labels: logits.sum() * torch.nan)
    with pytest.raises(UserError, match=r"not finite.*step 1"):
        training.run_train(settings(), 0, tmp_path / "run", host)
    assert not (tmp_path / "run" / "gates").exists()


def test_a_finished_run_and_a_foreign_folder_are_refused(host, tmp_path):
    training.run_train(settings(steps=1), 0, tmp_path / "run", host)
    with pytest.raises(UserError, match="holds a finished run"):
        training.run_train(settings(steps=1), 0, tmp_path / "run", host)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep")
    with pytest.raises(UserError, match="not empty"):
        training.run_train(settings(steps=1), 0, tmp_path / "mine", host)
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["notes.txt"]


def test_training_goes_on_from_given_gates_of_the_same_shape(host, tmp_path):
    training.run_train(settings(steps=1), 0, tmp_path / "first", host)
    more = training.run_train(settings(steps=2, start=str(tmp_path / "first" / "gates")), 1, tmp_path / "more", host)
    assert more.metrics["steps"] == 2
    with pytest.raises(UserError, match="gates GateConfig"):
        training.run_train(settings(width=4, start=str(tmp_path / "first" / "gates")), 1, tmp_path / "other", host)


def turns(*texts):
    return tuple(Turn("human" if i % 2 == 0 else "gpt", text) for i, text in enumerate(texts))


def test_rounds_are_kept_cut_or_split_by_name():
    from PIL import Image

    picture = Picture(Image.new("RGB", (4, 4)))
    records = [
        LlavaInstructSample("one", turns("<image>\nWhat?", "Books"), "a.jpg", picture),
        LlavaInstructSample("two", turns("<image>\nWhat?", "Cats", "Where?", "Here"), "b.jpg", picture),
        LlavaInstructSample("text", turns("What?", "Nothing")),
    ]
    assert [s.id for s in single_rounds(records, "single")] == ["one"]
    assert [(s.id, s.answer) for s in single_rounds(records, "first")] == [("one", "Books"), ("two", "Cats")]
    assert [(s.id, s.question) for s in single_rounds(records, "split")] == [
        ("one#0", "What?"),
        ("two#0", "What?"),
        ("two#1", "Where?"),
    ]


def test_a_share_is_drawn_by_the_seed_in_the_files_order():
    samples = mini_samples(0, 40)
    some = drawn(samples, 0.25, 1)
    assert len(some) == 10 and [samples.index(s) for s in some] == sorted(samples.index(s) for s in some)
    assert some == drawn(samples, 0.25, 1) != drawn(samples, 0.25, 2)


def test_no_samples_for_a_real_host_is_one_line():
    from tenfold.cli.settings import checked

    with pytest.raises(UserError, match="samples"):
        checked(TrainSettings, {"model": "llava-hf/llava-1.5-7b-hf"})


def test_two_ranks_follow_one(tmp_path):
    """Gloo, equal global batch: the same steps; sums in another order differ in their last bits only."""
    one = settings(steps=4, layers_a_step="all")
    in_ranks(lambda: training.run_train(one, 0, tmp_path / "one"), 1)
    in_ranks(lambda: training.run_train(one, 0, tmp_path / "two"), 2)
    alone, together = weights(tmp_path / "one"), weights(tmp_path / "two")
    for name in alone:
        torch.testing.assert_close(alone[name], together[name], atol=2e-5, rtol=1e-3)
    records = [json.loads((tmp_path / name / "run.json").read_text())["metrics"] for name in ("one", "two")]
    assert [record["ranks"] for record in records] == [1, 2]
    assert records[0]["loss"] == pytest.approx(records[1]["loss"], abs=1e-4)
