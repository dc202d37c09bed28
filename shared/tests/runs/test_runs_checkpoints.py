"""A checkpoint is complete or absent."""

import os
import signal
import subprocess
import sys

import pytest

from tenfold import UserError
from tenfold.runs import checkpoint_step, last_complete_checkpoint, write_checkpoint


def fill(folder):
    (folder / "weights").mkdir()
    (folder / "weights" / "model.bin").write_bytes(b"0123456789")
    (folder / "state.json").write_text("{}")


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_the_newest_checkpoints_stay(tmp_path):
    for step in (5, 10, 100, 20):
        write_checkpoint(tmp_path / "run", step, fill, keep=2)
    assert names(tmp_path / "run") == ["checkpoint-100", "checkpoint-20"]
    assert last_complete_checkpoint(tmp_path / "run") == tmp_path / "run" / "checkpoint-100"
    assert checkpoint_step(tmp_path / "run" / "checkpoint-100") == 100


def test_fewer_checkpoints_than_may_stay_all_stay(tmp_path):
    for step in (1, 2, 3, 4):
        write_checkpoint(tmp_path, step, fill, keep=5)
    assert names(tmp_path) == ["checkpoint-1", "checkpoint-2", "checkpoint-3", "checkpoint-4"]


def test_a_folder_without_checkpoints_has_none(tmp_path):
    assert last_complete_checkpoint(tmp_path) is None
    assert last_complete_checkpoint(tmp_path / "gone") is None


def no_marker(checkpoint):
    (checkpoint / "COMPLETE").unlink()


def broken_marker(checkpoint):
    (checkpoint / "COMPLETE").write_text("{")


def shortened(checkpoint):
    os.truncate(checkpoint / "weights" / "model.bin", 4)


def file_gone(checkpoint):
    (checkpoint / "state.json").unlink()


@pytest.mark.parametrize(
    ("tear", "reason"),
    [
        (no_marker, "no marker file"),
        (broken_marker, "unreadable marker"),
        (shortened, "weights/model.bin has 4 bytes instead of 10"),
        (file_gone, "state.json is missing"),
    ],
)
def test_a_torn_checkpoint_is_skipped_with_a_message(tmp_path, caplog, tear, reason):
    """Fails if last_complete_checkpoint takes the highest number without asking for the marker."""
    write_checkpoint(tmp_path, 5, fill)
    tear(write_checkpoint(tmp_path, 10, fill))
    assert last_complete_checkpoint(tmp_path) == tmp_path / "checkpoint-5"
    assert "skipping torn checkpoint" in caplog.text
    assert reason in caplog.text


def test_a_torn_checkpoint_is_replaced_by_its_successor(tmp_path):
    no_marker(write_checkpoint(tmp_path, 5, fill))
    (tmp_path / "checkpoint-5" / "stale").write_text("x")
    write_checkpoint(tmp_path, 5, fill)
    assert names(tmp_path / "checkpoint-5") == ["COMPLETE", "state.json", "weights"]
    assert names(tmp_path) == ["checkpoint-5"]


def test_rotation_counts_complete_checkpoints_only(tmp_path):
    """Fails if rotation sorts by name and takes torn folders for checkpoints."""
    write_checkpoint(tmp_path, 5, fill)
    no_marker(write_checkpoint(tmp_path, 10, fill))
    write_checkpoint(tmp_path, 15, fill, keep=2)
    assert names(tmp_path) == ["checkpoint-10", "checkpoint-15", "checkpoint-5"]


def test_a_failing_write_leaves_nothing(tmp_path):
    def fail(folder):
        fill(folder)
        raise OSError("disk full")

    write_checkpoint(tmp_path, 5, fill)
    with pytest.raises(OSError, match="disk full"):
        write_checkpoint(tmp_path, 10, fail)
    assert names(tmp_path) == ["checkpoint-5"]


def test_a_kill_inside_the_write_leaves_the_checkpoint_before(tmp_path):
    """Fails if write_checkpoint fills checkpoint-<step> in place."""
    script = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from tenfold.runs import write_checkpoint\n"
        "def fill(folder): (folder / 'model.bin').write_bytes(b'x' * 1000)\n"
        "def die(folder): fill(folder); os.kill(os.getpid(), signal.SIGKILL)\n"
        "write_checkpoint(sys.argv[1], 5, fill)\n"
        "write_checkpoint(sys.argv[1], 10, die)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert last_complete_checkpoint(tmp_path) == tmp_path / "checkpoint-5"
    assert names(tmp_path) == [".tmp-10", "checkpoint-5"]
    write_checkpoint(tmp_path, 10, fill)
    assert names(tmp_path) == ["checkpoint-10", "checkpoint-5"]


def test_a_path_that_is_no_checkpoint_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"expected checkpoint-<step>"):
        checkpoint_step(tmp_path / "weights")
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="cannot write checkpoints"):
        write_checkpoint(tmp_path / "file", 1, fill)
