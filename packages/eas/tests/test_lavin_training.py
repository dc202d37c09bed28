"""LaVIN searched, tuned, killed, gone on with and evaluated from the command line; what its loss is of."""

import re
from functools import partial

import pytest
import torch
from lavin_fixtures import base, lavin, scienceqa
from safetensors.torch import load_file, save_file

from eas.checkpoints.lavin import open_lavin, read_lavin_about
from eas.commands.app import main
from eas.data.lavin import LavinSamples, Problem, SentencePiece, target_of
from eas.lavin import Prefixes, answer_loss
from eas.result import SearchResult
from eas.training.lavin import LavinTrainee
from eas.training.plan import stage_plan
from eas.training.run import run_train
from eas.training.settings import TrainSettings
from eas.training.stages import Stage
from tenfold import UserError
from tenfold.cli import load_config
from tenfold.cli.verbs import shipped_config
from tenfold.data.formats.scienceqa import read_scienceqa
from tenfold.runs import read_json
from tenfold.testing import commands, processes

SMALL = [
    "search.steps=11", "search.batch=4", "search.per_device=2", "search.idle=1", "search.warmup=1",
    "search.scored_samples=2", "tune.steps=3", "tune.batch=4", "tune.per_device=2", "tune.warmup=1",
    "adapters.removed=2", "adapters.pia=8", "adapters.adapter=4", "adapters.dropout=0", "data.max_length=192",
    "checkpoint_steps=2", "precision=fp32",
]  # fmt: skip
SETS = [part for change in SMALL for part in ("--set", change)]


@pytest.fixture(scope="module")
def there(tmp_path_factory):
    """The frozen parts and ScienceQA."""
    place = tmp_path_factory.mktemp("lavin")
    return base(place / "parts"), scienceqa(place / "data")


def settings(there, *changes):
    model, data = there
    more = (f"model={model}", f"data.folder={data}", *SMALL, *changes)
    return load_config(TrainSettings, shipped_config("eas", "lavin-scienceqa-7b", "configs"), more)


@pytest.fixture(scope="module")
def trained(there, tmp_path_factory):
    """A search and the tuning of its list, left alone."""
    folder = tmp_path_factory.mktemp("train") / "run"
    return folder, run_train(settings(there), 0, folder)


def test_a_training_that_was_killed_twice_ends_with_the_same_bits(there, trained, tmp_path):
    """The command as typed. Fails if order, subnets, preferences, the optimiser or the tuning's start are others."""
    (model, data), (folder, done) = there, trained
    words = ("train", "--model", str(model), "--data", str(data), "--output", str(tmp_path / "run"), *SETS)

    def die(step, *more):
        processes.die_at(Stage, "_take_step", step)
        commands.run(main, *words, *more)

    # In the search behind its update, and in the tuning: both go on from a step that is not the first.
    assert processes.killed(partial(die, 11)) and processes.killed(partial(die, 4, "--resume"))
    told = commands.run(main, *words, "--resume")
    assert told.code == 0 and "search: 11 steps" in told.out, told
    assert done.resumed == 0 and done.search.updates == 1 and done.search.rule == "lavin"
    for name in ("adapters/model.safetensors", "adapters/lavin.json", "search.json"):
        assert (folder / name).read_bytes() == (tmp_path / "run" / name).read_bytes()
    record = read_json(tmp_path / "run" / "run.json")
    assert set(record["data"]) == {"model", "train", "splits"} and record["metrics"] == done.metrics


def test_two_ranks_follow_one(there, trained, tmp_path):
    """Fails if ranks do not share batch, subnets, held-out questions and gradients, also where one has no picture."""
    processes.in_ranks(lambda: run_train(settings(there), 0, tmp_path / "two"))
    found, expected = SearchResult.load(tmp_path / "two" / "search.json"), trained[1].search
    assert found.skip == expected.skip and found.preferences == pytest.approx(expected.preferences, abs=1e-6)
    two, one = (load_file(place / "adapters" / "model.safetensors") for place in (tmp_path / "two", trained[0]))
    for name in one:
        torch.testing.assert_close(two[name], one[name], atol=5e-5, rtol=1e-3)


def test_what_came_out_is_evaluated_on_the_frozen_parts(there, trained, tmp_path):
    """Fails if adapters alone do not open on their base, their list is not the search's, or no answer comes."""
    model, data = there
    words = ("eval", str(model), "--adapters", str(trained[0] / "adapters"), "--benchmark", "scienceqa")
    told = commands.run(main, *words, "--data", str(data), "--limit", "2", "--output", str(tmp_path / "o"))
    assert told.code == 0, told
    found, metrics = trained[1].search, read_json(tmp_path / "o" / "metrics.json")
    assert metrics["skip"] == sorted(found.skip) and metrics["search"] == found.sha256 and metrics["questions"] == 2
    config, about = read_lavin_about(trained[0] / "adapters")
    assert config.skip == tuple(sorted(found.skip)) and about.host.startswith("sha256:")
    card = (trained[0] / "adapters" / "README.md").read_text()
    assert f"layers {config.skip[0]}, {config.skip[1]} of 4" in card and found.sha256 in card
    names = load_file(trained[0] / "adapters" / "model.safetensors")
    opened = open_lavin(model, adapters=trained[0] / "adapters")[0]
    assert set(names) == {name for name, _ in opened.trained()}
    with pytest.raises(UserError, match="frozen weights alone"):
        open_lavin(model)


def trainee(there, means="all", **changes):
    model, data = there
    tokenizer = SentencePiece(model / "tokenizer.model")
    sizes = {"size": 8, "features": 2, "max_length": 192, "full": means == "all"}
    samples = LavinSamples(read_scienceqa(data, "train"), tokenizer, **sizes)
    none, image = samples.prefixes
    return LavinTrainee(lavin(**changes), Prefixes(image, none), means), samples, tokenizer


def test_the_loss_is_of_the_answers_tokens(there):
    """Fails if a token of the prompt, of the picture or of padding is learnt, or one of the answer is not."""
    made, samples, tokenizer = trainee(there)
    batch = samples.batch((0, 1, 2, 3), 0)
    assert batch.pictures.tolist() == [one.picture is not None for one in samples.samples[:4]] and len(
        set(batch.pictures)
    )
    for row, sample in enumerate(samples.samples[:4]):
        learnt = batch.labels[row][batch.labels[row] != 0].tolist()
        assert learnt[-1] == tokenizer.end and tokenizer.decode(learnt[:-1]).strip() == target_of(Problem.of(sample))
        assert "BECAUSE: On " in tokenizer.decode(learnt)  # the lecture is part of it
    with torch.no_grad():
        sequence, labels = made.model.insert(batch.ids, batch.images, batch.pictures, made.prefixes, batch.labels)
        expected = answer_loss(made.model(sequence), labels) * made.count(batch)
        torch.testing.assert_close(made.loss(batch), expected)
    assert sequence.shape[1] == 192 and made.count(batch) == int((labels != 0).sum())


def test_means_over_the_prompt_see_neither_padding_nor_answers(there):
    """Fails if another row's length or the answer moves a loss, or the authors' means do not take all in."""
    for means, same in (("prompt", True), ("all", False)):
        made, samples, _ = trainee(there, means)
        samples.full = False
        with torch.no_grad():
            together = float(made.loss(samples.batch(range(4), 0)))
            alone = sum(float(made.loss(samples.batch((number,), 0))) for number in range(4))
        assert (abs(together - alone) < 1e-3 * alone) is same


def test_checkpointing_computes_the_same_gradients(there):
    """Fails if a block that is computed again is another formula (the authors' is)."""
    found = []
    for again in (False, True):
        made, samples, _ = trainee(there)
        made.model.checkpointing = again
        made.loss(samples.batch((0, 1), 0)).backward()
        found.append([parameter.grad for _, parameter in made.model.trained()])
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def test_only_what_is_named_moves_and_both_stages_begin_afresh(there, trained, tmp_path):
    """Fails if a frozen weight moves, or a tuning of the search's list is not the one that followed the search."""
    words = ("tune", "--from", str(trained[0] / "search.json"), "--model", str(there[0]), "--data", str(there[1]))
    told = commands.run(main, *words, *SETS, "--output", str(tmp_path / "t"))
    assert told.code == 0, told
    ours, theirs = (load_file(one / "adapters" / "model.safetensors") for one in (tmp_path / "t", trained[0]))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert read_json(tmp_path / "t" / "run.json")["data"]["search"].startswith("sha256:")
    assert any(".pia." in name and "B.weight" in name and bool(value.any()) for name, value in ours.items())


@pytest.mark.parametrize(("size", "counts"), [("7b", (3_781_296, 7_714_128)), ("13b", (5_390_080, 10_305_952))])
def test_the_papers_plan(size, counts):
    """Fails if what is trained, steps, rates, decay or the search's numbers are not the paper's."""
    config = f"lavin-scienceqa-{size}"
    for words, count in zip((("tune", "--skip", "none"), ("train",)), counts, strict=True):
        told = commands.run(main, *words, "--config", config, "--dry-run")
        assert told.code == 0 and f"{count:,}" in re.sub(r"\s", "", told.out), told
    plan = load_config(TrainSettings, shipped_config("eas", config, "configs"))
    search, tune = (stage_plan(plan, stage, plan.data.samples, 2) for stage in plan.stages)
    assert (search.steps, tune.steps) == (3980, 7960) and (search.warmup, tune.warmup) == (796, 796)  # two epochs
    assert plan.tune.learning_rate == plan.search.learning_rate == pytest.approx(9e-3 * 32 / 256)
    assert plan.tune.betas == (0.9, 0.95) and plan.tune.weight_decay == 0.02 and plan.tune.clip is None
    assert tune.accumulation == 4 and plan.search.idle == search.steps // 2
    assert plan.adapters.removed == 12 and plan.search.rule == "lavin" and plan.adapters.means == "all"


REFUSED = [
    (("search", "--set", "data.held_out=train"), "not trained on"),
    (("search", "--set", "adapters.projector=false"), "no use for it"),
    (("tune", "--skip", "llava-what"), "unknown skip list"),
    (("tune", "--skip", "meter-vqa-10"), "METER's 24 sites"),
    (("tune", "--skip", "9"), "a host of 4 sites"),
    (("tune", "--skip", "1", "--host", "meter"), "its folder says so"),
    (("tune", "--skip", "1", "--set", "data.splits=[nowhere]"), "nowhere"),
]


@pytest.mark.parametrize(("words", "told"), REFUSED)
def test_what_does_not_go_together_is_one_line(there, words, told, tmp_path):
    """Fails if a wrong option is a traceback, is silently without effect, or leaves something half-written."""
    model, data = there
    done = commands.run(
        main, words[0], "--model", str(model), "--data", str(data), "--output", str(tmp_path / "n"), *SETS, *words[1:]
    )
    assert done.code == 2 and told in done.err and len(done.err.strip().splitlines()) == 1, done
    assert not (tmp_path / "n" / "run.json").exists()


def test_a_folder_that_skips_is_no_start_of_a_search(there, trained, tmp_path):
    """Fails if a search begins without some attentions."""
    model = tmp_path / "less"
    model.mkdir()
    for file in there[0].iterdir():
        (model / file.name).write_bytes(file.read_bytes())
    weights = load_file(model / "model.safetensors")
    less = {name: one for name, one in weights.items() if "layers.1.attention." not in name}
    save_file(less, model / "model.safetensors")
    with pytest.raises(UserError, match=r"no weight layers\.1\.attention\.wq"):
        run_train(settings((model, there[1]), "stages=[search]"), 0, tmp_path / "n")
