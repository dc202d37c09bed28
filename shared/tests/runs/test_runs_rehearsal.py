"""A rehearsal's record: seconds, peak memory and disk of every step, and nothing left of what lay in between."""

import json

import pytest

from tenfold import UserError
from tenfold.runs.rehearsal import rehearsed


def test_every_step_has_its_seconds_and_its_own_peak(tmp_path, capsys):
    """Fails if the peak of an earlier step stands at a later one (Linux), files in inner folders are not counted, or
    the folder is left behind."""
    with rehearsed("toy", {"size": 3}, tmp_path / "new" / "record.json", tmp_path) as (steps, place, metrics):
        assert steps.do("take memory", lambda: len(b"x" * 200_000_000)) == 200_000_000
        with steps.step("leave it"):
            (place / "model").mkdir()
            (place / "model" / "weights").write_bytes(bytes(30_000_000))
        metrics["answered"] = 2
    record = json.loads((tmp_path / "new" / "record.json").read_text())
    assert (record["verb"], record["status"], record["config"]) == ("rehearsal", "complete", {"size": 3})
    first, second = record["metrics"]["steps"]
    assert (first["step"], second["step"], record["metrics"]["answered"]) == ("take memory", "leave it", 2)
    assert first["peak_gb"] >= second["peak_gb"] + 0.15 and first["seconds"] >= 0
    assert (first["disk_gb"], second["disk_gb"]) == (0, 0.03)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new"]
    assert "take memory: " in capsys.readouterr().out


def test_a_rehearsal_that_fails_leaves_no_record(tmp_path):
    with pytest.raises(ValueError), rehearsed("toy", {}, tmp_path / "record.json", tmp_path) as (steps, _, _):
        steps.do("break", lambda: int("x"))
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_missing_is_made_and_one_that_cannot_be_is_said(tmp_path):
    with rehearsed("toy", {}, tmp_path / "record.json", tmp_path / "a" / "b") as (_, place, _):
        assert place.parent == tmp_path / "a" / "b"
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(UserError, match=r"cannot be made .*file"),
        rehearsed("toy", {}, tmp_path / "record.json", tmp_path / "file" / "b"),
    ):
        pass
