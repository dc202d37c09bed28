"""D10, D12: the command says what is wrong in one line with exit code 2, and every run is on record."""

import json

import pytest
from gamma_mod_releases import CONFIG, write_release
from typer.testing import CliRunner

from gamma_mod.commands.app import app
from tenfold.cli import main as run_app


def run(capsys, monkeypatch, *argv):
    """The command as a user starts it: exit code, stdout, stderr."""
    monkeypatch.setattr("sys.argv", ["gamma-mod", *map(str, argv)])
    with pytest.raises(SystemExit) as left:
        run_app(app)
    captured = capsys.readouterr()
    return left.value.code or 0, captured.out, captured.err


REFUSED = {
    "no such model": (["demo", "--model", "nowhere"], "nowhere"),
    "no such config": (["train", "--config", "7b"], "no such config"),
    "unknown setting": (["train", "--config", "mini", "--set", "conversion.ratio=1"], "conversion.ratio"),
    "ratio out of range": (["train", "--config", "mini", "--set", "conversion.routing_ratio=1.5"], "routing_ratio"),
    "resume without a folder": (["train", "--config", "mini", "--resume"], "--output"),
    "unknown benchmark": (["eval", "--benchmark", "imagenet"], "imagenet"),
    "no data folder": (["eval", "--benchmark", "gqa", "--data", "nowhere"], "nowhere"),
    "set without config": (["eval", "--set", "batch=2"], "--set without --config"),
    "image without question": (["demo", "--image", "nowhere.png"], "nowhere.png"),
    "threshold out of range": (["eval", "--threshold", "2"], "threshold"),
    "no release": (["convert", "nowhere", "out"], "nowhere"),
    "unknown format": (["convert", "a", "b", "--to", "onnx"], "--to onnx"),
    "ratio for a release": (["convert", "a", "b", "--to", "official", "--routing-ratio", "0.3"], "--routing-ratio"),
    "no CUDA": (["bench", "--device", "cuda"], "CUDA"),
    "layers that are none": (["bench", "--layers", "some"], "layers"),
    "no run": (["verify", "nowhere"], "nowhere"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_wrong_is_one_line_with_exit_code_2(name, capsys, monkeypatch, tmp_path):
    """No traceback, nothing written. Fails if an error is swallowed, or leaves half a folder."""
    monkeypatch.chdir(tmp_path)
    argv, word = REFUSED[name]
    code, _, err = run(capsys, monkeypatch, *argv)
    lines = [line for line in err.strip().splitlines() if line]
    assert code == 2 and len(lines) == 1 and word in lines[0], err
    assert not list(tmp_path.iterdir())


def test_a_truncated_picture_is_named(capsys, monkeypatch, tmp_path):
    (tmp_path / "cat.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"0" * 40)
    code, _, err = run(
        capsys, monkeypatch, "demo", "--image", tmp_path / "cat.png", "--question", "What?", "--output", tmp_path / "d"
    )
    assert code == 2 and "cat.png" in err and not (tmp_path / "d").exists()


def test_convert_there_and_back_by_the_command(capsys, monkeypatch, tmp_path):
    source = write_release(tmp_path / "release")
    code, out, _ = run(capsys, monkeypatch, "convert", source, tmp_path / "host", "--routing-ratio", "0.34")
    assert code == 0 and "3 converted layers" in out
    code, _, _ = run(capsys, monkeypatch, "convert", tmp_path / "host", tmp_path / "back", "--to", "official")
    assert code == 0 and json.loads((tmp_path / "back" / "config.json").read_text()) == CONFIG
    code, _, err = run(capsys, monkeypatch, "convert", source, tmp_path / "host")
    assert code == 2 and "already exists" in err


def test_runs_are_on_record_verified_and_cited(capsys, monkeypatch, tmp_path):
    """Fails if a verb leaves no run.json, or if doing it again gives something else."""
    folder = tmp_path / "arank"
    code, out, _ = run(capsys, monkeypatch, "arank", "--samples", 2, "--device", "cpu", "--output", folder)
    assert code == 0 and "layers to convert" in out
    assert json.loads((folder / "run.json").read_text())["package"] == "gamma_mod"
    code, out, _ = run(capsys, monkeypatch, "verify", folder)
    assert code == 0, out
    code, out, _ = run(capsys, monkeypatch, "cite", folder)
    assert code == 0 and "2410.13859" in out and "config" in out.lower()
    record = json.loads((folder / "run.json").read_text())
    record["metrics"]["arank"][0] += 9
    (folder / "run.json").write_text(json.dumps(record))
    code, _, _ = run(capsys, monkeypatch, "verify", folder)
    assert code == 1


def test_dry_run_prints_the_papers_numbers(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    code, out, _ = run(capsys, monkeypatch, "train", "--config", "llava-hr-7b", "--dry-run")
    assert code == 0
    for word in ("7,283,917,995", "8,192", "28: 3-30", "8 x 2 x 8 = 128", "5,198", "156", "2e-05", "0.01", "37.8%"):
        assert word in out, word


def test_help_of_every_verb():
    runner = CliRunner()
    for verb in ("train", "eval", "demo", "arank", "convert", "bench", "claims", "cite", "verify"):
        found = runner.invoke(app, [verb, "--help"])
        assert found.exit_code == 0 and "Example" in found.output, verb
    assert "testdev_balanced_questions.json" in runner.invoke(app, ["eval", "--help"]).output
