"""`benchmarks/peers.py`: what it refuses, what it counts, and that its record and its reasons agree."""

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent
RECORD = ROOT / "benchmarks" / "results" / "peers.json"
GLUE = """
class OursModel:
    def test_both(self): pass
    def test_refused(self): raise ValueError("{error}: not this")
    def test_ours_only(self): pass

class TheirsModel:
    def test_both(self):
        from {library}_like import there
    def test_refused(self): pass
    def test_absent(self): pass
    def test_ours_only(self): assert False
"""


@pytest.fixture(scope="module")
def peers():
    spec = importlib.util.spec_from_file_location("peers_runner", ROOT / "benchmarks" / "peers.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["peers_runner"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    yield module
    del sys.modules["peers_runner"]


@pytest.fixture
def folder(peers, tmp_path):
    """A tiny checkout of the locked version, with one module that the glue finds there."""
    place = tmp_path / "checkouts" / "transformers"
    for name in ("tests", "src/transformers"):
        (place / name).mkdir(parents=True)
    (place / "src" / "transformers" / "__init__.py").write_text(f'__version__ = "{peers.locked("transformers")}"\n')
    (place / "transformers_like.py").write_text("there = True\n")
    return tmp_path / "checkouts"


def suites(peers, tmp_path, error):
    glue = tmp_path / "glue" / "glue.py"
    glue.parent.mkdir()
    glue.write_text(GLUE.format(error=error, library="transformers"))
    return [peers.Suite("p-model", "p", "transformers", "a model", glue, glue)]


def reasons(tmp_path, text):
    path = tmp_path / "reasons.yaml"
    path.write_text(text)
    return path


def test_without_checkouts_both_tags_are_named(peers, tmp_path):
    """Fails if a missing folder is a traceback, or exit code 1."""
    tags = [f"{name} at v{peers.locked(name)}" for name in ("transformers", "diffusers")]
    for arguments in ([], [tmp_path / "nothing"]):
        command = [sys.executable, ROOT / "benchmarks" / "peers.py", *arguments]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
        assert all(tag in done.stderr for tag in tags)


def test_another_version_is_refused_unless_asked_for(peers, folder, tmp_path, capsys, monkeypatch):
    """Fails if the checkout's own version is not read, or not recorded."""
    monkeypatch.setattr(peers, "find_spec", lambda name: True)
    (folder / "transformers" / "src" / "transformers" / "__init__.py").write_text('__version__ = "1.2.3.dev0"\n')
    (folder / "transformers" / "ORIGIN").write_text("made\nby hand\n")
    these, why = suites(peers, tmp_path, "UserError"), reasons(tmp_path, "")
    assert peers.main([str(folder)], these, why) == 2
    assert "transformers 1.2.3.dev0" in capsys.readouterr().err
    output = tmp_path / "peers.json"
    peers.main([str(folder), "--any-version", "--output", str(output)], these, why)
    suite = json.loads(output.read_text())["suites"]["p-model"]
    assert suite["tag"] == "v1.2.3.dev0" and suite["checkout"]["origin"] == "made by hand"


def test_differences_need_a_reason(peers, folder, tmp_path, monkeypatch):
    """Fails if a difference without a reason ends in 0, or a crash passes for a refusal by name."""
    monkeypatch.setattr(peers, "find_spec", lambda name: True)
    both = (
        'p-model:\n- {test: "Model.test_refused", kind: refused by name, why: so}\n'
        '- {test: "Model.test_a*", kind: not applicable, why: so}\n'
    )
    for error, text, code, unexplained in (
        ("UserError", both, 0, 0),
        ("KeyError", both, 1, 1),
        ("UserError", "", 1, 2),
    ):
        output, place = tmp_path / f"{error}{code}.json", tmp_path / f"{error}{code}"
        place.mkdir()
        done = peers.main([str(folder), "--output", str(output)], suites(peers, place, error), reasons(place, text))
        suite = json.loads(output.read_text())["suites"]["p-model"]
        assert (done, suite["unexplained"]) == (code, unexplained)
        assert suite["ours"] == {"passed": 2, "failed": 1, "skipped": 0}
        assert suite["theirs"] == {"passed": 3, "failed": 1, "skipped": 0}
        assert {one["test"]: one["ours"] for one in suite["differences"]} == {
            "Model.test_refused": "failed",
            "Model.test_absent": "absent",
        }


def test_a_reason_of_another_kind_is_refused(peers, folder, tmp_path, capsys):
    """Fails if the table is not checked."""
    why = reasons(tmp_path, 'p-model:\n- {test: "*", kind: flaky, why: so}\n')
    assert peers.main([str(folder)], suites(peers, tmp_path, "UserError"), why) == 2
    assert "flaky" in capsys.readouterr().err


def test_glue_and_reasons_are_there(peers):
    """Fails if a suite names a file that is not there, or a reason a suite that is not."""
    assert all(suite.ours.is_file() and suite.theirs.is_file() for suite in peers.SUITES)
    table = peers.load_reasons(ROOT / "benchmarks" / "peers" / "reasons.yaml")
    assert set(table) <= {suite.name for suite in peers.SUITES}


def test_the_record_holds_what_the_reasons_say(peers):
    """Fails if a reason was changed after the run, or a suite recorded with a difference that has none."""
    table = yaml.safe_load((ROOT / "benchmarks" / "peers" / "reasons.yaml").read_text())
    for name, suite in json.loads(RECORD.read_text())["suites"].items():
        written = {(one["kind"], one["why"]) for one in table.get(name, ())}
        assert suite["unexplained"] == 0, name
        assert {(one["reason"], one["why"]) for one in suite["differences"]} <= written, name


def test_readmes_say_what_was_counted():
    """Fails if a README's counts are not those of the record."""
    suites = json.loads(RECORD.read_text())["suites"]
    for name, suite in suites.items():
        text = (ROOT / "packages" / suite["package"] / "README.md").read_text()
        ours, theirs = suite["ours"], suite["theirs"]
        said = f"{ours['passed']} of {sum(ours.values())} tests pass, {theirs['passed']} of {sum(theirs.values())}"
        assert said in re.sub(r"\s+", " ", text), f"{name}: {said}"
