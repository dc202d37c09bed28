"""A model's folder that brings code along, by command and by a forged run record: never run, and nobody is asked."""

import builtins
import json
import shutil

import pytest

from fitprune.commands.app import main
from fitprune.evaluation.settings import DemoSettings
from tenfold.data import mini_host
from tenfold.runs import run as record_run
from tenfold.testing.commands import run


@pytest.fixture
def hostile(tmp_path):
    """The mini host with a model type that only a file in its folder knows."""
    folder = shutil.copytree(mini_host.path(), tmp_path / "host")
    config = json.loads((folder / "config.json").read_text())
    names = {"AutoConfig": "evil.EvilConfig", "AutoModelForImageTextToText": "evil.Evil"}
    config |= {"model_type": "evil", "architectures": ["Evil"], "auto_map": names}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\n")
    return folder


@pytest.fixture
def asked(monkeypatch):
    """Questions on standard input, each answered by "y"."""
    questions = []
    monkeypatch.setattr(builtins, "input", lambda *words: questions.append(words) or "y")
    return questions


def test_a_demo_on_it_is_one_line(hostile, asked, tmp_path):
    """Fails if the host is loaded without `trust_remote_code=False`: transformers asks, and runs the file."""
    done = run(main, "demo", "--model", hostile, "--output", tmp_path / "out")
    assert done.code == 2 and len(done.err.strip().splitlines()) == 1, done
    assert asked == [] and not (tmp_path / "ran").exists() and not (tmp_path / "out").exists()


def test_verify_of_a_forged_record_is_one_line(hostile, asked, tmp_path):
    """A record is a text from anybody: it may name any folder. Fails as above."""
    config = DemoSettings(model=str(hostile)).model_dump()
    with record_run("fitprune", "demo", config=config, seed=0, output=tmp_path / "forged") as current:
        current.metrics["new_tokens"] = 1
    done = run(main, "verify", tmp_path / "forged")
    assert done.code == 2 and len(done.err.strip().splitlines()) == 1, done
    assert asked == [] and not (tmp_path / "ran").exists()
