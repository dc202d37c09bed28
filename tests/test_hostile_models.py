"""A model's folder that brings code along, opened by every package's own command for a record that names it: never run,
and nobody is asked. (diffusers' pipelines: packages/inst_diff_edit/tests/test_hostile_model.py.)"""

from __future__ import annotations

import builtins
import importlib
import json
import shutil
from pathlib import Path

import pytest
from PIL import Image

from tenfold.cli import find_package_file
from tenfold.data import mini_host
from tenfold.runs import run as recorded
from tenfold.testing.commands import refused, run

MAP = {
    "AutoConfig": "evil.EvilConfig", "AutoModel": "evil.Evil", "AutoModelForImageTextToText": "evil.Evil",
    "AutoProcessor": "evil.EvilProcessor", "AutoTokenizer": ["evil.EvilTokenizer", "evil.EvilTokenizer"],
    "AutoImageProcessor": "evil.EvilImageProcessor",
}  # fmt: skip
# Every package that opens a model through transformers: a verb, its settings, and what they need beside the model.
# DIT and DTNet have formats of their own, in which no library looks for code.
VERBS = {
    "dyvte": ("demo", "evaluation.settings:DemoSettings", {"exit_at": 3, "image": "picture.png", "question": "What?"}),
    "e3_facenet": ("demo", "evaluation.settings:FaceSettings", {"text": "a face", "yaws": [0.0]}),
    "eas": ("sensitivity", "evaluation.settings:SensitivitySettings", {"data": "picture.png", "images": "picture.png"}),
    "fitprune": ("demo", "evaluation.settings:DemoSettings", {}),
    "flashsloth": ("demo", "evaluation.settings:DemoSettings", {"image": "picture.png", "question": "What?"}),
    "gamma_mod": ("demo", "evaluation.settings:DemoSettings", {"image": "picture.png", "question": "What?"}),
    "llava_hr": ("demo", "evaluation.settings:DemoSettings", {"image": "picture.png", "question": "What?"}),
}
OWN = ("e3_facenet", "flashsloth", "llava_hr")


def model_of(package: str, folder: Path) -> Path:
    """A copy of the model that ships with a package, or of the mini host."""
    if package not in OWN:
        return Path(shutil.copytree(mini_host.path(), folder))
    name = "assets/mini_model"
    return Path(
        shutil.copytree(find_package_file(package, name) or find_package_file(package, f"src/{package}/{name}"), folder)
    )


def make_hostile(model: Path, kind: str) -> Path:
    """Code beside every settings file, which leaves a mark beside the model when it is run; settings name it."""
    for path in sorted(model.rglob("*config.json")):
        (path.parent / "evil.py").write_text(f"open({str(model.parent / 'ran')!r}, 'w').close()\n")
        values = json.loads(path.read_text())
        if values.get("model_type") != "e3_facenet" and path.name != "generation_config.json":
            values["auto_map"] = MAP
        if path.name == "config.json" and kind == "a model" and "auto_map" in values:
            values |= {"model_type": "evil", "architectures": ["Evil"]}
        if path.name != "config.json" and kind == "a processor" and "auto_map" in values:
            values |= {"processor_class": "EvilProcessor", "tokenizer_class": "EvilTokenizer"}
        path.write_text(json.dumps(values))
    return model


@pytest.fixture
def asked(monkeypatch):
    """Questions on standard input, each answered by "y"."""
    questions: list[tuple[object, ...]] = []
    monkeypatch.setattr(builtins, "input", lambda *words: questions.append(words) or "y")
    return questions


@pytest.mark.parametrize("kind", ["a model", "a processor"])
@pytest.mark.parametrize("package", sorted(VERBS))
def test_a_forged_record_runs_no_code_of_the_model_that_it_names(package, kind, asked, tmp_path):
    """A record is a text from anybody. Fails if `trust_remote_code=False` is left out where one package opens a model,
    its processor or its tokenizer: transformers asks, and runs the file after "y"."""
    model = make_hostile(model_of(package, tmp_path / "host"), kind)
    Image.new("RGB", (48, 48)).save(model / "picture.png")
    verb, place, more = VERBS[package]
    module, _, name = place.partition(":")
    named = {key: str(model / value) if value == "picture.png" else value for key, value in more.items()}
    settings = getattr(importlib.import_module(f"{package}.{module}"), name)(model=str(model), **named)
    with recorded(package, verb, config=settings.model_dump(mode="json"), seed=0, output=tmp_path / "forged"):
        pass
    done = run(importlib.import_module(f"{package}.commands.app").main, "verify", tmp_path / "forged")
    assert asked == [] and not (tmp_path / "ran").exists()
    if package == "e3_facenet":  # its CLIP is opened by its class, with the tokenizer that this has: it is not used
        assert done.code in (1, 2) and not done.err, done
    else:
        refused(done, "custom code" if package not in OWN or kind == "a processor" else "evil", str(model))
