"""The command: what its verbs do, and what it says when something is wrong."""

import io
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from fitprune.commands.app import main
from fitprune.recipe import Recipe
from tenfold.data import mini_host, mini_sets
from tenfold.data.formats import write_calibration
from tenfold.runs import RunRecord
from tenfold.testing.processes import held

COMMAND = [sys.executable, "-c", "from fitprune.commands.app import main; main()"]
FIT = ["fit", "--limit", "3", "--ratio", "0.4", "--ratio", "0.6"]
RECIPES = ["recipe-0.4.json", "recipe-0.6.json"]


def command(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["fitprune", *map(str, arguments)])
    with pytest.raises(SystemExit) as exit:
        main()
    return exit.value.code or 0


@pytest.fixture
def fitprune(capsys, monkeypatch):
    """Run the command in this process; its exit code, output and errors.

    Transformers logs to the stream that was standard error when it was imported: its lines are added to the errors.
    """
    lines = io.StringIO()
    handler = logging.StreamHandler(lines)
    logging.getLogger("transformers").addHandler(handler)

    def run(*arguments):
        code = command(monkeypatch, *arguments)
        output = capsys.readouterr()
        return code, output.out, lines.getvalue() + output.err

    yield run
    logging.getLogger("transformers").removeHandler(handler)


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    """The folder of a finished `fitprune fit` on the mini host."""
    folder = tmp_path_factory.mktemp("fit") / "run"
    with pytest.MonkeyPatch.context() as monkeypatch:
        assert command(monkeypatch, *FIT, "--output", folder) == 0
    return folder


@pytest.fixture(scope="module")
def questions(tmp_path_factory):
    """A calibration file with four images, in the official format."""
    folder = tmp_path_factory.mktemp("calibration")
    write_calibration(folder / "questions.jsonl", folder / "images", mini_sets.calibration(5, 4, 48))
    return folder


def test_fit_writes_one_recipe_per_ratio_and_a_record(fitted):
    record = RunRecord.load(fitted)
    assert record.verb == "fit"
    assert record.metrics["samples"] == 3
    assert {"recipe-0.4.json", "recipe-0.6.json"} <= record.outputs.keys()
    for ratio in (0.4, 0.6):
        recipe = Recipe.load(fitted / f"recipe-{ratio}.json")
        assert recipe.ratio == ratio
        assert record.metrics["recipes"][f"{ratio}"]["visual_reduction"] == recipe.reduction


def test_fit_says_what_is_left_and_what_it_saves(fitprune, tmp_path):
    code, out, _ = fitprune(*FIT, "--output", tmp_path / "run")
    assert code == 0
    recipe = Recipe.load(tmp_path / "run" / "recipe-0.6.json")
    first = next(line for line in out.splitlines() if line.startswith("│     0 │"))
    assert [int(cell.replace("·", "0")) for cell in first.strip("│").split("│")][3:5] == [
        recipe.remove[0],
        recipe.alive()[1],
    ]
    assert f"100 → {recipe.alive()[-1]}" in out
    assert f"{recipe.reduction:.1%}" in out
    assert f"wrote {tmp_path / 'run' / 'recipe-0.6.json'}" in out.replace("\n", " ")


def kill_when(folder, name, lines, arguments):
    """Start a fit and kill it as soon as a progress file has so many lines."""
    process = subprocess.Popen([*COMMAND, *arguments, "--output", folder], stdout=subprocess.DEVNULL)
    waited = time.monotonic() + 240
    while not any(path.read_bytes().count(b"\n") >= lines for path in folder.glob(f"progress/{name}")):
        assert process.poll() is None and time.monotonic() < waited, "the fit ended before it was killed"
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (folder / "run.json").exists()
    assert not list(folder.glob("*.json"))


@pytest.mark.parametrize(
    ("name", "lines"),
    [
        ("alpha-0.2500000.jsonl", 1),
        pytest.param("statistics.jsonl", 1, marks=pytest.mark.slow),
        pytest.param("statistics.jsonl", 3, marks=pytest.mark.slow),
        pytest.param("alpha-0.5000000.jsonl", 2, marks=pytest.mark.slow),
    ],
)
def test_a_killed_fit_goes_on_and_ends_with_the_same_recipes(fitprune, fitted, tmp_path, name, lines):
    """Fails if the resume ignores finished samples: it would say so, or write them twice."""
    folder = tmp_path / "run"
    kill_when(folder, name, lines, FIT)
    code, out, _ = fitprune(*FIT, "--output", folder)
    assert code == 0
    assert int(out.split("going on after ")[1].split()[0]) > 0
    assert sorted(path.name for path in folder.glob("recipe-*")) == RECIPES
    for path in [*fitted.glob("recipe-*"), *fitted.glob("progress/*")]:
        assert (folder / path.relative_to(fitted)).read_bytes() == path.read_bytes(), path.name


def test_fit_reads_the_official_calibration_format(fitprune, questions, tmp_path):
    """Fails if --limit takes the first samples instead of drawing them, or the record forgets the file."""
    recorded = []
    for seed in (0, 1):
        options = ["--samples", questions / "questions.jsonl", "--image-folder", questions / "images", "--limit", 2]
        code, _, err = fitprune("fit", "mini", *options, "--seed", seed, "--output", tmp_path / f"{seed}")
        assert code == 0, err
        record = RunRecord.load(tmp_path / f"{seed}")
        assert record.metrics["samples"] == 2
        assert record.data.keys() == {"model", "samples"}
        rows = (tmp_path / f"{seed}" / "progress" / "statistics.jsonl").read_text().splitlines()
        recorded.append([json.loads(row)["inputs"] for row in rows])
    assert recorded[0] != recorded[1]


def test_a_config_sets_the_fit_and_options_win_over_it(fitprune, tmp_path):
    """Fails if options that were not given overwrite the config's values."""
    options = ["--config", "mini", "--set", "limit=2", "--set", "ratios=[0.3]", "--rounding", "floor"]
    code, _, err = fitprune("fit", *options, "--output", tmp_path / "run")
    assert code == 0, err
    record = RunRecord.load(tmp_path / "run")
    assert (record.config["limit"], record.config["ratios"]) == (2, [0.3])
    assert record.config["dtype"] == "float32"
    assert Recipe.load(tmp_path / "run" / "recipe-0.3.json").rounding == "floor"


def test_verify_repeats_a_fit_bit_for_bit(fitprune, fitted):
    code, out, _ = fitprune("verify", fitted)
    assert code == 0
    assert "recipe-0.6.json" in out
    assert "compared bit for bit" in out
    assert "differs" not in out.splitlines()[-1]


def test_verify_notices_another_outcome(fitprune, fitted, tmp_path):
    """Fails if the verifier returns recorded metrics instead of computing them."""
    record = json.loads((fitted / "run.json").read_text())
    record["metrics"]["recipes"]["0.6"]["alpha"] += 0.25
    (tmp_path / "run.json").write_text(json.dumps(record))
    code, out, _ = fitprune("verify", tmp_path)
    assert code == 1
    verdicts = {
        cells[1].strip(): cells[4].strip() for cells in (line.split("│") for line in out.splitlines()) if len(cells) > 4
    }
    assert verdicts["recipes.0.6.alpha"] == "differs"
    assert verdicts["recipes.0.4.alpha"] == verdicts["recipe-0.6.json"] == "equal"


@pytest.mark.parametrize(("verb", "instead"), [("train", "fitprune fit")])
def test_a_verb_that_is_not_there_says_what_to_use(fitprune, verb, instead):
    code, _, err = fitprune(verb, "--config", "mini")
    assert code == 2
    assert len(err.splitlines()) == 1
    assert f"has no verb {verb}" in err
    assert instead in err


def test_recipes_are_shown_compared_and_drawn(fitprune, tmp_path):
    code, out, _ = fitprune("recipe", "show", "llava-1.5-7b:60")
    assert code == 0
    assert "576 → 127" in out
    assert "59.7%" in out
    code, out, _ = fitprune("recipe", "diff", "llava-1.5-7b:60", "llava-1.5-7b:55")
    assert code == 0
    assert out.splitlines()[1].split() == ["0", "14", "6", "562", "570"]
    code, out, _ = fitprune("recipe", "plot", "llava-1.5-7b:60", tmp_path / "recipe.png")
    assert code == 0
    with Image.open(tmp_path / "recipe.png") as picture:
        picture.verify()


def test_convert_goes_to_the_official_layout_and_back(fitprune, tmp_path):
    official, back = tmp_path / "official", tmp_path / "back"
    assert fitprune("convert", mini_host.path(), official, "--to", "official")[0] == 0
    assert fitprune("convert", official, back)[0] == 0
    ours = sorted(load_file(mini_host.path() / "model.safetensors").values(), key=lambda t: (t.shape, t.sum().item()))
    theirs = sorted(load_file(back / "model.safetensors").values(), key=lambda t: (t.shape, t.sum().item()))
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


# What is wrong, one thing at a time (D10). Each case prepares something broken and returns the command's arguments.


def broken_host(folder, change):
    """A copy of the mini host, changed."""
    shutil.copytree(mini_host.path(), folder / "host")
    change(folder / "host")
    return ["fit", folder / "host", "--samples", folder / "questions.jsonl", "--output", folder / "run"]


def edit_config(host, change):
    config = json.loads((host / "config.json").read_text())
    change(config)
    (host / "config.json").write_text(json.dumps(config))


def edit_weights(host, change):
    weights = load_file(host / "model.safetensors")
    change(weights)
    save_file(weights, host / "model.safetensors", metadata={"format": "pt"})


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


MODELS = {
    "no model of that name": (lambda host: shutil.rmtree(host), "no such model"),
    "a file instead of a folder": (lambda host: (shutil.rmtree(host), host.write_text("x")), "no such model"),
    "no config": (lambda host: (host / "config.json").unlink(), "no config.json"),
    "broken config": (lambda host: (host / "config.json").write_text("{"), "broken JSON"),
    "unknown architecture": (
        lambda host: edit_config(host, lambda c: c.update(model_type="unheard-of")),
        "unheard-of",
    ),
    "no vision": (lambda host: (host / "config.json").write_text('{"model_type": "llama"}'), "LlamaConfig"),
    "no weights": (lambda host: (host / "model.safetensors").unlink(), "model.safetensors"),
    "truncated weights": (lambda host: truncate(host / "model.safetensors"), "not fully covered"),
    "a weight is missing": (
        lambda host: edit_weights(host, lambda w: w.pop(next(key for key in w if "layers.2.mlp.up" in key))),
        "1 weights missing",
    ),
    "a weight of another shape": (
        lambda host: edit_config(host, lambda c: c["text_config"].update(intermediate_size=200)),
        "weights of another shape",
    ),
    "official layout": (
        lambda host: edit_config(host, lambda c: c.update(mm_vision_tower="openai/clip")),
        "as the verb convert writes it",
    ),
    "no processor": (lambda host: (host / "processor_config.json").unlink(), "image processor"),
    "sliding windows": (
        lambda host: edit_config(host, lambda c: c["text_config"].update(model_type="mistral", sliding_window=16)),
        "sliding-window attention",
    ),
}


@pytest.mark.parametrize("case", MODELS)
def test_a_model_that_cannot_be_used_is_one_line(fitprune, questions, tmp_path, case):
    """Fails if load_host no longer turns this error into a UserError, or accepts the model."""
    change, named = MODELS[case]
    shutil.copytree(questions, tmp_path, dirs_exist_ok=True)
    refused(fitprune(*broken_host(tmp_path, change), "--image-folder", tmp_path / "images"), named)
    assert not list(tmp_path.glob("run/*.json"))


SAMPLES = {
    "no such file": (lambda folder: (folder / "questions.jsonl").unlink(), "questions.jsonl"),
    "broken line": (lambda folder: (folder / "questions.jsonl").write_text("{\n"), "line 1"),
    "missing field": (
        lambda folder: (folder / "questions.jsonl").write_text('{"question_id": 1}\n'),
        "'image' is missing",
    ),
    "no samples": (lambda folder: (folder / "questions.jsonl").write_text(""), "no records"),
    "no such image": (lambda folder: shutil.rmtree(folder / "images"), "no such image"),
    "truncated image": (lambda folder: truncate(next((folder / "images").rglob("*1.png"))), "broken image"),
    "no image at all": (lambda folder: next((folder / "images").rglob("*1.png")).write_text("x"), "broken image"),
}


@pytest.mark.parametrize("case", SAMPLES)
def test_samples_that_cannot_be_used_are_one_line(fitprune, questions, tmp_path, case):
    change, named = SAMPLES[case]
    shutil.copytree(questions, tmp_path, dirs_exist_ok=True)
    change(tmp_path)
    options = ["--samples", tmp_path / "questions.jsonl", "--image-folder", tmp_path / "images"]
    refused(fitprune("fit", *options, "--output", tmp_path / "run"), named)
    assert not list(tmp_path.glob("run/*.json"))


OPTIONS = {
    "no samples for a real model": (["fit", "llava-hf/llava-1.5-7b-hf"], "--samples FILE.jsonl"),
    "a hub that is out of reach": (["demo", "--model", "nobody/nothing"], "nobody/nothing"),
    "ratio above 1": (["fit", "--ratio", "60"], "a number between 0 and 1"),
    "ratio zero": (["fit", "--ratio", "0"], "a number between 0 and 1"),
    "ratio out of reach": (["fit", "--limit", "1", "--ratio", "0.99"], "a smaller ratio"),
    "unknown dtype": (["fit", "--dtype", "int8"], "dtype: 'int8'"),
    "unknown device": (["demo", "--device", "tpu"], "auto, cpu, cuda or cuda:N"),
    "unknown rounding": (["fit", "--rounding", "up"], "rounding: 'up'"),
    "no such config": (["fit", "--config", "maxi"], "mini"),
    "unknown setting": (["fit", "--config", "mini", "--set", "ratio=0.5"], "unknown setting ratio"),
    "setting without config": (["fit", "--set", "limit=2"], "--config mini"),
    "no such recipe": (["demo", "--recipe", "llava-1.5-7b"], "NAME:PERCENT"),
    "no such released recipe": (["demo", "--recipe", "llava-1.5-7b:65"], "no released recipe"),
    "no such recipe file": (["demo", "--recipe", "nowhere.json"], "nowhere.json"),
    "a recipe for another model": (["demo", "--recipe", "llava-1.5-7b:60"], "32 decoder layers"),
    "an image without a question": (["demo", "--image", "cat.jpg"], "--question"),
    "no such image": (["demo", "--image", "cat.jpg", "--question", "What?"], "no such image"),
    "no such run": (["verify", "nowhere"], "nowhere"),
    "no released recipe to measure": (["bench", "--ratio", "65"], "65 %"),
}


@pytest.mark.parametrize("case", OPTIONS)
def test_an_option_that_cannot_be_served_is_one_line(fitprune, tmp_path, monkeypatch, case):
    arguments, named = OPTIONS[case]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    output = [] if arguments[0] in ("verify",) else ["--output", tmp_path / "run"]
    refused(fitprune(*arguments, *output), named)
    assert not list(tmp_path.glob("run/*.json"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is there")
@pytest.mark.parametrize("verb", ["fit", "demo", "bench"])
def test_cuda_that_is_not_there_is_one_line(fitprune, tmp_path, verb):
    refused(fitprune(verb, "--device", "cuda", "--output", tmp_path / "run"), "no such CUDA device")


def test_a_processor_that_wants_another_library_is_one_line(fitprune, tmp_path, monkeypatch):
    def wants(*args, **kwargs):
        raise ImportError("\nQwen2VLVideoProcessor requires the Torchvision library but it was not found. Check out\n")

    monkeypatch.setattr("tenfold.hosts.loading.AutoProcessor.from_pretrained", wants)
    refused(fitprune("demo", "--output", tmp_path / "run"), "requires the Torchvision library but it was not found: ")


def test_a_finished_run_is_not_overwritten(fitprune, fitted):
    """Fails if it is written over, or if the command says first that it goes on after its measured samples."""
    before = (fitted / "run.json").read_bytes()
    assert (fitted / "progress" / "statistics.jsonl").is_file()
    outcome = fitprune(*FIT, "--output", fitted)
    refused(outcome, "holds a finished run")
    assert outcome[1] == ""
    assert (fitted / "run.json").read_bytes() == before


def test_a_second_fit_in_one_folder_is_told_of_the_first(fitprune, tmp_path):
    """Fails if both succeed, one over the other."""
    with held(tmp_path / "run") as process:
        refused(fitprune(*FIT, "--output", tmp_path / "run"), f"process {process} is writing there")
    assert not list((tmp_path / "run").glob("*recipe*"))


def test_progress_of_other_samples_is_not_mixed_in(fitprune, fitted, tmp_path):
    shutil.copytree(fitted / "progress", tmp_path / "run" / "progress")
    refused(fitprune("fit", "--limit", "2", "--output", tmp_path / "run"), "another model or calibration set")


def refused(outcome, named):
    """Exit code 2, and one line on standard error that names what is wrong."""
    code, _, err = outcome
    assert code == 2, err
    assert len(err.splitlines()) == 1, err
    assert err.startswith("error: ")
    assert named in err


def test_configs_say_how_they_are_run():
    folder = Path(__file__).parent.parent / "configs"
    for config in folder.glob("*.yaml"):
        text = config.read_text()
        assert f"fitprune fit --config {config.stem} " in text, config.name
