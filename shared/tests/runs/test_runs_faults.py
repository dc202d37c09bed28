"""Two writers, changed checkpoints, signals, full disks, hostile texts: one line each, and nothing half-written."""

import json
import math
import os
import signal
import subprocess
import sys
import time

import pytest

from tenfold import UserError
from tenfold.cli import bibtex
from tenfold.errors import printable
from tenfold.runs import last_complete_checkpoint, read_json, read_yaml, run, track, write_checkpoint
from tenfold.runs import progress as progress_module
from tenfold.runs.finite import require_finite_loss, require_finite_values
from tenfold.runs.lock import one_writer
from tenfold.runs.parse import parse_json, parse_yaml
from tenfold.testing.processes import fork, held


def test_a_second_writer_is_told_of_the_first(tmp_path):
    """Fails if two runs write one folder, or the first one's number is not said."""
    with (
        held(tmp_path) as child,
        pytest.raises(UserError, match=rf"process {child} is writing there"),
        run("tenfold", "eval", config={}, seed=0, output=tmp_path),
    ):
        pass
    with run("tenfold", "eval", config={}, seed=0, output=tmp_path):
        pass
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run.json"]


def test_a_dead_writer_holds_nothing(tmp_path):
    def die():
        with one_writer(tmp_path):
            os.kill(os.getpid(), signal.SIGKILL)

    os.waitpid(fork(die), 0)
    with one_writer(tmp_path):
        pass


def test_one_flipped_bit_in_a_checkpoint_is_noticed(tmp_path, caplog):
    """Fails if a checkpoint is trusted by its sizes alone."""
    for step in (1, 2):
        write_checkpoint(tmp_path, step, lambda folder: (folder / "state.pt").write_bytes(b"weights"))
    (tmp_path / "checkpoint-2" / "state.pt").write_bytes(b"wEights")
    assert last_complete_checkpoint(tmp_path).name == "checkpoint-1"
    assert "state.pt has changed since it was written" in caplog.text


@pytest.mark.parametrize("marker", ['{"files": []}', "[]", "[" * 3000, '{"files": {"state.pt": 7}}', '{"files": {}}'])
def test_a_forged_marker_is_no_checkpoint(tmp_path, marker):
    write_checkpoint(tmp_path, 1, lambda folder: (folder / "state.pt").write_bytes(b"weights"))
    (tmp_path / "checkpoint-1" / "COMPLETE").write_text(marker)
    assert last_complete_checkpoint(tmp_path) is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 3000 + "]" * 3000, "nested too deeply"),
        ("1" * 5000, "Exceeds the limit|integer of"),
        ('{"a": NaN}', "NaN is no number of JSON"),
        ('{"a": 1e999}', "not finite"),
        ('"\\ud800"', "lone surrogate"),
        ("{", "line 1"),
    ],
)
def test_hostile_json_is_one_line(text, message):
    with pytest.raises(UserError, match=message):
        parse_json(text, "file.json")


@pytest.mark.parametrize(
    "text", ["a: 2024-13-45", "a: !!bool maybe", "[" * 3000, "a: !!int x", "? [a]\n: 1", "a: &b [*b]"]
)
def test_hostile_yaml_is_one_line(text, tmp_path):
    (tmp_path / "file.yaml").write_text(text)
    with pytest.raises(UserError, match=r"file\.yaml"):
        parse_yaml(text, tmp_path / "file.yaml")


def test_readers_go_through_the_border(tmp_path):
    (tmp_path / "a.json").write_text("[" * 3000)
    (tmp_path / "a.yaml").write_text("a: 2024-13-45")
    for read, name in ((read_json, "a.json"), (read_yaml, "a.yaml")):
        with pytest.raises(UserError, match=name):
            read(tmp_path / name)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_not_finite_ends_the_training(value):
    with pytest.raises(UserError, match=r"the loss is not finite .*xe, step 3 \(expected a lower learning rate"):
        require_finite_loss(value, "xe", 3)
    assert require_finite_loss(0.5, "xe", 3) == 0.5
    with pytest.raises(UserError, match="1 of 2 numbers are not finite"):
        require_finite_values([1.0, value], "features", "image 7")


def test_text_from_elsewhere_does_not_steer_a_terminal_or_a_citation():
    """Fails if an escape sequence reaches the terminal, or a record's text ends a BibTeX field."""
    assert printable("a\x1b[2Jb\ud800") == "a\\x1b[2Jb\\ud800"
    entry = bibtex._entry("misc", "id}, @evil{", {"note": "a}}, title = {Owned"})
    assert entry.count("{") == entry.count("}") == 2 and "@evil" not in entry


@pytest.mark.parametrize("authors", ["[family-n]", "Ye", "[{orcid: 1}]", "[[Ye]]", "[{name: 7}]"])
def test_a_citation_whose_authors_are_none_is_one_line(tmp_path, authors):
    """Fails if a cut CITATION.cff, whose last author is half a word, is a traceback."""
    (tmp_path / "CITATION.cff").write_text(f"title: x\nauthors: {authors}\npreferred-citation: {{}}\n")
    with pytest.raises(UserError, match="authors that have no names"):
        bibtex.load_citation(tmp_path / "CITATION.cff")


def test_a_message_is_one_short_line_whatever_it_is_about():
    """Fails if a text of a file is printed at its length, or steers the terminal."""
    line = str(UserError("made with another seed: " + "7" * 20000, "a\x00b\n\x1b[2J", "x" * 5000))
    assert len(line) < 2000 and line.isprintable() and "a\\x00b \\x1b[2J" in line
    assert str(UserError("no such file", "/a path/b", "a file")) == "no such file: /a path/b (expected a file)"


def test_a_log_gets_a_line_every_so_often(monkeypatch, capsys):
    monkeypatch.setattr(progress_module, "EVERY_SECONDS", 0.0)
    assert list(track([1, 2], "asking")) == [1, 2]
    assert "asking: 1/2" in capsys.readouterr().err


CHILD = """
import sys, time
from tenfold.runs import run
import tenfold.cli, typer
app = typer.Typer()
@app.command()
def wait():
    with run("tenfold", "train", config={}, seed=0, output=sys.argv[2] if len(sys.argv) > 2 else OUT):
        print("ready", flush=True)
        time.sleep(60)
tenfold.cli.main(app)
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_is_answered_with_how_to_go_on(tmp_path, number, code):
    """Fails if a signal leaves unfinished results, or says nothing of going on."""
    script = CHILD.replace("sys.argv[2] if len(sys.argv) > 2 else OUT", json.dumps(str(tmp_path / "run")))
    child = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert child.stdout.readline().strip() == "ready"
    child.send_signal(number)
    _, err = child.communicate(timeout=60)
    assert child.returncode == code and "--resume" in err and len(err.strip().splitlines()) == 1, err
    assert not (tmp_path / "run").exists()


def test_a_name_too_long_is_one_line(tmp_path):
    name = tmp_path / ("x" * 300)
    script = CHILD.replace("sys.argv[2] if len(sys.argv) > 2 else OUT", json.dumps(str(name)))
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert "File name too long" in done.stderr and time.monotonic() > 0
