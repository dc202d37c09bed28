"""The command as a user types it: what its verbs do, and what they say when something is wrong."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from inst_diff_edit.commands.app import main
from inst_diff_edit.data import scenes
from inst_diff_edit.evaluation.run import write_mini_set
from inst_diff_edit.evidence import speed
from inst_diff_edit.miniature import model as mini
from tenfold.runs import RunRecord, fingerprint


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "mini"
    mini.build(0).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def picture(tmp_path_factory):
    path = tmp_path_factory.mktemp("pictures") / "scene.png"
    scenes.edit(0, 0).picture(64).save(path)
    return path


@pytest.fixture
def command(capsys, monkeypatch, model, tmp_path):
    """Run the command in this process, in an empty folder; its exit code, output and errors."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr(mini, "path", lambda: model)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["inst-diff-edit", *map(str, arguments)])
        with pytest.raises(SystemExit) as exit:
            main()
        output = capsys.readouterr()
        return exit.value.code or 0, output.out, output.err

    return run


def refused(command, *arguments):
    """The one line of a refusal: exit code 2, and nothing written."""
    code, _, error = command(*arguments)
    lines = [line for line in error.splitlines() if line.startswith("error: ")]
    assert code == 2 and len(lines) == 1 and "Traceback" not in error, error
    assert not [path for path in Path.cwd().rglob("*") if path.is_file()]
    return lines[0]


def test_edit_writes_the_edit_its_mask_and_its_record(command, picture):
    """And verify does it again bit for bit. Fails if the record lacks an option that the edit depends on."""
    code, out, err = command("edit", picture, "--to", "a red ring", "--output", "run", "--set", "steps=4")
    assert code == 0, err
    names = {path.name for path in Path("run").iterdir()}
    assert names == {"edited.png", "mask.png", "overlay.png", "steps.png", "run.json"}
    assert '"a red ring"' in out and "after 2 steps" in out
    assert Image.open("run/edited.png").size == (32, 32)
    record = RunRecord.load("run")
    assert record.metrics["prompt"] == "a red ring" and set(record.data) == {"model", "image"}
    code, out, _ = command("verify", "run")
    assert code == 0 and "compared bit for bit" in out


def test_demo_edits_a_scene_of_its_own(command):
    code, out, err = command("demo")
    assert code == 0, err
    assert (Path("runs") / "inst-diff-edit-demo-1" / "overlay.png").is_file() and "after 25 steps" in out


def test_train_writes_a_model_that_edits(command, picture):
    """And is verified bit for bit, its tokenizer too. Fails if the vocabulary is another in every training."""
    code, out, err = command("train", "--steps", 2, "--batch", 2, "--output", "run")
    assert code == 0 and "wrote run/model" in out, err
    record = RunRecord.load("run")
    assert (
        record.data == {"tokenizer": fingerprint(mini.TOKENIZER)} and "model/tokenizer/tokenizer.json" in record.outputs
    )
    code, out, err = command("verify", "run")
    assert code == 0 and "compared bit for bit" in out, err
    code, _, err = command(
        "edit", picture, "--to", "a ring", "--model", "run/model", "--set", "steps=4", "--output", "edit"
    )
    assert code == 0, err


def test_a_plan_of_the_training_is_printed_and_nothing_is_done(command):
    """Fails if `--dry-run` trains, or loses an option."""
    code, out, err = command("train", "--config", "mini", "--dry-run", "--steps", 7, "--batch", 3, "--seed", 5)
    assert code == 0 and not list(Path.cwd().rglob("*")), err
    rows = dict(line.rsplit(maxsplit=1) for line in out.splitlines())
    assert (rows["steps"], rows["batch"], rows["seed"]) == ("7", "3", "5")
    pipe = mini.build(0)
    weights = [*pipe.unet.parameters(), *pipe.text_encoder.parameters()]
    assert rows["parameters"] == f"{sum(p.numel() for p in weights):,}"
    assert rows["trainable"] == f"{sum(p.numel() for p in weights if p.requires_grad):,}"


def test_train_names_what_is_wrong(command):
    """Fails if another config is ignored, or a run to go on with is made up."""
    assert "nothing to train: --config coco" in refused(command, "train", "--config", "coco", "--dry-run")
    assert "no folder to go on in: --resume" in refused(command, "train", "--resume", "--dry-run")


def test_eval_needs_no_data_with_the_mini_model(command):
    """And is verified bit for bit. Fails if the set that it draws differs from run to run."""
    code, out, err = command("eval", "--limit", 2, "--set", "steps=4", "--output", "run")
    assert code == 0, err
    assert "Editing-Mask, 2 records, inst-diff-edit" in out and "left out: LPIPS" in out and "paper" not in out
    code, out, _ = command("verify", "run")
    assert code == 0 and "compared bit for bit" in out


def test_bench_prints_realised_and_predicted(command, monkeypatch):
    """Measuring is tested with costs; here: options in, tables out. Fails if --full or --repeats is lost."""
    asked = {}
    row = {"seconds": 1.5, "tflops": 205.6, "samples": 250, "calls": 75, "peak_bytes": 3 * 2**30}
    methods = {name: {**row, "seconds": 1.5 * (n + 1)} for n, name in enumerate(speed.METHODS)}
    size = {"edge": 512, "steps": 50, "dtype": "bfloat16"}

    def run_bench(settings, seed, output, size_):
        asked.update(settings=settings, seed=seed, output=output, size=size_)
        return {"size": size, "methods": methods, "speed_ups": speed.speed_ups(methods)}

    monkeypatch.setattr(speed, "run_bench", run_bench)
    code, out, err = command(
        "bench", "--dtype", "bfloat16", "--repeats", 7, "--full", "--output", "b.json", "--seed", 2
    )
    assert code == 0, err
    assert asked["size"] is speed.FULL and asked["settings"].repeats == 7 and asked["seed"] == 2
    assert asked["settings"].dtype == "bfloat16" and str(asked["output"]) == "b.json"
    assert "realised / predicted" in out and all(method in out for method in speed.METHODS)
    assert "205.6" in out and "3.00" in out and "3.0" in out
    command("bench")
    assert asked["size"] is None and asked["output"] is None


def test_a_verb_without_meaning_says_what_to_use(command):
    assert "from_single_file" in refused(command, "convert")


@pytest.fixture(scope="module")
def broken(tmp_path_factory, model):
    """Models and pictures that cannot be used, by name."""
    import shutil

    folder = tmp_path_factory.mktemp("broken")
    (folder / "empty").mkdir()
    shutil.copytree(model, folder / "torn")
    weights = folder / "torn" / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    shutil.copytree(model, folder / "lacking")
    shutil.rmtree(folder / "lacking" / "text_encoder")
    shutil.copytree(model, folder / "index")
    (folder / "index" / "model_index.json").write_text("[1]")
    (folder / "text.png").write_text("no picture")
    return folder


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nowhere", "no such model: "),
        ("empty", "not a model's folder: "),
        ("text.png", "not a model's folder: "),
        ("index", "not an index of models: "),
        ("torn", "cannot be loaded ("),
        ("lacking", "cannot be loaded ("),
    ],
)
def test_a_model_that_cannot_be_loaded_is_named(command, broken, picture, name, message):
    line = refused(command, "edit", picture, "--to", "a ring", "--model", broken / name)
    assert line.startswith(f"error: {message}") and str(broken / name) in line


def test_the_broken_one_of_two_models_is_named(command, broken, picture, model):
    """Fails if a broken inpainting model is blamed on the base model."""
    line = refused(command, "edit", picture, "--to", "a ring", "--model", model, "--inpaint", broken / "torn")
    assert "cannot be loaded (" in line and str(broken / "torn") in line and str(model) not in line
    assert "no such model: nowhere" in refused(command, "edit", picture, "--to", "x", "--inpaint", "nowhere")


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("", "an empty prompt"),
        ("  \n ", "an empty prompt"),
        ("a " * 15, "a prompt of 15 tokens"),
        ("a\n" * 15, "a prompt of 15 tokens"),
    ],
    ids=["empty", "white space", "long", "long over lines"],
)
def test_a_prompt_that_cannot_be_used_is_refused_before_anything_is_written(command, picture, prompt, message):
    """Fails if the prompt is cut, or its line breaks break the message."""
    assert message in refused(command, "edit", picture, "--to", prompt, "--output", "run")


@pytest.mark.parametrize("content", [b"", b"no picture", "cut", "folder"], ids=["empty", "text", "cut off", "folder"])
def test_a_picture_that_cannot_be_read_is_refused(command, picture, tmp_path, content):
    """Fails if another error than the refusal comes through, or the exit code is another."""
    path = tmp_path / "broken.png"
    if content == "folder":
        path.mkdir()
    else:
        path.write_bytes(picture.read_bytes()[:200] if content == "cut" else content)
    line = refused(command, "edit", path, "--to", "a ring", "--output", "run")
    assert "broken.png" in line


def test_a_negative_prompt_that_is_too_long_is_refused(command, picture):
    """Fails if it is cut without a word."""
    long = "negative_prompt=" + "a " * 15
    assert "a negative_prompt of 15 tokens" in refused(command, "edit", picture, "--to", "a ring", "--set", long)


def test_edit_names_what_is_wrong(command, broken, picture):
    assert "broken image" in refused(command, "edit", broken / "text.png", "--to", "a ring")
    assert "no such image" in refused(command, "edit", broken / "none.png", "--to", "a ring")
    assert "an empty prompt" in refused(command, "edit", picture, "--to", "", "--output", "run")
    assert "no prompt" in refused(command, "demo", "--image", picture)
    assert "perhaps" in refused(command, "edit", picture, "--to", "x", "--set", "tresholds=1")
    assert "no such config" in refused(command, "edit", picture, "--to", "x", "--config", "tiny")
    assert "threshold" in refused(command, "edit", picture, "--to", "x", "--threshold", 2)
    assert "strength" in refused(command, "edit", picture, "--to", "x", "--strength", 0)
    assert "no inpainting model" in refused(command, "edit", picture, "--to", "x", "--set", "final=inpaint")
    code, _, error = command("edit", picture)
    assert code == 2 and "--to" in error


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is there")
def test_no_cuda_when_asked_for(command, picture):
    edit = refused(command, "edit", picture, "--to", "a ring", "--device", "cuda")
    assert "no such CUDA device: device cuda:0" in edit
    assert "no such CUDA device: device cuda:0" in refused(command, "eval", "--device", "cuda")
    assert "no such CUDA device: device cuda:0" in refused(command, "bench", "--device", "cuda")


def test_eval_names_what_is_wrong(command, broken, tmp_path):
    data = tmp_path / "data"
    write_mini_set(data, 2)
    assert "no data" in refused(command, "eval", "--set", "Imagen")
    assert "no such folder: --data" in refused(command, "eval", "--data", tmp_path / "none")
    assert "no such set: --set Foo" in refused(command, "eval", "--set", "Foo")
    assert "unknown setting" in refused(command, "eval", "--set", "stepps=3")
    assert "method" in refused(command, "eval", "--method", "flexit")
    assert "no weights of LPIPS: --lpips" in refused(command, "eval", "--lpips", broken / "empty")
    assert "no such file: " in refused(command, "eval", "--inception", broken / "none.pth")
    assert "no config.json to read: --clip" in refused(command, "eval", "--clip", broken / "empty")
    assert "--inception FILE" in refused(command, "eval", "--real", broken)
    (data / "Imagen_list.txt").write_text("")
    assert "Imagen_list.txt" in refused(command, "eval", "--data", data, "--set", "Imagen")
    assert "ImageNet_list.txt" in refused(command, "eval", "--data", data, "--set", "ImageNet")
    (data / "Imagen_list.txt").write_text("7 <> A photo of a bear. <> bear <> wolf")
    assert "7.jpg" in refused(command, "eval", "--data", data, "--set", "Imagen")
    (data / "Editing-Mask" / "mask" / "1.png").write_text("no picture")
    code, _, error = command("eval", "--data", data, "--set", "steps=4", "--output", "run")
    assert code == 2 and "broken image" in error and not Path("run", "run.json").exists()
    (data / "Editing-Mask" / "mask" / "1.png").unlink()
    code, _, error = command("eval", "--data", data, "--output", "other")
    assert code == 2 and "1.png" in error and not Path("other").exists()
