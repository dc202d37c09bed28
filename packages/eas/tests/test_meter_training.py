"""METER searched, tuned, killed, gone on with and evaluated from the command line, in one process and in two."""

import re
from functools import partial

import pytest
import torch
from meter_fixtures import flickr30k, folder, inputs, meter, vqa
from safetensors.torch import load_file

from eas.checkpoints.meter import read_meter_about
from eas.commands.app import main
from eas.data.meter import Encoder, MeterSamples
from eas.result import SearchResult
from eas.training.meter import MeterTrainee
from eas.training.plan import StagePlan, stage_plan
from eas.training.run import run_train
from eas.training.settings import SearchSettings, StageSettings, TrainSettings
from eas.training.stages import Stage
from tenfold.cli import load_config
from tenfold.cli.verbs import shipped_config
from tenfold.runs import read_json
from tenfold.testing import commands, processes

SMALL = [
    "search.steps=11", "search.batch=2", "search.per_device=1", "search.idle=2", "search.warmup=1",
    "search.scored_samples=2", "tune.steps=3", "tune.batch=2", "tune.per_device=1", "tune.warmup=1",
    "search.learning_rate=1e-3", "tune.learning_rate=1e-3", "adapters.removed=4", "data.false_texts=2",
    "checkpoint_steps=2",
]  # fmt: skip
SETS = [part for change in SMALL for part in ("--set", change)]
CONFIGS = {"vqa": "meter-vqav2", "nlvr2": "meter-nlvr2", "irtr": "meter-flickr30k"}


def data(place, task):
    if task == "irtr":
        return flickr30k(place, ("train", "train", "val", "val", "test"))
    vqa(place)
    return vqa(place, "train2014", 10)


def settings(model, data, task, *changes):
    more = (f"model={model}", f"data.folder={data}", *SMALL, *changes)
    return load_config(TrainSettings, shipped_config("eas", CONFIGS[task], "configs"), more)


@pytest.fixture(scope="module")
def there(tmp_path_factory):
    """A folder of METER for VQA, without dropout, and its data."""
    place = tmp_path_factory.mktemp("meter")
    return folder(place, "vqa", dropout=0.0), data(place / "d", "vqa")


@pytest.fixture(scope="module")
def trained(there, tmp_path_factory):
    """A search and the tuning of its list, left alone."""
    place = tmp_path_factory.mktemp("train") / "run"
    return place, run_train(settings(*there, "vqa"), 0, place)


def evaluated(model, benchmark, place, output, split):
    words = ("eval", str(model), "--benchmark", benchmark, "--data", str(place), "--split", split)
    told = commands.run(main, *words, "--output", str(output))
    assert told.code == 0, told
    return read_json(output / "metrics.json")


def test_a_training_that_was_killed_twice_ends_with_the_same_bits(there, trained, tmp_path):
    """The command as typed. Fails if a resumed training is another one, or what came out is no folder to evaluate."""
    (model, place), (whole, done) = there, trained
    words = ("train", "--model", str(model), "--data", str(place), "--output", str(tmp_path / "run"), *SETS)

    def die(step, *more):
        processes.die_at(Stage, "_take_step", step)
        commands.run(main, *words, *more)

    # In the search behind its update, and in the tuning: both go on from a step that is not the first.
    assert processes.killed(partial(die, 11)) and processes.killed(partial(die, 4, "--resume"))
    told = commands.run(main, *words, "--resume")
    assert told.code == 0 and "search.json" in told.out, told
    for name in ("search.json", "model/model.safetensors", "model/meter.json"):
        assert (tmp_path / "run" / name).read_bytes() == (whole / name).read_bytes()
    found = SearchResult.load(tmp_path / "run" / "search.json")
    assert (found.rule, found.sites, found.updates, len(found.skip)) == ("meter", 24, 1, 4) and found == done.search
    config, about = read_meter_about(tmp_path / "run" / "model")
    assert config.skip == found.skip and about.search == found.sha256 and not config.as_released
    assert about.trained_on == ("train2014",)
    metrics = evaluated(tmp_path / "run" / "model", "vqav2", place, tmp_path / "e", "val2014")
    assert metrics["skip"] == list(found.skip)


@pytest.mark.slow
def test_two_ranks_follow_one(there, trained, tmp_path):
    """Fails if ranks search alone, as the authors' do: batch, subnets, scores and gradients are shared."""
    processes.in_ranks(lambda: run_train(settings(*there, "vqa"), 0, tmp_path / "two"))
    two, one = SearchResult.load(tmp_path / "two" / "search.json"), trained[1].search
    assert two.skip == one.skip and two.preferences == pytest.approx(one.preferences, abs=1e-7)
    two, one = (load_file(place / "model" / "model.safetensors") for place in (tmp_path / "two", trained[0]))
    start = load_file(there[0] / "model.safetensors")
    assert any(not torch.equal(start[name], one[name]) for name in one)
    for name in one:
        torch.testing.assert_close(two[name], one[name], atol=5e-5, rtol=1e-3)


def test_retrieval_is_tuned_from_official_files_by_the_authors_sites(tmp_path):
    """Fails if a list's sites, the authors' map or the splits are lost on the way to an evaluation."""
    place, model = data(tmp_path / "d", "irtr"), folder(tmp_path, "irtr")
    sites = ("tune", "--skip", "20,1", "--set", "adapters.as_released=true")
    told = commands.run(
        main, *sites, "--model", str(model), "--data", str(place), *SETS, "--output", str(tmp_path / "tuned")
    )
    assert told.code == 0, told
    config, about = read_meter_about(tmp_path / "tuned" / "model")
    assert (config.skip, config.as_released, about.trained_on) == ((20, 1), True, ("train",))
    metrics = evaluated(tmp_path / "tuned" / "model", "flickr30k", place, tmp_path / "e", "test")
    assert metrics["as_released"] and metrics["removed"] == 2 and "IR@1" in metrics["scores"]


@pytest.mark.parametrize(
    ("config", "trained", "steps", "batch", "rates"),
    [
        ("meter-vqav2", 21_822_513, 8670, 512, (2.5e-5, 50)),
        ("meter-nlvr2", 19_376_378, 3380, 256, (5e-5, 10)),
        ("meter-flickr30k", 14_650_873, 2840, 512, (5e-5, 5)),
    ],
)
def test_the_papers_plans(config, trained, steps, batch, rates):
    """Fails if what is trained, steps, batch, rates or the search's numbers are not the paper's."""
    told = commands.run(main, "train", "--config", config, "--dry-run")
    assert told.code == 0 and re.sub(r"\s", "", told.out).count(f"{trained:,}") == 2, told
    plan = load_config(TrainSettings, shipped_config("eas", config, "configs"))
    assert [stage_plan(plan, name, plan.data.samples, 1).steps for name in plan.stages] == [steps, steps]
    assert plan.search.idle == steps // 10
    for stage in (plan.search, plan.tune):
        assert (stage.batch, stage.learning_rate, stage.head, stage.cross) == (batch, *rates, 5)
        assert (stage.schedule, stage.warmup, stage.betas, stage.weight_decay) == ("linear", 0.1, (0.9, 0.98), 0.01)
    assert plan.adapters.removed == 10 and plan.search.rule == "meter" and plan.data.held_out not in plan.data.splits


class Drawn:
    """Batches of one task, as drawn."""

    def __len__(self):
        return 4

    def batch(self, numbers, epoch):
        generator = torch.Generator().manual_seed(numbers[0])
        return inputs(seed=numbers[0]), torch.rand(3, 3, generator=generator).round()


def test_a_search_moves_preferences_and_a_tuning_the_loss():
    """Fails if nothing is sampled, scored or trained, frozen weights move, or a group has another rate or decay."""
    trainee = MeterTrainee(meter())
    frozen = trainee.model.text_transformer.encoder.layer[0].output.dense.weight
    before = frozen.clone()
    rates = {"learning_rate": 1e-2, "cross": 5, "head": 50, "weight_decay": 0.01, "betas": (0.9, 0.98)}
    search = SearchSettings(batch=1, per_device=1, rule="meter", idle=2, ramp=False, **rates)
    stage = Stage(
        trainee, Drawn(), StagePlan("search", search, 4, 12, 1, 1), seed=0, search=search, removed=4, held_out=Drawn()
    )
    stage.run()
    assert stage.search.updates == 1 and (stage.search.preferences != 0).sum() >= 4
    assert {group["factor"] for group in stage.optimizer.param_groups} == {1.0, 5.0, 50.0}
    decays = {id(one): group["weight_decay"] for group in stage.optimizer.param_groups for one in group["params"]}
    assert all(decays[id(one)] == (0.01 if one.ndim > 1 else 0.0) for one in trainee.parameters.values())
    trainee.set_skip(stage.search.skip())
    losses = []
    plain = StageSettings(batch=1, per_device=1, **rates | {"learning_rate": 1e-3})
    tune = StagePlan("tune", plain, 4, 16, 1, 1)
    Stage(trainee, Drawn(), tune, seed=0, log=lambda step, values: losses.append(values["loss"])).run()
    assert sum(losses[-4:]) < sum(losses[:4]) and torch.equal(frozen, before)


def test_wrong_captions_are_of_other_photographs_and_drawn_anew(tmp_path):
    """Fails if a wrong caption is right, the right one does not come first, or the draw is not the epoch's own."""
    place, model = data(tmp_path / "d", "irtr"), folder(tmp_path, "irtr")
    encoder = Encoder(model, read_meter_about(model)[0])
    samples = MeterSamples("irtr", place, ("train", "val"), encoder, seed=1, false_texts=3)
    assert len(samples) == 8  # each caption
    asked = []
    encoder.texts = lambda texts: asked.append(texts) or (torch.zeros(1), torch.zeros(1))
    for numbers, epoch in (((0, 5), 0), ((5,), 0), ((0, 5), 1)):
        samples.batch(numbers, epoch)
    first, alone, later = asked
    assert first[4:] == alone and later != first and [later[0], later[4]] == [first[0], first[4]]
    owners = {text: one.image_id for one, text in samples.pairs}
    for texts in (first[:4], first[4:]):
        assert all(owners[text] != owners[texts[0]] for text in texts[1:])


REFUSED = [
    (("search", "--set", "data.held_out=train2014"), "not trained on"),
    (("search", "--set", "adapters.adapter=8"), "no use for it"),
    (("search", "--set", "precision=bf16"), "precision=fp32"),
    (("tune",), "one skip list"),
    (("tune", "--skip", "llava-aid-12"), "a decoder's layers"),
    (("tune", "--skip", "24"), "0 to 23"),
]


def test_what_does_not_go_together_is_one_line(tmp_path):
    """Fails if a wrong option is a traceback, is silently without effect, or leaves something half-written."""
    place, model = data(tmp_path / "d", "vqa"), folder(tmp_path, "vqa")
    for words, told in REFUSED:
        base = (words[0], "--model", str(model), "--data", str(place), "--output", str(tmp_path / "n"), *SETS)
        done = commands.run(main, *base, *words[1:])
        assert done.code == 2 and told in done.err and len(done.err.strip().splitlines()) == 1, done
        assert not (tmp_path / "n" / "run.json").exists()
