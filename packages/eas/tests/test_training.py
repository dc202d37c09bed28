"""The search and the tuning: the paper's plans, resumed to the bit, ranks that follow one, losses that are numbers."""

import json
import os

import pytest
import torch
from eas_fixtures import IMAGE_IDS, build, plan
from torch import multiprocessing
from typer.testing import CliRunner

from eas.commands.app import app
from eas.result import SearchResult
from eas.skipper import Skipper
from eas.training import run as training
from eas.training.llava import LlavaTrainee
from eas.training.plan import StagePlan, dry_run, stage_plan
from eas.training.settings import SearchSettings, StageSettings, TrainSettings
from eas.training.stages import Kept, Stage
from tenfold import UserError
from tenfold.cli import load_config
from tenfold.cli.verbs import shipped_config
from tenfold.runs import last_complete_checkpoint
from tenfold.runs.ranks import Ranks, ranks

SMALL = [
    "search.steps=5", "tune.steps=5", "search.batch=2", "search.per_device=2", "tune.batch=2", "tune.per_device=2",
    "data.samples=8", "data.max_length=256", "checkpoint_steps=2", "search.idle=2", "search.warmup=1",
    "tune.warmup=1", "adapters.dropout=0.1",
]  # fmt: skip


def config(name, *changes):
    return load_config(TrainSettings, shipped_config("eas", name, "configs"), changes)


class Tiny:
    """Eight questions with a picture for the tiny host, in memory."""

    def __init__(self):
        generator = torch.Generator().manual_seed(0)
        self.ids = torch.randint(10, 60, (8, 24), generator=generator)
        self.ids[:, 2:18] = IMAGE_IDS
        self.pixels = torch.randn(8, 3, 16, 16, generator=generator)

    def __len__(self):
        return 8

    def batch(self, numbers, epoch):
        ids = self.ids[list(numbers)]
        labels = ids.clone()
        for row, number in enumerate(numbers):  # of unequal length, so that a mean of means would show
            labels[row, : -1 - 3 * (number % 2)] = -100
        mask = torch.ones_like(ids)
        return {"input_ids": ids, "labels": labels, "attention_mask": mask, "pixel_values": self.pixels[list(numbers)]}


def stage(group=None, steps=4, per_device=4, batch=4, search=None, kept=None, rate=1e-2, dropout=0.0, log=None):
    model = build("llava")
    skipper = Skipper(plan((1,) if search is None else (), dropout=dropout), both=search is not None, seed=1)
    skipper.attach(model)
    settings = StageSettings(batch=batch, per_device=per_device, learning_rate=rate)
    planned = StagePlan("tune" if search is None else "search", settings, 8, steps, 1, (group or Ranks()).world)
    extra = {} if log is None else {"log": log}
    trainee = LlavaTrainee(model, skipper)
    return Stage(trainee, Tiny(), planned, seed=3, group=group, search=search, removed=2, kept=kept, **extra)


def weights(made):
    return {name: value.detach().clone() for name, value in made.parameters.items()}


@pytest.mark.parametrize("searching", [False, True])
def test_a_stage_that_was_killed_ends_with_the_same_bits(searching, tmp_path):
    """Fails if order, dropout, subnets, preferences or the optimiser's averages are not what they were."""
    search = SearchSettings(idle=2) if searching else None
    whole = stage(steps=6, search=search, dropout=0.1)
    whole.run()
    kept = Kept(tmp_path, 2, 2)

    def die(step, values):
        if step == 5:
            raise KeyboardInterrupt

    first = stage(steps=6, search=search, dropout=0.1, kept=kept, log=die)
    with pytest.raises(KeyboardInterrupt):
        first.run()
    again = stage(steps=6, search=search, dropout=0.1, kept=kept)
    assert again.step == 4
    again.run()
    ours, theirs = weights(again), weights(whole)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    if searching:
        assert torch.equal(again.search.preferences, whole.search.preferences) and whole.search.updates > 1


def test_accumulation_moves_nothing_but_rounding():
    """Fails if a micro-batch's mean is taken instead of the batch's: 4 x 1 = 2 x 2 = 1 x 4."""
    found = []
    for per_device in (4, 2, 1):
        made = stage(per_device=per_device)
        made.run()
        found.append(weights(made))
    for other in found[1:]:
        for name in other:
            torch.testing.assert_close(other[name], found[0][name], atol=1e-4, rtol=1e-3)  # a step is 1e-2


def test_a_loss_that_is_not_finite_ends_the_stage(tmp_path):
    """Fails if training goes on with not a number; the last good checkpoint stays."""
    made = stage(steps=6, kept=Kept(tmp_path, 1, 1))
    taken = made.trainee.loss

    def broken(batch):
        return taken(batch) * (float("nan") if made.step == 3 else 1)

    made.trainee.loss = broken
    with pytest.raises(UserError, match="the loss is nan at step 4: tune"):
        made.run()
    assert last_complete_checkpoint(tmp_path).name == "checkpoint-3"


def test_only_adapters_move():
    """Fails if a weight of the frozen host gets a gradient, or a module that was not at work moves."""
    made = stage(steps=2)
    before = {name: value.clone() for name, value in made.trainee.model.state_dict().items() if "eas_" not in name}
    start = weights(made)
    made.run()
    after = made.trainee.model.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    moved = [name for name, value in weights(made).items() if not torch.equal(value, start[name])]
    assert any(".adapter." in name for name in moved) and any(".pia." in name for name in moved)


PLANS = [
    ("scienceqa-vicuna-7b", 63_451_672, 5_996_560_920, (3980, 3980), (4e-4, 2e-4), 64),
    ("aid20", 61_355_544, 5_994_464_792, (320, 320), (4e-4, 4e-4), 128),
    ("aid50", 61_355_544, 5_994_464_792, (800, 800), (4e-4, 4e-4), 128),
    ("slake", 61_355_544, 5_994_464_792, (390, 1560), (4e-4, 4e-4), 128),
]


@pytest.mark.parametrize(("name", "trained", "total", "steps", "rates", "batch"), PLANS)
def test_the_papers_plans(name, trained, total, steps, rates, batch):
    """Fails if trained parameters, what is left, steps, batch or rates are not the paper's."""
    settings = config(name)
    search, tune = dry_run(settings)
    assert (tune.trainable, tune.total) == (trained, total)
    assert (tune.plan.steps, search.plan.steps) == steps
    assert (tune.plan.settings.learning_rate, search.plan.settings.learning_rate) == rates
    assert tune.plan.settings.batch == search.plan.settings.batch == batch
    assert (
        stage_plan(settings, "tune", settings.data.samples, 4).accumulation * 4 * tune.plan.settings.per_device == batch
    )
    assert settings.adapters.removed == 12 and search.plan.settings.idle < search.plan.steps


def test_the_rate_rises_and_falls():
    """Fails if the schedule is not a linear rise and a cosine (tuning) or a line (search) to zero."""
    cosine = StagePlan("tune", StageSettings(learning_rate=1.0), 8, 100, 10, 1)
    line = StagePlan("search", SearchSettings(learning_rate=1.0), 8, 100, 10, 1)
    assert [round(cosine.rate(step), 4) for step in (0, 5, 10, 55, 100)] == [0, 0.5, 1, 0.5, 0]
    assert [round(line.rate(step), 4) for step in (0, 5, 10, 55, 100)] == [0, 0.5, 1, 0.5, 0]
    assert cosine.rate(20) > line.rate(20)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("train") / "run"
    return folder, training.run_train(config("mini", *SMALL), 0, folder)


def test_train_writes_what_the_next_verbs_take(trained):
    """Fails if search result, adapters or record are missing, or the list is not the search's."""
    folder, done = trained
    result = SearchResult.load(folder / "search.json")
    about = json.loads((folder / "adapters" / "eas.json").read_text())
    assert result == done.search and about["search"] == result.sha256
    assert about["plan"]["skip"] == sorted(result.skip) == done.metrics["tune"]["skip"]
    record = json.loads((folder / "run.json").read_text())
    assert record["metrics"]["search"]["steps"] == 5 and record["data"]["train"]


def test_tune_from_a_search_file(trained, tmp_path):
    """Fails if the list must be pasted anywhere, or the record does not pin the search."""
    folder, done = trained
    made = CliRunner().invoke(
        app,
        ["tune", "--from", str(folder / "search.json"), "--config", "mini", "--output", str(tmp_path / "tune")]
        + [part for change in [*SMALL, "tune.steps=2"] for part in ("--set", change)],
    )
    assert made.exit_code == 0, made.output
    record = json.loads((tmp_path / "tune" / "run.json").read_text())
    assert record["data"]["search"] == f"sha256:{done.search.sha256}"
    assert record["metrics"]["tune"]["skip"] == sorted(done.search.skip)


def test_a_killed_training_goes_on(trained, tmp_path, monkeypatch):
    """Fails if `--resume` does not end with the adapters of the training that was left alone."""
    folder, _ = trained
    target, settings = tmp_path / "run", config("mini", *SMALL)
    taken = Stage._take_step

    def die(self):
        if self.plan.name == "tune" and self.step == 3:
            raise KeyboardInterrupt
        return taken(self)

    monkeypatch.setattr(Stage, "_take_step", die)
    with pytest.raises(KeyboardInterrupt):
        training.run_train(settings, 0, target)
    monkeypatch.setattr(Stage, "_take_step", taken)
    with pytest.raises(UserError, match="not empty"):
        training.run_train(settings, 0, target)
    with pytest.raises(UserError, match=r"begun with another adapters\.pia"):
        training.run_train(config("mini", *SMALL, "adapters.pia=8"), 0, target, resume=True)
    again = training.run_train(settings, 0, target, resume=True)
    assert again.resumed == 5 + 2
    for name in ("adapters/adapters.safetensors", "search.json", "adapters/eas.json"):
        assert (target / name).read_bytes() == (folder / name).read_bytes()


WRONG = [
    (["train", "--config", "nothing"], "no such config"),
    (["train", "--config", "mini", "--set", "adapters.rank=3"], "rank"),
    (["train", "--config", "mini", "--set", "tune.batch=3", "--set", "tune.per_device=2"], "no multiple"),
    (["train", "--config", "mini", "--set", "adapters.removed=99"], "removed 99"),
    (["train", "--config", "mini", "--set", "data.splits=[train]"], "no use for it"),
    (["train", "--host", "blip"], "--host blip"),
    (["tune", "--skip", "meter-vqa-10", "--config", "mini"], "METER's 24 sites"),
    (["train", "--config", "aid20", "--model", "no/where/at/all"], "no such model"),
    (["train", "--config", "mini", "--set", "device=cuda:9"], "no such CUDA device"),
    (["tune", "--config", "mini"], "one skip list"),
    (["tune", "--skip", "llava-what", "--config", "mini"], "unknown skip list"),
    (["tune", "--skip", "1,1", "--config", "mini"], "each once"),
    (["tune", "--from", "/nowhere/search.json", "--config", "mini"], "search.json"),
    (["train", "--resume"], "no folder"),
]


@pytest.mark.parametrize(("command", "told"), WRONG)
def test_what_is_wrong_is_one_line(command, told, tmp_path):
    """Fails if a wrong option is a traceback, or leaves something half-written."""
    output = [] if "--resume" in command else ["--output", str(tmp_path / "run")]
    outcome = CliRunner().invoke(app, [*command, *output])
    error = outcome.exception
    assert isinstance(error, UserError) and told in str(error) and "\n" not in str(error)
    assert not (tmp_path / "run" / "run.json").exists()


def _rank(rank, world, port, folder, searching):
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    with ranks(torch.device("cpu")) as group:
        made = stage(group=group, per_device=4 // world, search=SearchSettings(idle=1) if searching else None)
        made.run()
        preferences = made.search.preferences if searching else torch.zeros(())
        torch.save({"weights": weights(made), "preferences": preferences}, folder / f"{rank}.pt")


@pytest.mark.slow
@pytest.mark.parametrize("searching", [False, True])
def test_two_ranks_follow_one(searching, tmp_path):
    """Fails if ranks do not share batch, subnets, gradients and preferences."""
    alone = stage(search=SearchSettings(idle=1) if searching else None)
    alone.run()
    port = 29511 + searching
    multiprocessing.start_processes(_rank, (2, port, tmp_path, searching), nprocs=2, start_method="spawn")
    one, two = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    expected = weights(alone)
    for name in expected:
        assert torch.equal(one["weights"][name], two["weights"][name])
        torch.testing.assert_close(one["weights"][name], expected[name], atol=5e-5, rtol=1e-3)
    assert torch.equal(one["preferences"], two["preferences"])
