"""What is wrong is said in one line, with exit code 2 and nothing half-written (D10)."""

import json
import subprocess
import sys

import numpy as np
import pytest
from dit_sam_tiny import ROOT, environment, files_below, run
from PIL import Image

from dit_sam.commands.app import app


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("segment", "nowhere.png", "the square"), "no such image"),
        (("segment", "{text}", "the square"), "broken image"),
        (("segment", "{torn}", "the square"), "broken image"),
        (("segment", "{image}", " ", "--model", "{model}"), "an empty sentence"),
        (("segment", "{image}", "a", "--threshold", "2"), "threshold"),
        (("segment", "{image}", "a", "--model", "{model}", "--input-size", "50"), "input_size 50"),
        (("segment", "{image}", "a", "--model", "nowhere"), "no model"),
        (("segment", "{image}", "a", "--model", "{model}", "--device", "cuda:9"), "no such CUDA device"),
        (("eval", "{model}", "--data", "nowhere"), "no such folder"),
        (("eval", "{model}", "--data", "{empty}"), "no data set refcoco"),
        (("eval", "{model}", "--data", "{data}", "--part", "middle"), "unknown part"),
        (("eval", "{model}", "--data", "{broken}"), "broken"),
        (("eval", "{model}", "--set", "other"), "set: 'other'"),
        (("train", "--config", "nowhere"), "no such config"),
        (("train", "--config", "mini", "--set", "epoch=3"), "unknown setting epoch"),
        (("train", "--config", "mini", "--set", "batch=0"), "batch"),
        (("train", "--config", "layer_wise", "--output", "{new}"), "no data"),
        (
            ("train", "--config", "layer_wise", "--data", "{data}", "--set", "batch=2", "--output", "{new}"),
            "no weights to start from",
        ),
        (("train", "--config", "layer_wise", "--set", "model.variant=other", "--dry-run"), "unknown variant"),
        (("convert", "nowhere.pth", "{new}", "--bert", "{words}"), "no such file"),
        (("convert", "nowhere.pth", "{new}"), "no word pieces"),
        (("convert", "{data}", "{new}", "--refer", "refclef"), "unknown set"),
        (("verify", "nowhere"), "nowhere"),
    ],
)
def test_one_line_says_what_is_wrong(arguments, words, tiny_folder, mini_data, tmp_path):
    """Fails if one of these gave a traceback, another exit code, several lines, or left a file."""
    places = {name: tmp_path / name for name in ("text", "torn", "image", "empty", "broken", "words", "new")}
    Image.fromarray(np.zeros((20, 30, 3), dtype=np.uint8)).save(tmp_path / "whole.png")
    whole = (tmp_path / "whole.png").read_bytes()
    places["image"].write_bytes(whole)
    places["torn"].write_bytes(whole[:45])
    places["text"].write_text("no picture")
    places["words"].write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n")
    places["empty"].mkdir()
    (places["broken"] / "refcoco").mkdir(parents=True)
    (places["broken"] / "refcoco" / "refs(unc).p").write_bytes(b"\x80\x02]q\x00(broken")
    output = tmp_path / "output"
    told = [one.format(model=tiny_folder, data=mini_data, **places) for one in arguments]
    if told[0] in ("segment", "eval"):
        told += ["--output", str(output)]
    code, _, line = run(*told)
    assert code == 2 and words in line and "\n" not in line
    assert (not (output / "run.json").exists() and not places["new"].exists()) or files_below(places["new"]) == []


def test_help_names_the_data_tree_and_importing_is_light():
    """Fails if `eval --help` did not say where COCO's pictures go, or the package needed torch to be imported."""
    code, said, _ = run("eval", "--help")
    said = " ".join(said.split())
    assert code == 0 and "train2014" in said and "instances.json" in said
    lines = "import sys, dit_sam, dit_sam.commands.app; assert 'torch' not in sys.modules; print(dit_sam.__version__)"
    done = subprocess.run([sys.executable, "-c", lines], capture_output=True, text=True, env=environment(), check=False)
    assert done.returncode == 0, done.stderr


def test_options_are_settings():
    """Fails if an option's name were no setting of its verb."""
    from typer.main import get_command

    from dit_sam.evaluation.settings import DemoSettings, EvalSettings, SegmentSettings
    from dit_sam.evidence.settings import BenchSettings

    renamed = {"text": "texts", "set_": "set", "size": "sizes"}
    verbs = get_command(app).commands
    for verb, settings in (
        ("eval", EvalSettings),
        ("segment", SegmentSettings),
        ("demo", DemoSettings),
        ("bench", BenchSettings),
    ):
        names = {renamed.get(one.name, one.name) for one in verbs[verb].params} - {"output", "help", "seed"}
        assert names <= set(settings.model_fields), verb


def test_configs_say_how_they_are_run():
    """Fails if a shipped config did not open with its command, or could not be read."""
    from dit_sam.training.settings import TrainSettings
    from tenfold.cli import load_config

    for path in sorted((ROOT / "configs").glob("*.yaml")):
        assert f"dit-sam train --config {path.stem}" in path.read_text(), path
        json.dumps(load_config(TrainSettings, path.stem).model_dump(mode="json"))
