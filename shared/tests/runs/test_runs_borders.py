"""Forged records, resumed durations, pickles out of proportion, odd terminals: what each border refuses or shows."""

import io
import json
import os
import signal
import subprocess
import sys
import time
import zipfile

import pytest
import torch
from rich.table import Table

from tenfold import UserError
from tenfold.cli.output import console, echo
from tenfold.cli.verify import require_one_process
from tenfold.pickled import load_pickled
from tenfold.runs import RunRecord, run
from tenfold.runs.parse import parse_yaml, require_plain
from tenfold.runs.unpickling import unpickle
from tenfold.testing.fuzz import Reading, _last_frame, undamaged
from tenfold.testing.mutations import YAML, hostile_pickles
from tenfold.testing.processes import fork


def _record(folder, **changes):
    with run("tenfold", "eval", config={"a": 1}, seed=0, output=folder) as current:
        current.metrics["ranks"] = 1
    path = folder / "run.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return path


def test_the_duration_of_a_resumed_run_is_that_of_all_its_legs(tmp_path):
    """Fails if only the last leg counts: the first one wrote for two seconds before it was killed."""

    def first():
        with run("tenfold", "train", config={}, seed=0, output=tmp_path) as current:
            current.log(1, loss=1.0)
            time.sleep(2)
            current.log(2, loss=1.0)
            os.kill(os.getpid(), signal.SIGKILL)

    os.waitpid(fork(first), 0)
    with run("tenfold", "train", config={}, seed=0, output=tmp_path) as current:
        current.log(3, loss=1.0)
    assert current.record.duration_seconds >= 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["metrics.jsonl", "run.json"]


def test_half_a_record_is_no_finished_run(tmp_path, caplog):
    """Fails if the file's being there is enough."""
    path = _record(tmp_path)
    with (
        pytest.raises(UserError, match="holds a finished run"),
        run("tenfold", "eval", config={}, seed=0, output=tmp_path),
    ):
        pass
    path.write_bytes(path.read_bytes()[:50])
    with run("tenfold", "eval", config={"b": 2}, seed=0, output=tmp_path):
        pass
    assert RunRecord.load(tmp_path).config == {"b": 2} and "counts as unfinished" in caplog.text


@pytest.mark.parametrize("step", ['"1"', "null", "[1]", "1.5"])
def test_a_curve_whose_step_is_no_number_is_named(tmp_path, step):
    """Fails if lines of a resumed run are compared with a text."""
    (tmp_path / "metrics.jsonl").write_text(f'{{"step": 1, "loss": 1.0}}\n{{"step": {step}, "loss": 1.0}}\n')
    with (
        pytest.raises(UserError, match=r"step .*metrics\.jsonl, line 2 .expected a number of steps"),
        run("tenfold", "train", config={}, seed=0, output=tmp_path) as current,
    ):
        current.log(2, loss=1.0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": "0"}, "seed"),
        ({"duration_seconds": -1}, "duration_seconds"),
        ({"extra": 1}, "extra"),
        ({"metrics": [1]}, "metrics"),
        ({"data": {"a": 1}}, "data"),
        ({"started": "soon"}, "started"),
    ],
)
def test_a_forged_record_is_refused_by_its_field(tmp_path, changes, message):
    """Fails if "0" counts as 0."""
    with pytest.raises(UserError, match=f"not a run record, {message}"):
        RunRecord.load(_record(tmp_path, **changes))


@pytest.mark.parametrize("ranks", ["2", 0, True, None, 2.5, 2])
def test_a_forged_number_of_ranks_is_refused(tmp_path, ranks):
    """Fails if a text is compared with a number."""
    record = RunRecord.load(_record(tmp_path, metrics={"ranks": ranks}))
    with pytest.raises(UserError, match="ranks"):
        require_one_process(record)


def test_text_from_elsewhere_is_shown_as_it_is(capsys):
    """Fails if a table reads markup in a name, which ends in a traceback, or an escape sequence gets through."""
    table = Table("name")
    table.add_row("[/bold][red]x :smile: \x1b[2J")
    console().print(table)
    echo("a\x1b]0;title\x07b\nsecond")
    shown = capsys.readouterr().out
    assert "[/bold][red]x :smile: \\x1b[2J" in shown and "a\\x1b]0;title\\x07b\nsecond" in shown


@pytest.mark.parametrize("environment", [{"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C", "PYTHONUTF8": "0"}])
def test_an_output_of_ascii_takes_the_claims_of_a_package(tmp_path, environment):
    """Fails if a dash or a Greek letter of a table ends in a UnicodeEncodeError."""
    script = (
        "import typer\nfrom tenfold.cli import main\nfrom tenfold.cli.output import console, echo\n"
        "app = typer.Typer()\n@app.command()\n"
        "def show():\n    echo('0.5 – 0.7 ± 0.1 β 漢')\n    console().print('α → ×')\n"
        "main(app)\n"
    )
    environment = {**os.environ, **environment}
    (tmp_path / "show.py").write_text(script, encoding="utf-8")
    done = subprocess.run([sys.executable, tmp_path / "show.py"], capture_output=True, env=environment, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.decode("ascii").split("\n")[:2] == ["0.5 - 0.7 +- 0.1 beta \\u6f22", "alpha -> x"]


@pytest.mark.parametrize("name", sorted(set(hostile_pickles("x")) - {"other values", "nested"}))
def test_a_hostile_pickle_is_one_line_at_once(name, tmp_path):
    """Fails if one is followed: some hang, some take all memory, one makes a folder."""
    start = time.process_time()
    with pytest.raises(UserError):
        require_plain(unpickle(hostile_pickles(tmp_path / "called")[name], "refs.p", latin1=True), "refs.p")
    assert time.process_time() - start < 10 and not (tmp_path / "called").exists()


@pytest.mark.parametrize("text", YAML)
def test_a_hostile_yaml_is_one_line_or_a_plain_value(text):
    """Fails if aliases that multiply are walked through."""
    start = time.process_time()
    try:
        assert len(str(parse_yaml(text, "a.yaml"))) < 1000
    except UserError as error:
        assert "a.yaml" in str(error)
    assert time.process_time() - start < 10


def test_a_file_of_torch_is_in_proportion(tmp_path):
    """Fails if a compressed archive, a view of stride 0 or shared tuples get as far as torch or its reader."""
    whole, view, packed, hostile = (tmp_path / f"{name}.pt" for name in ("whole", "view", "packed", "hostile"))
    torch.save({"a": torch.ones(3)}, whole)
    assert load_pickled(whole, "weights")["a"].sum() == 3
    torch.save({"a": torch.zeros(1).expand(10**9)}, view)
    made = io.BytesIO()
    with zipfile.ZipFile(whole) as old, zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as new:
        for entry in old.infolist():
            new.writestr(entry.filename, old.read(entry))
    packed.write_bytes(made.getvalue())
    hostile.write_bytes(hostile_pickles(tmp_path / "called")["shared tuples"])
    for path, reason in ((view, "fewer bytes than numbers"), (packed, "compressed"), (hostile, "beyond measure")):
        with pytest.raises(UserError, match=reason):
            load_pickled(path, "weights")


@pytest.mark.parametrize("kind", ["sparse", "compressed rows", "quantised"])
def test_a_tensor_that_is_not_stored_number_by_number_is_one_line(kind, tmp_path):
    """Fails if it is taken for weights: whatever reads them next raises an error of torch's."""
    made = {
        "sparse": lambda: torch.eye(3).to_sparse(),
        "compressed rows": lambda: torch.eye(3).to_sparse_csr(),
        "quantised": lambda: torch.quantize_per_tensor(torch.eye(3), 0.1, 0, torch.qint8),
    }[kind]()
    torch.save({"a": [made]}, tmp_path / "odd.pth")
    with pytest.raises(UserError, match=r"stored as \S+, not number by number"):
        load_pickled(tmp_path / "odd.pth", "weights")


def _hang(folder):
    while True:
        pass


def _fill(folder):
    return bytearray(3 * 2**30)


@pytest.mark.parametrize(
    ("read", "message"),
    [
        (lambda folder: json.loads("["), "JSONDecodeError"),
        (_fill, "MemoryError|wants"),
        (lambda folder: {"a": [torch.tensor([1.0, float("nan")])]}, "not finite"),
        (lambda folder: os.kill(os.getpid(), signal.SIGSEGV), "SIGSEGV"),
        (_hang, "hangs"),
    ],
)
def test_the_fuzzer_finds_what_is_wrong(tmp_path, monkeypatch, read, message):
    """Fails if the fuzzer lets a traceback, a hang, memory, NaN or a dead process pass."""
    monkeypatch.setattr("tenfold.testing.fuzz.CPU_SECONDS", 1)
    (tmp_path / "files").mkdir()
    found = undamaged([Reading("one", tmp_path / "files", read)], tmp_path)
    assert len(found) == 1, found
    assert any(word in found[0].what for word in message.split("|")), found
    assert _last_frame(["KeyError: 1"]) == "KeyError: 1 at ?"
