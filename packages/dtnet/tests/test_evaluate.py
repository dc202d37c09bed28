"""`dtnet eval`: the whole way from files to scores, in one go, in two ranks, and after a kill."""

import json
import os
import shutil
import signal
import zipfile
from pathlib import Path

import h5py
import pytest
import torch
from dtnet_fixtures import fork, in_ranks, write_tiny_data
from typer.testing import CliRunner

from dtnet.beam import beam_search
from dtnet.commands import evaluate as cli_eval
from dtnet.config import DTNetConfig
from dtnet.data.captions import read_captions
from dtnet.data.grid_features import GridFeatures
from dtnet.evaluation import run as evaluate
from dtnet.evaluation.run import PREDICTIONS, run_eval
from dtnet.evaluation.settings import EvalSettings
from dtnet.model import DTNet
from dtnet.vocabulary import Vocabulary
from tenfold import UserError
from tenfold.cli.settings import checked
from tenfold.cli.verify import verify_run
from tenfold.data.formats.coco_captions import read_caption_results, read_karpathy, write_karpathy
from tenfold.metrics.captions.coco import score_captions
from tenfold.runs import RunRecord, read_jsonl

RESULTS = "captions_val_dtnet_results.json"


def write_model(folder, vocabulary, seed, **config):
    sizes = {"d_in": 24, "d_model": 16, "heads": 2, "d_k": 8, "d_v": 8, "d_ff": 16}
    sizes |= {"encoder_layers": 1, "decoder_layers": 1, "max_len": 20, "vocabulary_size": len(vocabulary)}
    model = DTNet(DTNetConfig(**{**sizes, **config}), seed=seed)
    model.vocabulary = vocabulary
    with torch.no_grad():  # untrained, it says the same of every image: what it sees must weigh more
        for weight in (parameter for parameter in model.parameters() if parameter.dim() > 1):
            weight.mul_(8)
    model.save_pretrained(folder)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A folder with `data` (six images in val, four in test) and two models, `model` and `other`."""
    folder = tmp_path_factory.mktemp("world")
    write_tiny_data(folder / "data")
    vocabulary = Vocabulary.load(folder / "data" / "vocabulary.json")
    for seed, name in enumerate(("other", "model")):
        write_model(folder / name, vocabulary, seed)
    return folder


def settings(world, **changes):
    values = {
        "model": (str(world / "model"),),
        "data": str(world / "data"),
        "split": "val",
        "batch": 2,
        "device": "cpu",
    }
    values |= {"metrics": ("bleu", "rouge", "cider"), "tokens": "whitespace", "beams": 3, "max_len": 8}
    return EvalSettings(**{**values, **changes})


@pytest.fixture(scope="module")
def whole(world, tmp_path_factory):
    """One evaluation of val in one go: its folder."""
    folder = tmp_path_factory.mktemp("whole") / "eval"
    run_eval(settings(world), folder)
    return folder


def results(folder):
    """The result files' bytes."""
    return {name: (folder / name).read_bytes() for name in (RESULTS, "per_image.json", "metrics.json")}


def test_captions_are_the_models_and_scores_theirs(world, whole):
    """Fails if captions are given to other images, if the beams are not sorted, or if the scores are of another set."""
    captions = read_caption_results(whole / RESULTS)
    said = read_captions(world / "data" / "dataset_coco.json")
    model = DTNet.from_pretrained(world / "model")
    features = GridFeatures(world / "data" / "grid_features.h5")
    alone = {one: model.caption(features.batch([one]), beam_size=3, max_len=8)[0] for one in said.images("val")}
    assert captions == {one: caption.text for one, caption in alone.items()}
    assert len(set(captions.values())) >= 4
    record = RunRecord.load(whole)
    references = said.references("val")
    assert (
        record.metrics["scores"]
        == score_captions(captions, references, ("bleu", "rouge", "cider"), tokens="whitespace").table
    )
    mean = sum(caption.log_prob for caption in alone.values()) / len(alone)
    assert record.metrics["images"] == 6 and record.metrics["mean_log_prob"] == pytest.approx(mean, abs=1e-4)
    assert set(record.data) == {"model", "features", "captions"}
    rows = json.loads((whole / "per_image.json").read_text())
    assert [row["image_id"] for row in rows] == list(said.images("val"))
    assert all(set(row["scores"]) == set(record.metrics["scores"]) for row in rows)


def test_two_ranks_are_one(world, whole, tmp_path):
    """Fails if an image is captioned twice or not at all, or if ranks mix up each other's captions."""
    in_ranks(lambda: run_eval(settings(world, batch=1), tmp_path / "eval"))
    ours, theirs = _rows(tmp_path / "eval"), _rows(whole)
    assert {one: row["caption"] for one, row in ours.items()} == {one: row["caption"] for one, row in theirs.items()}
    parts = sorted(path.name for path in (tmp_path / "eval" / PREDICTIONS).glob("part-*"))
    assert parts == ["part-0000.jsonl", "part-0001.jsonl"]
    assert sorted(done_in(tmp_path / "eval")) == sorted(theirs)
    assert RunRecord.load(tmp_path / "eval").metrics["scores"] == RunRecord.load(whole).metrics["scores"]


def _rows(folder):
    return {row["image_id"]: row for row in json.loads((folder / "per_image.json").read_text())}


def done_in(folder):
    """Images with a caption in an unfinished evaluation."""
    return [
        one
        for path in (folder / PREDICTIONS).glob("part-*")
        for row in read_jsonl(path)
        for one, _ in row["predictions"]
    ]


def dies_after(batches):
    """A `progress` that ends the process by SIGKILL when so many batches are done."""

    def progress(items, label):
        for number, item in enumerate(items):
            if number == batches:
                os.kill(os.getpid(), signal.SIGKILL)
            yield item

    return progress


@pytest.mark.parametrize("batches", [1, 2])
def test_a_killed_evaluation_goes_on(world, whole, tmp_path, batches):
    """SIGKILL on progress. Fails if captions are made again or lost, or if the end differs from a run in one go."""
    child = fork(lambda: run_eval(settings(world), tmp_path, progress=dies_after(batches)))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert len(done_in(tmp_path)) == 2 * batches and not (tmp_path / "run.json").exists()
    seen = []
    run_eval(settings(world), tmp_path, progress=lambda items, label: seen.extend(items) or seen)
    assert sorted(one for batch in seen for one in batch) == sorted(
        set(_rows(whole)) - set(done_in(tmp_path)[: 2 * batches])
    )
    assert results(tmp_path) == results(whole)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"beams": 2}, "another beams: 3: .*expected 2"),
        ({"max_len": 7}, "another max_len: 8: .*expected 7"),
        ({"model": "other"}, "another model: sha256"),
    ],
)
def test_captions_of_another_search_or_model_are_not_mixed_in(world, tmp_path, changes, message):
    """Fails if the header does not pin model, features and search."""
    stopped = RuntimeError("stopped")

    def progress(items, label):
        yield next(iter(items))
        raise stopped

    with pytest.raises(RuntimeError, match="stopped"):
        run_eval(settings(world), tmp_path, progress=progress)
    assert len(done_in(tmp_path)) == 2
    if "model" in changes:
        changes = {"model": (str(world / changes["model"]),)}
    with pytest.raises(UserError, match=message):
        run_eval(settings(world, **changes), tmp_path)
    assert not (tmp_path / "run.json").exists()


def test_a_finished_evaluation_is_left_alone(world, whole):
    with pytest.raises(UserError, match="holds a finished run"):
        run_eval(settings(world), whole)


def test_limit_takes_the_first_images(world, tmp_path):
    found = run_eval(settings(world, limit=3), tmp_path / "eval")
    assert found.images == 3
    assert list(_rows(tmp_path / "eval")) == list(read_captions(world / "data" / "dataset_coco.json").images("val")[:3])


def test_an_ensemble_averages_log_probabilities(world, tmp_path):
    """Fails if only the first model is asked."""
    found = run_eval(settings(world, model=(str(world / "model"), str(world / "other"))), tmp_path / "eval")
    models = [DTNet.from_pretrained(world / name) for name in ("model", "other")]
    rows = _rows(tmp_path / "eval")
    features = GridFeatures(world / "data" / "grid_features.h5").batch(list(rows))
    with torch.no_grad():
        beams = beam_search(models, features, beam_size=3, max_len=8)
    assert [row["caption"] for row in rows.values()] == models[0].vocabulary.decode_all(beams.tokens[:, 0])
    assert set(RunRecord.load(tmp_path / "eval").data) == {"model-1", "model-2", "features", "captions"}
    assert found.metrics["mean_log_prob"] == pytest.approx(beams.log_probs[:, 0].sum(-1).mean().item(), abs=1e-4)


def test_verify_does_it_again(world, whole):
    """Fails if the record lacks a setting that the captions depend on."""
    verification = verify_run(RunRecord.load(whole), {"eval": evaluate.eval_again}, evaluate.TOLERANCES)
    assert verification.holds and not verification.changes, verification
    assert {one.name for one in verification.comparisons if one.verdict == "equal"} >= {RESULTS, "scores.CIDEr-D"}


def test_annotations_score_like_karpathys_json(world, whole, tmp_path):
    """The official annotation files and lists of ids. Fails if they lead to other images or references."""
    (tmp_path / "data").mkdir()
    shutil.copytree(world / "data" / "annotations", tmp_path / "data" / "annotations")
    features = str(world / "data" / "grid_features.h5")
    run_eval(settings(world, data=str(tmp_path / "data"), features=features), tmp_path / "eval")
    assert RunRecord.load(tmp_path / "eval").metrics["scores"] == pytest.approx(RunRecord.load(whole).metrics["scores"])
    assert "coco_dev_ids.npy" in RunRecord.load(tmp_path / "eval").data


@pytest.fixture
def small_server(monkeypatch):
    """COCO's server with sets of six and four images."""
    monkeypatch.setattr(evaluate, "ONLINE_IMAGES", {"test2014": 6, "val2014": 4})


def write_online_lists(folder, world):
    """The lists of both sets: val's images as test2014, test's as val2014."""
    (folder / "annotations").mkdir(parents=True)
    captions = read_captions(world / "data" / "dataset_coco.json")
    for name, split in (("image_info_test2014.json", "val"), ("captions_val2014.json", "test")):
        images = [{"id": one, "file_name": f"{one}.jpg"} for one in captions.images(split)]
        (folder / "annotations" / name).write_text(json.dumps({"images": images}))


def test_results_for_cocos_server(world, whole, small_server, tmp_path):
    """Fails if names, layout or the zip are not what the server takes."""
    write_online_lists(tmp_path / "data", world)
    changes = {"data": str(tmp_path / "data"), "features": str(world / "data" / "grid_features.h5")}
    run_eval(settings(world, online="test2014", **changes), tmp_path / "test")
    first = tmp_path / "test" / "captions_test2014_dtnet_results.json"
    assert json.loads(first.read_text()) == json.loads((whole / RESULTS).read_text())
    found = run_eval(settings(world, online="val2014", other_results=str(first), **changes), tmp_path / "val")
    assert found.scores is None
    with zipfile.ZipFile(tmp_path / "val" / "captions_dtnet_results.zip") as archive:
        names = ["captions_test2014_dtnet_results.json", "captions_val2014_dtnet_results.json"]
        assert sorted(archive.namelist()) == names
        assert [len(json.loads(archive.read(name))) for name in names] == [6, 4]


def test_an_incomplete_set_is_refused_before_the_first_caption(world, tmp_path):
    """50 images of features, where test2014 has 40,775. Fails if the count is checked after hours of captioning."""
    with pytest.raises(UserError, match=r"50 images of test2014.*expected 40,775"):
        run_eval(settings(world, online="test2014"), tmp_path / "eval")
    assert not (tmp_path / "eval").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"metrics": ("bert",)}, "unknown metric bert"),
        ({"model": ("nowhere",)}, "no such folder: nowhere"),
        ({"data": "nowhere"}, "no such folder: nowhere"),
        ({"features": "nowhere.h5"}, "no such file: nowhere.h5"),
        ({"captions": "nowhere.json"}, "no such file: nowhere.json"),
        ({"spice": "nowhere"}, "nowhere lacks stanford-corenlp-3.6.0.jar"),
        ({"max_len": 21}, "max_len 21"),
    ],
)
def test_what_cannot_be_evaluated_is_refused(world, tmp_path, changes, message):
    """Fails if a wrong path or option leaves a folder behind, or is found after the first caption."""
    given = {**changes, **({"metrics": ("spice", "cider")} if "spice" in changes else {})}
    with pytest.raises(UserError, match=message):
        run_eval(settings(world, **given), tmp_path / "eval")
    assert not (tmp_path / "eval" / "run.json").exists() and not done_in(tmp_path / "eval")


def test_files_that_do_not_fit_are_refused(world, tmp_path):
    """Truncated features, missing images, another width, a model without words, an ensemble of two vocabularies."""
    features = world / "data" / "grid_features.h5"
    torn = tmp_path / "torn.h5"
    torn.write_bytes(features.read_bytes()[: features.stat().st_size // 2])
    refused(settings(world, features=str(torn)), tmp_path, "cannot read|broken features")

    images = read_karpathy(world / "data" / "dataset_coco.json")
    lacking = next(one for one in images if one.split == "val").image_id
    some = tmp_path / "some.h5"
    shutil.copyfile(features, some)
    with h5py.File(some, "a") as file:
        del file[f"{lacking}_grids"]
    refused(settings(world, features=str(some)), tmp_path, f"no features of 1 images, the first is {lacking}")

    vocabulary = Vocabulary.load(world / "data" / "vocabulary.json")
    write_model(tmp_path / "wide", vocabulary, 0, d_in=32)
    refused(settings(world, model=(str(tmp_path / "wide"),)), tmp_path, "features of 24 channels.*expected 32")
    refused(settings(world, model=(str(world / "model"), str(tmp_path / "wide"))), tmp_path, "takes other features")
    write_model(tmp_path / "words", Vocabulary([*vocabulary.words[:-2], *vocabulary.words[-2:][::-1]]), 0)
    refused(settings(world, model=(str(world / "model"), str(tmp_path / "words"))), tmp_path, "another vocabulary")
    (tmp_path / "words" / "vocabulary.json").unlink()
    refused(settings(world, model=(str(tmp_path / "words"),)), tmp_path, "a model without a vocabulary")

    write_karpathy(tmp_path / "train.json", [one for one in images if one.split == "train"])
    refused(settings(world, captions=str(tmp_path / "train.json")), tmp_path, "no images: split val")
    shutil.copytree(world / "data", tmp_path / "two")
    shutil.copyfile(features, tmp_path / "two" / "more.h5")
    refused(settings(world, data=str(tmp_path / "two")), tmp_path, "2 files of features")


def refused(chosen, tmp_path, message):
    with pytest.raises(UserError, match=message):
        run_eval(chosen, tmp_path / "eval")
    assert not (tmp_path / "eval").exists()


def test_settings_that_contradict_each_other_are_refused():
    for changes, message in (
        ({"online": "test2014", "limit": 5}, "no --limit"),
        ({"other_results": "x.json"}, "goes with --online"),
        ({"model": ()}, "model"),
        ({"beams": 0}, "beams: 0"),
        ({"device": "gpu"}, "device: 'gpu'"),
    ):
        with pytest.raises(UserError, match=message):
            checked(EvalSettings, {"model": ("m",), **changes})


def test_the_command(world, tmp_path, monkeypatch):
    """Options reach the evaluation; the data set that was drawn beside the model is found. Fails if a path is not made
    absolute: the record could not be verified from elsewhere."""
    import typer

    app = typer.Typer()
    app.command(epilog=cli_eval.EPILOG)(cli_eval.evaluate)
    monkeypatch.chdir(world)
    options = ["--split", "val", "--metrics", "cider", "--tokens", "whitespace", "--beam-size", "3", "--max-len", "8"]
    done = CliRunner().invoke(app, ["model", *options, "--device", "cpu", "--output", str(tmp_path / "eval")])
    assert done.exit_code == 0, done.output
    assert "CIDEr-D" in done.output and "6 images of val" in done.output
    config = RunRecord.load(tmp_path / "eval").config
    assert config["model"] == [str(world / "model")] and config["beams"] == 3
    assert Path(config["model"][0]).is_absolute()


def test_help_shows_the_expected_tree():
    import typer

    app = typer.Typer(rich_markup_mode="rich")
    app.command(epilog=cli_eval.EPILOG)(cli_eval.evaluate)
    text = CliRunner().invoke(app, ["--help"], env={"COLUMNS": "200", "TERM": "dumb"}).output
    for name in ("dataset_coco.json", "coco_{train,restval,dev,test}_ids.npy", "_grids", "image_info_test2014.json"):
        assert name in text, text
