"""A run leaves its record when it is complete, and nothing but its metrics when it is not."""

import json
import math
import os
import platform
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from tenfold import UserError
from tenfold.runs import RunRecord, append_jsonl, fingerprint, read_jsonl, run
from tenfold.runs.provenance import git_source, package_source


def names(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def finished(output, **config):
    with run("tenfold", "fit", config=config, seed=3, output=output) as r:
        r.metrics["accuracy"] = 0.5
    return r.record


def test_a_finished_run_says_what_it_was(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.png").write_text("x")
    config = {"ratio": 0.6, "layers": (1, 2), "folder": tmp_path}
    output = tmp_path / "run"
    with run("tenfold", "fit", config=config, seed=3, output=output, data={"images": tmp_path / "images"}) as r:
        r.log(1, loss=torch.tensor(0.5), rate=np.float32(0.25))
        r.file("tables/recipe.json").write_text("{}")
        r.metrics["loss"] = np.float64(0.5)
    record = RunRecord.load(output)
    assert record == r.record == RunRecord.load(output / "run.json")
    assert record.config == {"ratio": 0.6, "layers": [1, 2], "folder": str(tmp_path)}
    assert record.config_sha256 == fingerprint(record.config)
    assert record.data == {"images": fingerprint(tmp_path / "images")}
    assert record.outputs == {"tables/recipe.json": fingerprint(output / "tables" / "recipe.json")}
    assert record.metrics == {"loss": 0.5}
    assert (record.seed, record.package, record.verb, record.status) == (3, "tenfold", "fit", "complete")
    assert record.python == platform.python_version()
    assert record.libraries["numpy"] == np.__version__
    assert record.hardware.threads == torch.get_num_threads()
    assert record.hardware.device == "cpu"
    assert record.id.startswith("tenfold-fit-")
    assert read_jsonl(output / "metrics.jsonl") == [{"step": 1, "loss": 0.5, "rate": 0.25}]
    assert names(output) == ["metrics.jsonl", "run.json", "tables/recipe.json"]


def test_a_run_that_fails_leaves_only_its_metrics_and_when_it_began(tmp_path):
    """Fails if run.json is written before the body has ended, or Run.file points into the run's folder."""
    with (
        pytest.raises(ZeroDivisionError),
        run("tenfold", "fit", config={}, seed=0, output=tmp_path / "r") as r,
    ):
        r.log(1, loss=1.0)
        r.file("recipe.json").write_text("{}")
        raise ZeroDivisionError
    assert names(tmp_path / "r") == ["checkpoint-legs", "metrics.jsonl"]


def test_a_run_that_fails_before_its_first_metric_leaves_no_folder(tmp_path):
    failed = pytest.raises(ZeroDivisionError)
    with failed, run("tenfold", "fit", config={}, seed=0, output=tmp_path / "r"):
        raise ZeroDivisionError
    assert not (tmp_path / "r").exists()


def test_a_metric_that_cannot_be_recorded_publishes_nothing(tmp_path):
    refused = pytest.raises(TypeError, match="cannot be recorded")
    with refused, run("tenfold", "fit", config={}, seed=0, output=tmp_path / "r") as r:
        r.file("recipe.json").write_text("{}")
        r.metrics["model"] = object()
    assert not (tmp_path / "r").exists()


def test_a_kill_leaves_no_record_and_the_next_run_starts_clean(tmp_path):
    script = (
        "import os, signal, sys\n"
        "from tenfold.runs import run\n"
        "with run('tenfold', 'fit', config={}, seed=0, output=sys.argv[1]) as r:\n"
        "    r.log(1, loss=1.0); r.file('half.json').write_text('{')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert not (tmp_path / "run.json").exists()
    assert read_jsonl(tmp_path / "metrics.jsonl") == [{"step": 1, "loss": 1.0}]
    assert finished(tmp_path).outputs == {}
    assert names(tmp_path) == ["metrics.jsonl", "run.json"]


def test_resumed_metrics_read_as_if_nothing_had_happened(tmp_path):
    """Fails if Run.log appends steps that the killed run had already written."""
    for step in (1, 2, 3):
        append_jsonl(tmp_path / "metrics.jsonl", {"step": step, "loss": 1 / step})
    with run("tenfold", "train", config={}, seed=0, output=tmp_path) as r:
        r.log(2, loss=0.25)
        r.log(3, loss=0.125)
    assert [row["step"] for row in read_jsonl(tmp_path / "metrics.jsonl")] == [1, 2, 3]
    assert read_jsonl(tmp_path / "metrics.jsonl")[1]["loss"] == 0.25


def test_a_finished_run_is_never_written_over(tmp_path):
    before = finished(tmp_path / "r")
    with pytest.raises(UserError, match="holds a finished run"):
        finished(tmp_path / "r")
    assert RunRecord.load(tmp_path / "r") == before


def test_a_run_without_a_folder_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with run("tenfold", "eval", config={}, seed=0, output=None) as r:
        r.log(1, loss=1.0)
        with pytest.raises(UserError, match="writes no files"):
            r.file("a.json")
    assert r.record.outputs == {}
    assert list(tmp_path.iterdir()) == []


def test_checkpoints_and_logs_are_not_outputs(tmp_path):
    with run("tenfold", "train", config={}, seed=0, output=tmp_path) as r:
        for name in (
            "checkpoint-5/model.bin",
            ".tmp-10/model.bin",
            "wandb/x",
            "model.bin",
            "deep/checkpoint",
        ):
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_text("x")
    assert list(r.record.outputs) == ["deep/checkpoint", "model.bin"]


def test_values_that_are_no_numbers_are_recorded_as_nothing(tmp_path):
    with run("tenfold", "train", config={}, seed=0, output=tmp_path) as r:
        r.log(1, loss=math.nan)
        r.metrics["perplexity"] = math.inf
    assert read_jsonl(tmp_path / "metrics.jsonl") == [{"step": 1, "loss": None}]
    assert RunRecord.load(tmp_path).metrics == {"perplexity": None}


def test_missing_data_and_unusable_folders_are_named(tmp_path):
    data = {"coco": tmp_path / "coco"}
    refused = pytest.raises(UserError, match=r"no such file or folder: .*coco")
    with refused, run("tenfold", "eval", config={}, seed=0, output=tmp_path / "r", data=data):
        raise AssertionError("must not start")
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="cannot write a run's folder"):
        finished(tmp_path / "file")
    assert names(tmp_path) == ["file"]


def test_a_ready_fingerprint_is_taken_as_it_is(tmp_path):
    ready = fingerprint({"miniworld": 0})
    with run("tenfold", "eval", config={}, seed=0, output=None, data={"miniworld": ready}) as r:
        pass
    assert r.record.data == {"miniworld": ready}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": "many"}, r"not a run record, seed: .*run\.json"),
        ({"commit": 7}, "commit"),
        ({"config_sha256": "abc"}, "config_sha256"),
        ({"surprise": 1}, "surprise"),
        ({"status": "running"}, "status"),
    ],
)
def test_a_wrong_record_names_its_field(tmp_path, change, message):
    finished(tmp_path)
    content = json.loads((tmp_path / "run.json").read_text())
    (tmp_path / "run.json").write_text(json.dumps(content | change))
    with pytest.raises(UserError, match=message):
        RunRecord.load(tmp_path)


def test_a_missing_or_broken_record_is_named(tmp_path):
    with pytest.raises(UserError, match=r"no such file: .*run\.json"):
        RunRecord.load(tmp_path)
    (tmp_path / "run.json").write_text("[]")
    with pytest.raises(UserError, match="the whole file"):
        RunRecord.load(tmp_path)


def test_wandb_is_named_with_its_extra_only_when_asked_for(tmp_path, monkeypatch):
    """Fails if wandb is imported whether or not a project is given."""
    monkeypatch.setitem(sys.modules, "wandb", None)
    finished(tmp_path / "without")
    message = r'wandb is not installed: project p \(expected pip install "fit-x\[wandb\]"\)'
    refused = pytest.raises(UserError, match=message)
    with refused, run("fit_x", "train", config={}, seed=0, output=tmp_path / "with", wandb_project="p"):
        raise AssertionError("must not start")
    assert names(tmp_path) == ["without/run.json"]


def test_a_folder_called_wandb_is_not_taken_for_it(monkeypatch):
    """Fails if whatever imports under the name is used: a plain folder imports as an empty package."""
    monkeypatch.setitem(sys.modules, "wandb", ModuleType("wandb"))
    refused = pytest.raises(UserError, match="wandb is not installed")
    with refused, run("tenfold", "train", config={}, seed=0, output=None, wandb_project="p"):
        raise AssertionError("must not start")


def test_wandb_gets_the_curves_offline(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    monkeypatch.delenv("WANDB_MODE", raising=False)
    seen = {}

    class Tracker:
        def log(self, values, step):
            seen.setdefault("log", []).append((step, values))

        def finish(self, exit_code):
            seen["exit_code"] = exit_code

    def init(**options):
        seen.update(options)
        return Tracker()

    monkeypatch.setattr(wandb, "init", init)
    with run("tenfold", "train", config={"lr": 1.0}, seed=0, output=tmp_path, wandb_project="p") as r:
        r.log(1, loss=0.5)
    assert (seen["mode"], seen["project"], seen["name"]) == ("offline", "p", r.id)
    assert seen["log"] == [(1, {"loss": 0.5})]
    assert seen["exit_code"] == 0
    monkeypatch.setenv("WANDB_MODE", "disabled")
    refused = pytest.raises(ZeroDivisionError)
    with refused, run("tenfold", "train", config={}, seed=0, output=None, wandb_project="p"):
        raise ZeroDivisionError
    assert (seen["mode"], seen["exit_code"]) == ("disabled", 1)


@pytest.mark.slow
def test_wandb_itself_writes_an_offline_run(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.delenv("WANDB_MODE", raising=False)
    with run("tenfold", "train", config={"lr": 1.0}, seed=0, output=tmp_path, wandb_project="p") as r:
        r.log(1, loss=0.5)
    assert list((tmp_path / "wandb").glob("offline-run-*"))
    assert RunRecord.load(tmp_path).outputs == {}


GIT = {name: "x" for name in ("GIT_AUTHOR_NAME", "GIT_COMMITTER_NAME")} | {
    name: "x@example.org" for name in ("GIT_AUTHOR_EMAIL", "GIT_COMMITTER_EMAIL")
}


def git(folder: Path, *arguments: str) -> str:
    if shutil.which("git") is None:
        pytest.skip("git is not installed")
    command = ["git", "-C", str(folder), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True, env=os.environ | GIT).stdout.strip()


def repository(folder: Path) -> str:
    (folder / "one").mkdir(parents=True)
    (folder / "two").mkdir()
    (folder / "one" / "a.py").write_text("x = 1\n")
    git(folder, "init", "-q")
    git(folder, "add", ".")
    git(folder, "commit", "-q", "-m", "first")
    return git(folder, "rev-parse", "HEAD")


def test_git_tells_the_commit_and_whether_the_package_s_files_differ(tmp_path):
    commit = repository(tmp_path)
    assert git_source(tmp_path / "one").commit == commit
    assert git_source(tmp_path / "one").dirty is False
    (tmp_path / "two" / "b.py").write_text("x = 1\n")
    assert git_source(tmp_path / "one").dirty is False
    (tmp_path / "one" / "a.py").write_text("x = 2\n")
    assert git_source(tmp_path / "one").dirty is True


def test_outside_a_repository_nothing_is_known(tmp_path):
    assert git_source(tmp_path).commit is None
    assert git_source(tmp_path).dirty is None


def install(site: Path, monkeypatch, direct_url: dict | None, stamp: dict | None = None) -> None:
    info = site / "fictional_paper-1.2.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: fictional-paper\nVersion: 1.2\n")
    if direct_url is not None:
        (info / "direct_url.json").write_text(json.dumps(direct_url))
    module = site / "fictional_paper"
    module.mkdir()
    (module / "__init__.py").write_text("")
    if stamp is not None:
        (module / "_build.json").write_text(json.dumps(stamp))
    monkeypatch.syspath_prepend(site)


def test_the_commit_comes_from_how_the_package_was_installed(tmp_path, monkeypatch):
    """Fails if package_source asks git in the working directory."""
    commit = repository(tmp_path / "elsewhere")
    monkeypatch.chdir(tmp_path / "elsewhere")
    editable = {"url": (tmp_path / "elsewhere" / "one").as_uri(), "dir_info": {"editable": True}}
    from_git = {"url": "https://example.org/x", "vcs_info": {"vcs": "git", "commit_id": "a" * 40}}
    stamp = {"commit": "b" * 40, "dirty": True}
    cases = {
        "plain": (None, None, (None, None)),
        "git": (from_git, None, ("a" * 40, False)),
        "git_and_stamp": (from_git, stamp, ("a" * 40, False)),
        "stamp": ({"url": "file:///x", "dir_info": {}}, stamp, ("b" * 40, True)),
        "editable": (editable, None, (commit, False)),
        "folder": (editable | {"dir_info": {}}, None, (None, None)),
    }
    for name, (direct_url, build, expected) in cases.items():
        with monkeypatch.context() as patch:
            install(tmp_path / name, patch, direct_url, build)
            source = package_source("fictional_paper")
            assert (source.commit, source.dirty) == expected, name


def test_the_record_carries_version_and_commit(tmp_path, monkeypatch):
    install(tmp_path / "site", monkeypatch, None, {"commit": "b" * 40, "dirty": False})
    with run("fictional_paper", "eval", config={}, seed=0, output=None) as r:
        pass
    # A record is dirty, too, when tenfold's own files differ from their commit.
    assert (r.record.version, r.record.commit) == ("1.2", "b" * 40)
    assert r.record.dirty is bool(package_source("tenfold").dirty)
    assert r.record.libraries["fictional-paper"] == "1.2"
    assert r.record.id.startswith("fictional-paper-eval-")
