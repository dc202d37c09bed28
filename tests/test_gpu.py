"""`benchmarks/gpu.sh` without a GPU: what it refuses, and its steps at small sizes."""

import subprocess
import sys
from pathlib import Path

import pytest

from tenfold.runs import read_json

ROOT = Path(__file__).parent.parent


def start(*arguments: str, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    command = ["bash", str(ROOT / "benchmarks" / "gpu.sh"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment)


@pytest.fixture
def environment(monkeypatch) -> dict[str, str]:
    import os

    return dict(os.environ) | {"PYTHON": sys.executable}


def test_every_paper_has_its_bench():
    sys.path.insert(0, str(ROOT / "benchmarks"))
    import gpu

    assert sorted(gpu.BENCHES) == sorted(path.name for path in (ROOT / "packages").iterdir() if path.is_dir())


def test_a_missing_device_and_a_folder_that_is_there_are_refused(environment, tmp_path):
    for arguments in (("--device", "cuda:99"), ("--device", "cpu", "--output", str(tmp_path))):
        done = start(*arguments, environment=environment)
        assert done.returncode == 2
        assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1


def test_steps_that_fail_or_take_too_long_are_said(tmp_path):
    sys.path.insert(0, str(ROOT / "benchmarks"))
    import gpu

    late = gpu.take("late", [sys.executable, "-c", "import time; time.sleep(60)"], tmp_path, 0.5, {})
    wrong = gpu.take("wrong", [sys.executable, "-c", "print('why'); raise SystemExit(3)"], tmp_path, 30, {})
    assert (late.exit_code, wrong.exit_code) == (None, 3)
    assert (tmp_path / "wrong.log").read_text() == "why\n"


@pytest.mark.slow
def test_a_dry_run_of_two_papers(environment, tmp_path):
    folder = tmp_path / "dry"
    words = ("--device", "cpu", "--only", "dtnet", "--only", "fitprune", "--minutes", "20", "--output", str(folder))
    done = start(*words, environment=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    summary = read_json(folder / "summary.json")
    assert [step["name"] for step in summary["steps"]] == ["tests", "fitprune-bench", "dtnet-bench"]
    assert {"device", "date", "torch"} <= set(summary)
    assert read_json(folder / "dtnet-bench.json")["status"] == "complete"
    assert "4 passed" in (folder / "tests.log").read_text()
