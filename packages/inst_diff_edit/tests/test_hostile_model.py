"""A model's folder that brings code along: never run, whatever the version of diffusers makes of it, and nobody asked.

`make test-oldest` has the lowest diffusers that the package states here.
"""

import builtins
import json
import shutil
from contextlib import suppress

import pytest

from inst_diff_edit.checkpoints import load
from inst_diff_edit.commands.app import main
from inst_diff_edit.evaluation.settings import EditSettings
from inst_diff_edit.miniature import model as mini
from inst_diff_edit.pipeline import InstDiffEditPipeline
from tenfold.runs import run as recorded
from tenfold.testing.commands import refused, run

# What the index of a folder says -> what is said of it; a file of that name in the folder leaves a mark.
HOSTILE = {
    "a part of its own": ({"unet": ["evil", "Evil"]}, "unet/evil.py", "unet is of evil"),
    "a library's name": ({"unet": ["diffusers", "UNet2DConditionModel"]}, "unet/diffusers.py", "unet brings its own"),
    "a pipeline of its own": ({"_class_name": ["pipeline", "Evil"]}, "pipeline.py", "_class_name names code"),
}


@pytest.fixture
def asked(monkeypatch):
    """Questions on standard input, each answered by "y"."""
    questions = []
    monkeypatch.setattr(builtins, "input", lambda *words: questions.append(words) or "y")
    return questions


def hostile(tmp_path, kind):
    """The mini model with code of its own, in the folder `host`; running it makes the file `ran`."""
    index, file, message = HOSTILE[kind]
    folder = shutil.copytree(mini.path(), tmp_path / "host")
    parts = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(parts | index))
    (folder / file).write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\nclass Evil: pass\n")
    return folder, message


@pytest.mark.parametrize("kind", HOSTILE)
def test_by_a_command_and_by_a_forged_record_it_is_one_line(kind, asked, tmp_path):
    """Fails if the index is not looked at before diffusers reads it."""
    folder, message = hostile(tmp_path, kind)
    refused(run(main, "demo", "--model", folder, "--output", tmp_path / "out"), message, str(folder))
    refused(run(main, "demo", "--inpaint", folder, "--output", tmp_path / "out"), message, str(folder))
    config = EditSettings(model=str(folder)).model_dump()
    with recorded("inst_diff_edit", "demo", config=config, seed=0, output=tmp_path / "forged"):
        pass
    refused(run(main, "verify", tmp_path / "forged"), message)
    assert asked == [] and not (tmp_path / "ran").exists() and not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", HOSTILE)
def test_without_a_look_at_the_index_diffusers_runs_it_neither(kind, asked, tmp_path, monkeypatch):
    """In Python, and behind the check of ours. Fails if diffusers is told to trust, or asks where it is not told."""
    folder, _ = hostile(tmp_path, kind)
    monkeypatch.setattr(load, "_refuse_code", lambda index: None)
    run(main, "demo", "--model", folder, "--output", tmp_path / "out")
    with suppress(Exception):  # whatever diffusers makes of it
        InstDiffEditPipeline.from_pretrained(folder)
    assert asked == [] and not (tmp_path / "ran").exists()
