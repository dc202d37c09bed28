"""A training that is killed and goes on ends with the bits of one that was left alone, in both stages."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from dtnet_fixtures import STEPS, XE_STEPS, die_after, killed, sha256, tiny_settings, weights, write_tiny_data

from dtnet.training.run import run_train
from dtnet.training.settings import TrainSettings
from tenfold.runs import last_complete_checkpoint


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_data(tmp_path_factory.mktemp("data") / "mini")


@pytest.fixture(scope="module")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training that nobody disturbed."""
    folder = tmp_path_factory.mktemp("run") / "whole"
    run_train(tiny_settings(data), 0, folder)
    return folder


def die_inside_checkpoint(step: int, settings: TrainSettings, folder: Path, resume: bool = False) -> bool:
    """Train in a fork that kills itself when half of the checkpoint of that step is written."""
    save = torch.save

    def work() -> None:
        def half(state, path) -> None:
            save(state, path)
            if state["progress"]["step"] == step:
                os.truncate(path, path.stat().st_size // 2)
                os.kill(os.getpid(), signal.SIGKILL)

        torch.save = half
        run_train(settings, 0, folder, resume)

    return killed(work)


def same(folder: Path, whole: Path) -> None:
    """Weights, curve, and the optimiser's state of the last step are those of the undisturbed training."""
    assert weights(folder) == weights(whole)
    assert (folder / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()
    last = f"checkpoint-{STEPS}/state.pt"
    states = [torch.load(run / last, weights_only=True) for run in (folder, whole)]
    assert states[0]["progress"] == states[1]["progress"]
    groups = [state["optimizer"]["param_groups"] for state in states]
    assert groups[0] == groups[1]
    ours, theirs = (state["optimizer"]["state"] for state in states)
    assert ours.keys() == theirs.keys() and len(ours) > 40
    assert all(torch.equal(ours[n][name], theirs[n][name]) for n in ours for name in ours[n])


@pytest.mark.parametrize("step", [7, XE_STEPS + 2], ids=["xe", "scst"])
def test_killed_on_progress_it_ends_with_the_same_bits(step: int, data: Path, whole: Path, tmp_path: Path) -> None:
    """SIGKILL after a step that no checkpoint holds.

    Fails if a batch, its augmentation or its dropout depends on the batches before, if the optimiser's state is not
    taken up, or if the continuation begins at nothing.
    """
    folder = tmp_path / "run"
    assert die_after(step, tiny_settings(data), folder)
    assert not (folder / "run.json").exists() and not (folder / "model").exists()
    trained = run_train(tiny_settings(data), 0, folder, resume=True)
    assert 0 < trained.resumed < step
    same(folder, whole)


@pytest.mark.parametrize(
    "step",
    [
        pytest.param(4, id="mid-xe"),
        pytest.param(XE_STEPS, id="switch"),
        pytest.param(XE_STEPS + 3, id="end of an epoch", marks=pytest.mark.slow),
    ],
)
def test_killed_inside_a_checkpoint_it_ends_with_the_same_bits(
    step: int, data: Path, whole: Path, tmp_path: Path
) -> None:
    """SIGKILL when half of a checkpoint is on the disk.

    Fails if half a checkpoint is trusted, or if the validation's best is lost with it.
    """
    folder = tmp_path / "run"
    assert die_inside_checkpoint(step, tiny_settings(data), folder)
    assert (folder / f".tmp-{step}").exists() and not (folder / f"checkpoint-{step}").exists()
    trained = run_train(tiny_settings(data), 0, folder, resume=True)
    assert 0 < trained.resumed < step
    same(folder, whole)


@pytest.mark.slow
def test_a_torn_checkpoint_is_passed_by(data: Path, whole: Path, tmp_path: Path) -> None:
    """Fails if a folder with the name of a checkpoint is enough."""
    folder = tmp_path / "run"
    assert die_after(9, tiny_settings(data), folder)
    good = last_complete_checkpoint(folder)
    torn = folder / "checkpoint-15"
    torn.mkdir()
    (torn / "state.pt").write_bytes((good / "state.pt").read_bytes()[:4000])
    trained = run_train(tiny_settings(data), 0, folder, resume=True)
    assert trained.resumed == 8
    same(folder, whole)


def test_what_does_not_move_the_weights_may_change_on_the_way(data: Path, whole: Path, tmp_path: Path) -> None:
    """The data moved elsewhere, workers read them. Fails if either is part of what must agree, or moves a bit."""
    folder, moved = tmp_path / "run", tmp_path / "moved"
    assert die_after(7, tiny_settings(data), folder)
    shutil.copytree(data, moved)
    run_train(tiny_settings(moved, data={"workers": 1, "in_memory": False}), 0, folder, resume=True)
    assert weights(folder) == weights(whole)


@pytest.mark.slow
def test_two_dozen_kills_one_after_the_other_change_nothing(data: Path, whole: Path, tmp_path: Path) -> None:
    """After every step, and inside every checkpoint, in turn. Fails if any of them leaves what the next trips over."""
    folder, settings = tmp_path / "run", tiny_settings(data)
    written = {2, 4, 5, 6, 8, 10, 12, 13, 14, 16}  # every second step, and the end of an epoch
    for step in range(1, STEPS + 1):
        assert die_after(step, settings, folder, resume=True), step
        if step in written:
            assert die_inside_checkpoint(step, settings, folder, resume=True), step
    assert run_train(settings, 0, folder, resume=True).resumed == 14
    same(folder, whole)


@pytest.mark.slow
def test_the_command_itself_is_killed_from_outside(data: Path, whole: Path, tmp_path: Path) -> None:
    """`dtnet train` as a process, killed when a step is logged, and inside a write. Fails as the tests above do."""
    folder, config = tmp_path / "run", tmp_path / "tiny.yaml"
    config.write_text(yaml.safe_dump(tiny_settings(data).model_dump(mode="json")))
    command = [
        sys.executable,
        "-m",
        "dtnet",
        "train",
        "--config",
        str(config),
        "--output",
        str(folder),
        "--resume",
    ]

    def logged() -> int:
        path = folder / "metrics.jsonl"
        rows = (
            [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")] if path.exists() else []
        )
        return max((row["step"] for row in rows), default=0)

    for reached in (lambda: logged() >= 6, lambda: any(folder.glob(".tmp-[0-9]*")), lambda: logged() >= XE_STEPS + 2):
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        deadline = time.monotonic() + 300
        while not reached():
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.001)
        process.kill()
        process.communicate()
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "going on after step" in done.stderr
    assert weights(folder) == weights(whole)
    assert sha256(folder / "metrics.jsonl") == sha256(whole / "metrics.jsonl")
