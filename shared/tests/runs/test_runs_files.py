"""Files appear whole or not at all; JSON lines survive a kill."""

import json
import os
import signal
import stat
import subprocess
import sys

import pytest

from tenfold import UserError
from tenfold.runs import (
    append_jsonl,
    atomic_directory,
    atomic_write_bytes,
    atomic_write_json,
    atomic_write_text,
    read_json,
    read_jsonl,
    read_text,
    read_yaml,
)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_user_error_is_one_line():
    error = UserError("broken\nyaml", "a.yaml, line 3", "a mapping\n  of keys")
    assert str(error) == "broken yaml: a.yaml, line 3 (expected a mapping of keys)"
    assert str(UserError("no such file", "x")) == "no such file: x"
    assert str(UserError("nothing to do")) == "nothing to do"


def test_written_text_is_there_and_nothing_else(tmp_path):
    atomic_write_text(tmp_path / "new" / "a.txt", "γ")
    atomic_write_bytes(tmp_path / "new" / "b.bin", b"\0\1")
    assert read_text(tmp_path / "new" / "a.txt") == "γ"
    assert names(tmp_path / "new") == ["a.txt", "b.bin"]


def test_written_files_are_readable_like_any_other(tmp_path):
    previous = os.umask(0o022)
    try:
        atomic_write_text(tmp_path / "a", "x")
    finally:
        os.umask(previous)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o644


def test_json_that_cannot_be_written_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.json"
    atomic_write_json(path, {"kept": 1})
    with pytest.raises(ValueError):
        atomic_write_json(path, {"loss": float("nan")})
    assert read_json(path) == {"kept": 1}
    assert names(tmp_path) == ["a.json"]


def test_a_kill_while_writing_leaves_the_old_file(tmp_path):
    """Fails if the content is written to `path` itself instead of beside it."""
    path = tmp_path / "a.txt"
    atomic_write_text(path, "old")
    script = (
        "import os, signal, sys, tenfold.runs.files as files\n"
        "files._rename = lambda *paths: os.kill(os.getpid(), signal.SIGKILL)\n"
        "files.atomic_write_text(sys.argv[1], 'new' * 100000)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(path)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert path.read_text() == "old"


def test_writing_over_a_folder_is_refused(tmp_path):
    with pytest.raises(UserError, match="is a folder"):
        atomic_write_text(tmp_path, "x")
    assert names(tmp_path) == []


def test_writing_below_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match=r"cannot write .* \(expected a writable folder\)"):
        atomic_write_text(tmp_path / "file" / "a.txt", "x")


def test_a_folder_appears_when_it_is_finished(tmp_path):
    with atomic_directory(tmp_path / "out") as folder:
        assert folder == tmp_path / ".tmp-out"
        (folder / "a").write_text("x")
        assert not (tmp_path / "out").exists()
    assert names(tmp_path) == ["out"]
    assert names(tmp_path / "out") == ["a"]


def test_a_folder_is_flushed_to_the_disk_before_it_gets_its_name(tmp_path, monkeypatch):
    """Fails if the rename comes first: after a power cut the name would stand for empty files."""
    flushed = []

    def fsync_tree(folder):
        flushed.append((names(folder), (tmp_path / "out").exists()))

    monkeypatch.setattr("tenfold.runs.files.fsync_tree", fsync_tree)
    with atomic_directory(tmp_path / "out") as folder:
        (folder / "a").write_text("x")
    assert flushed == [(["a"], False)]


def test_a_folder_that_fails_leaves_nothing(tmp_path):
    """Fails if the temporary folder is renamed or kept when the body raises."""
    with pytest.raises(KeyError), atomic_directory(tmp_path / "out") as folder:
        (folder / "a").write_text("x")
        raise KeyError
    assert names(tmp_path) == []


def test_what_a_killed_process_left_is_not_mixed_in(tmp_path):
    (tmp_path / ".tmp-out").mkdir()
    (tmp_path / ".tmp-out" / "half").write_text("x")
    with atomic_directory(tmp_path / "out") as folder:
        (folder / "a").write_text("x")
    assert names(tmp_path / "out") == ["a"]


def test_an_existing_folder_is_replaced_only_when_told(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old").write_text("x")
    with pytest.raises(UserError, match="already exists"), atomic_directory(tmp_path / "out"):
        pass
    assert names(tmp_path / "out") == ["old"]
    with atomic_directory(tmp_path / "out", replace=True) as folder:
        (folder / "new").write_text("x")
    assert names(tmp_path / "out") == ["new"]
    assert names(tmp_path) == ["out"]


def test_a_link_to_a_folder_stays_a_link(tmp_path):
    """Fails if the link itself is moved aside and deleted."""
    (tmp_path / "out").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "out")
    with atomic_directory(tmp_path / "link", replace=True) as folder:
        (folder / "new").write_text("x")
    assert (tmp_path / "link").is_symlink()
    assert names(tmp_path / "link") == ["new"]
    assert names(tmp_path) == ["link", "out"]


def test_a_file_in_the_way_of_a_folder_is_kept(tmp_path):
    (tmp_path / "out").write_text("x")
    with pytest.raises(UserError, match="is a file"), atomic_directory(tmp_path / "out", replace=True):
        pass
    assert (tmp_path / "out").read_text() == "x"


def test_json_lines_come_back(tmp_path):
    path = tmp_path / "new" / "a.jsonl"
    append_jsonl(path, {"step": 1, "text": "two\nlines"})
    append_jsonl(path, {"step": 2})
    assert read_jsonl(path) == [{"step": 1, "text": "two\nlines"}, {"step": 2}]


def test_a_torn_last_line_is_dropped_and_never_glued_to_the_next(tmp_path, caplog):
    """Fails if append_jsonl writes behind half a line, or read_jsonl refuses it."""
    path = tmp_path / "a.jsonl"
    append_jsonl(path, {"step": 1})
    with open(path, "ab") as file:
        file.write(b'{"step": 2, "lo')
    assert read_jsonl(path) == [{"step": 1}]
    assert "torn last line" in caplog.text
    append_jsonl(path, {"step": 2})
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n'


def test_a_last_line_that_only_lacks_its_newline_is_kept(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"step": 1}')
    assert read_jsonl(path) == [{"step": 1}]
    append_jsonl(path, {"step": 2})
    assert read_jsonl(path) == [{"step": 1}, {"step": 2}]


def test_a_broken_last_line_that_was_written_whole_is_named(tmp_path):
    """Fails if every broken last line is taken for a torn one."""
    (tmp_path / "a.jsonl").write_text('{"a": 1}\n{"a": 2\n')
    with pytest.raises(UserError, match=r"a\.jsonl, line 2"):
        read_jsonl(tmp_path / "a.jsonl")


@pytest.mark.parametrize("broken", ['{"step": 1', "[1, 2]", '"text"', "\udcff"])
def test_any_other_broken_line_is_named(tmp_path, broken):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"a": 1}\n' + broken.encode("utf-8", "surrogateescape") + b'\n{"a": 2}\n')
    with pytest.raises(UserError, match=r"a\.jsonl, line 2"):
        read_jsonl(path)


def test_missing_and_broken_files_are_named(tmp_path):
    with pytest.raises(UserError, match=r"no such file: .*gone\.jsonl"):
        read_jsonl(tmp_path / "gone.jsonl")
    with pytest.raises(UserError, match="cannot read"):
        read_text(tmp_path)
    (tmp_path / "a").write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match="is not text"):
        read_text(tmp_path / "a")
    (tmp_path / "b.json").write_text('{\n "a": ,\n}')
    with pytest.raises(UserError, match=r"broken JSON .*b\.json, line 2"):
        read_json(tmp_path / "b.json")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: [1, 2\n", "broken YAML"),
        ("a: 1\nb: 2\na: 3\n", r"key 'a' twice.*line 3"),
        ("x:\n  a: 1\n  a: 2\n", r"key 'a' twice.*line 3"),
        ("a: !!python/object/apply:os.getcwd []\n", "broken YAML"),
    ],
)
def test_broken_yaml_is_named_with_its_line(tmp_path, text, message):
    path = tmp_path / "a.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        read_yaml(path)


def test_yaml_comes_back(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("a: {b: [1, 2.5, text, null]}\n")
    assert read_yaml(path) == {"a": {"b": [1, 2.5, "text", None]}}
    assert json.dumps(read_yaml(path)) == '{"a": {"b": [1, 2.5, "text", null]}}'
