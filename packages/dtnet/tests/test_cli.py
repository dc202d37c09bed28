"""The command: what its verbs do, and what it says when something is wrong."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
import yaml
from dtnet_fixtures import STEPS, die_after, tiny_settings, weights, write_tiny_data
from PIL import Image

from dtnet.commands.app import main
from dtnet.data.grid_features import GridFeatures
from dtnet.data.mini import write_mini_coco
from dtnet.model import DTNet
from tenfold.data.miniworld import render, scene
from tenfold.runs import RunRecord


@pytest.fixture
def dtnet(capsys, monkeypatch):
    """Run the command in this process; its exit code, output and errors."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["dtnet", *map(str, arguments)])
        with pytest.raises(SystemExit) as exit:
            main()
        output = capsys.readouterr()
        return exit.value.code or 0, output.out, output.err

    return run


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_tiny_data(tmp_path_factory.mktemp("data") / "mini")


@pytest.fixture(scope="module")
def config(data, tmp_path_factory) -> Path:
    """A config file of a training that takes a second."""
    path = tmp_path_factory.mktemp("config") / "tiny.yaml"
    path.write_text(yaml.safe_dump(tiny_settings(data).model_dump(mode="json")))
    return path


@pytest.fixture(scope="module")
def trained(config, tmp_path_factory) -> Path:
    """The folder of a finished `dtnet train`."""
    folder = tmp_path_factory.mktemp("train") / "run"
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(sys, "argv", ["dtnet", "train", "--config", str(config), "--output", str(folder)])
        with pytest.raises(SystemExit) as exit:
            main()
    assert not exit.value.code
    return folder


def one_line(error: str) -> str:
    """What a refusal says: one line."""
    lines = [line for line in error.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and "Traceback" not in error
    return lines[0]


def test_the_dry_run_prints_the_plan_of_the_paper(dtnet, tmp_path, monkeypatch):
    """Fails if a number of section 5 is another one, or the plan needs data or writes a folder."""
    monkeypatch.chdir(tmp_path)
    code, out, _ = dtnet("train", "--config", "coco", "--dry-run")
    assert code == 0 and list(tmp_path.iterdir()) == []
    for number in (
        "36,179,384",
        "36,151,224",
        "10,201",
        "566,747",
        "11,334",
        "113,287",
        "5,665",
        "20 images x 5 beams",
    ):
        assert number in out, number
    for epochs, rate in (("0", "2.5e-05"), ("3-9", "0.0001"), ("25", "5e-06"), ("26-40", "5e-06"), ("56-60", "5e-08")):
        assert any(epochs in line.split() and rate in line.split() for line in out.splitlines()), (epochs, rate)


def test_the_dry_run_counts_the_data_that_it_is_given(dtnet, data):
    """Fails if --data or --stages is passed by."""
    code, out, _ = dtnet("train", "--config", "mini", "--data", data, "--stages", "scst", "--dry-run")
    assert code == 0 and "40 images" in out and "counted in the data" in out and "captions" not in out
    code, out, _ = dtnet("train", "--config", "mini", "--dry-run")
    assert code == 0 and "20,000 captions" in out and "4,000 images" in out


def test_train_writes_a_model_its_record_and_its_curve(trained):
    record = RunRecord.load(trained)
    assert record.verb == "train" and record.metrics["steps"] == STEPS
    assert DTNet.from_pretrained(trained / "model").config.d_model == 16


def test_train_goes_on_where_it_was_killed(dtnet, config, data, trained, tmp_path):
    """Fails if --resume begins at nothing, or a folder with checkpoints is gone on with unasked."""
    folder = tmp_path / "run"
    assert die_after(7, tiny_settings(data), folder)
    code, _, error = dtnet("train", "--config", config, "--output", folder)
    assert code == 2 and "--resume" in one_line(error)
    code, _, error = dtnet("train", "--config", config, "--output", folder, "--resume", "--set", "xe.batch=4")
    assert code == 2 and "xe.batch=8" in one_line(error)
    code, out, _ = dtnet("train", "--config", config, "--output", folder, "--resume")
    assert code == 0 and f"wrote {folder / 'model'}" in out
    assert weights(folder) == weights(trained)


def test_caption_prints_captions_their_log_probability_and_their_paths(dtnet, trained, data, tmp_path):
    """Fails if the command searches otherwise than the model does, or an image otherwise than its features."""
    model = DTNet.from_pretrained(trained / "model")
    features = GridFeatures(data / "grid_features.h5")
    first, second = features.ids()[:2]
    expected = model.caption(features.batch([first, second]), beam_size=3, max_len=6)
    options = ("caption", "--model", trained, "--beams", 3, "--max-len", 6)
    chosen = ("--features", data / "grid_features.h5", "--image-id", first, "--image-id", second)
    code, out, _ = dtnet(*options, *chosen, "--paths")
    assert code == 0
    for image_id, caption in zip((first, second), expected, strict=True):
        assert f"{image_id}: {caption.text} (log-probability {caption.log_prob:.2f})" in out
    assert "LMC" in out and "CPC" in out
    weights = [float(word) for line in out.splitlines() for word in line.split("│") if word.strip().startswith("0.")]
    assert len(weights) == 2 * 5 and sum(weights) == pytest.approx(4, abs=0.01)  # 3 spatial cells, 2 channel cells

    picture = tmp_path / "scene.png"
    render(scene(0, 0), 56).save(picture)
    (by_image,) = model.caption([Image.open(picture)], beam_size=3, max_len=6)
    code, out, _ = dtnet(*options, "--image", picture)
    assert code == 0 and out == f"{picture}: {by_image.text} (log-probability {by_image.log_prob:.2f})\n"


def test_extract_makes_the_features_that_training_reads(dtnet, tmp_path):
    """Fails if a picture and the drawn data set give different features."""
    write_mini_coco(tmp_path / "world", 0, 3, 1, 1, images=True)
    out = tmp_path / "features.h5"
    code, printed, _ = dtnet("extract", "--images", tmp_path / "world" / "images", "--out", out, "--extractor", "mini")
    assert code == 0 and "5 images" in printed
    ours, theirs = GridFeatures(out), GridFeatures(tmp_path / "world" / "grid_features.h5")
    assert ours.ids() == theirs.ids() and all(torch.equal(ours[i], theirs[i]) for i in ours.ids())


def test_convert_writes_the_official_layout_and_reads_it_back(dtnet, trained, tmp_path):
    """Fails if a weight is lost on the way."""
    official, back = tmp_path / "dtnet_best.pth", tmp_path / "back"
    assert dtnet("convert", trained / "model", official, "--to", "official")[0] == 0
    words = trained / "model" / "vocabulary.json"
    assert dtnet("convert", official, back, "--vocabulary", words)[0] == 0
    ours, theirs = (DTNet.from_pretrained(folder).state_dict() for folder in (trained / "model", back))
    assert ours.keys() == theirs.keys()
    unused = [name for name in ours if not torch.equal(ours[name], theirs[name])]
    assert unused == []


def test_verify_trains_again_and_finds_the_same_bits(dtnet, trained):
    """Fails if a training cannot be done again from its record."""
    code, out, error = dtnet("verify", trained)
    assert code == 0 and "It holds." in out, (out, error)
    assert "model/model.safetensors" in out and "differs" not in out


BROKEN = {
    "unknown config": (["train", "--config", "nano", "--dry-run"], "coco, mini"),
    "unknown key": (["train", "--set", "xe.bach=3", "--dry-run"], "unknown setting xe.bach"),
    "wrong value": (["train", "--set", "xe.batch=many", "--dry-run"], "xe.batch"),
    "wrong stages": (["train", "--stages", "scst,xe", "--dry-run"], "xe, scst, or xe,scst"),
    "no data": (["train", "--config", "coco", "--output", "{tmp}/run"], "--data"),
    "empty data": (["train", "--config", "coco", "--data", "{tmp}", "--output", "{tmp}/run"], "no such file"),
    "broken json": (["train", "--data", "{broken}", "--output", "{tmp}/run"], "broken JSON"),
    "resume nowhere": (["train", "--resume"], "--output"),
    "too few captions": (
        ["train", "--data", "{data}", "--set", "xe.batch=999", "--output", "{tmp}/run"],
        "at least one batch of 999",
    ),
    "no model": (["caption", "--model", "{tmp}/none", "--image", "a.png"], "no such folder"),
    "no image": (["caption", "--model", "{model}", "--image", "{tmp}/none.png"], "no such image"),
    "not an image": (["caption", "--model", "{model}", "--image", "{broken}/dataset_coco.json"], "broken image"),
    "nothing to caption": (["caption", "--model", "{model}"], "--image FILE"),
    "unknown image": (
        ["caption", "--model", "{model}", "--features", "{data}/grid_features.h5", "--image-id", "999999"],
        "no features of image 999999",
    ),
    "no device": (["caption", "--model", "{model}", "--image", "a.png", "--device", "gpu"], "cuda:N"),
    "no images": (["extract", "--images", "{tmp}/none", "--out", "{tmp}/f.h5", "--extractor", "mini"], "{tmp}/none"),
    "unknown extractor": (
        ["extract", "--images", "{data}", "--out", "{tmp}/f.h5", "--extractor", "vit"],
        "mini or backbone",
    ),
    "not a checkpoint": (["convert", "{broken}/dataset_coco.json", "{tmp}/out"], "{broken}/dataset_coco.json"),
    "unknown format": (["convert", "{model}", "{tmp}/out", "--to", "onnx"], "dtnet or official"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_what_is_wrong_is_said_in_one_line(case, dtnet, trained, data, tmp_path):
    """Exit code 2, nothing half-written. Fails if an error shows a traceback or leaves a file."""
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "dataset_coco.json").write_text('{"images": [')
    places = {"tmp": tmp_path, "data": data, "model": trained / "model", "broken": broken}
    arguments, expected = BROKEN[case]
    code, _, error = dtnet(*(argument.format(**places) for argument in arguments))
    assert code == 2 and expected.format(**places) in one_line(error)
    assert [path.name for path in tmp_path.iterdir()] == ["broken"]
