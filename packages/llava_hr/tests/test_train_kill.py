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
from typing import Any

import pytest
import torch
import yaml
from llava_hr_training import (
    PRETRAIN_STEPS,
    STEPS,
    bits,
    die_after,
    killed,
    tiny_settings,
    weights,
    write_tiny_data,
    write_tiny_parts,
)

from llava_hr.training import run as train
from llava_hr.training import stages
from llava_hr.training.run import run_train
from llava_hr.training.settings import TrainSettings
from tenfold.runs import last_complete_checkpoint


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> TrainSettings:
    data = write_tiny_data(tmp_path_factory.mktemp("data") / "mini")
    # Lines of the curve and checkpoints do not fall together.
    return tiny_settings(data, write_tiny_parts(tmp_path_factory.mktemp("parts")), log_steps=3)


@pytest.fixture(scope="module")
def whole(settings: TrainSettings, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training that nobody disturbed."""
    folder = tmp_path_factory.mktemp("run") / "whole"
    run_train(settings, 0, folder)
    return folder


def die_inside_checkpoint(stage: str, step: int, settings: TrainSettings, folder: Path, resume: bool = False) -> bool:
    """Train in a fork that kills itself when half of a stage's checkpoint is written."""

    class Dies(stages.StageTrainer):
        def _save_rng_state(self, output_dir: str) -> None:
            if self.order.name == stage and self.state.global_step == step:
                file = Path(output_dir, "optimizer.pt")
                os.truncate(file, file.stat().st_size // 2)
                os.kill(os.getpid(), signal.SIGKILL)
            super()._save_rng_state(output_dir)

    def work() -> None:
        stages.StageTrainer = Dies
        run_train(settings, 0, folder, resume)

    return killed(work)


def same(folder: Path, whole: Path) -> None:
    """Weights, curve, and the optimiser's state of the last step are those of the undisturbed training."""
    assert bits(folder) == bits(whole)
    last = f"checkpoint-finetune/checkpoint-{STEPS - PRETRAIN_STEPS}"
    ours, theirs = (torch.load(run / last / "optimizer.pt", weights_only=True) for run in (folder, whole))
    assert ours["param_groups"] == theirs["param_groups"] and len(ours["state"]) > 100
    for number, state in ours["state"].items():
        assert all(torch.equal(value, theirs["state"][number][name]) for name, value in state.items())


@pytest.mark.parametrize(
    ("stage", "step", "resumed"),
    [
        pytest.param("pretrain", 3, 2, marks=pytest.mark.slow),
        ("finetune", 5, PRETRAIN_STEPS + 4),
    ],
)
def test_killed_on_progress_it_ends_with_the_same_bits(
    stage: str, step: int, resumed: int, settings: TrainSettings, whole: Path, tmp_path: Path
) -> None:
    """SIGKILL after a step that no checkpoint holds, in the middle of an epoch.

    Fails if the order of the data depends on the steps before, if the optimiser's state is not taken up, or if the
    continuation begins at nothing.
    """
    folder = tmp_path / "run"
    assert die_after(stage, step, settings, folder)
    assert not (folder / "run.json").exists() and not (folder / "model").exists()
    assert run_train(settings, 0, folder, resume=True).resumed == resumed > 0
    same(folder, whole)


@pytest.mark.parametrize(
    ("stage", "step", "resumed"),
    [
        ("pretrain", 3, 2),
        pytest.param("finetune", 2, PRETRAIN_STEPS, marks=pytest.mark.slow),
        pytest.param("finetune", 6, PRETRAIN_STEPS + 4, marks=pytest.mark.slow),
    ],
)
def test_killed_inside_a_checkpoint_it_ends_with_the_same_bits(
    stage: str, step: int, resumed: int, settings: TrainSettings, whole: Path, tmp_path: Path
) -> None:
    """SIGKILL when half of a checkpoint is on the disk.

    Fails if half a checkpoint is trusted, or if stage 1 is done again when it was over.
    """
    folder = tmp_path / "run"
    assert die_inside_checkpoint(stage, step, settings, folder)
    place = folder / f"checkpoint-{stage}"
    assert (place / f".tmp-{step}").exists() and not (place / f"checkpoint-{step}").exists()
    assert run_train(settings, 0, folder, resume=True).resumed == resumed > 0
    same(folder, whole)


@pytest.mark.slow
def test_a_torn_checkpoint_is_passed_by(settings: TrainSettings, whole: Path, tmp_path: Path) -> None:
    """Fails if a folder with the name of a checkpoint is enough."""
    folder = tmp_path / "run"
    assert die_after("finetune", 5, settings, folder)
    good = last_complete_checkpoint(folder / "checkpoint-finetune")
    torn = good.parent / "checkpoint-6"
    torn.mkdir()
    for file in good.iterdir():
        if file.name != "COMPLETE":
            (torn / file.name).write_bytes(file.read_bytes()[:1000])
    assert run_train(settings, 0, folder, resume=True).resumed == PRETRAIN_STEPS + 4
    same(folder, whole)


@pytest.mark.slow
def test_killed_between_the_stages_and_before_the_end_it_ends_with_the_same_bits(
    settings: TrainSettings, whole: Path, tmp_path: Path
) -> None:
    """SIGKILL when stage 1's weights are handed on, and when the model is written. Fails if a stage that is done is
    done again, or one that is not is left out."""
    folder = tmp_path / "run"
    keep = train.Training._keep

    def dies_before(stage: str, half: bool) -> bool:
        def work() -> None:
            def kept(self: Any, name: str, *rest: Any) -> None:
                if name == stage and not half:
                    os.kill(os.getpid(), signal.SIGKILL)
                keep(self, name, *rest)
                if name == stage:
                    os.kill(os.getpid(), signal.SIGKILL)

            train.Training._keep = kept
            run_train(settings, 0, folder, resume=True)

        return killed(work)

    for stage in ("pretrain", "finetune"):
        for half in (False, True):
            assert dies_before(stage, half)
    assert not (folder / "model").exists()
    assert run_train(settings, 0, folder, resume=True).resumed == STEPS
    same(folder, whole)


@pytest.mark.slow
def test_what_does_not_move_the_weights_may_change_on_the_way(
    settings: TrainSettings, whole: Path, tmp_path: Path
) -> None:
    """The data moved elsewhere, workers read them. Fails if either is part of what must agree, or moves a bit."""
    folder, moved = tmp_path / "run", tmp_path / "moved"
    assert die_after("finetune", 3, settings, folder)
    shutil.copytree(settings.data.folder, moved)
    values = settings.model_dump()
    values["data"] |= {"folder": str(moved), "workers": 2}
    values["checkpoint_steps"] = 1
    run_train(TrainSettings.model_validate(values), 0, folder, resume=True)
    assert all(torch.equal(value, weights(whole)[name]) for name, value in weights(folder).items())


@pytest.mark.slow
def test_two_dozen_kills_one_after_the_other_change_nothing(
    settings: TrainSettings, whole: Path, tmp_path: Path
) -> None:
    """After every step, and inside every checkpoint, in turn. Fails if any of them leaves what the next trips over."""
    folder = tmp_path / "run"
    for stage, steps, written in (
        ("pretrain", PRETRAIN_STEPS, {2, 3}),
        ("finetune", STEPS - PRETRAIN_STEPS, {2, 4, 6}),
    ):
        for step in range(1, steps + 1):
            assert die_after(stage, step, settings, folder, resume=True), step
            if step in written:
                assert die_inside_checkpoint(stage, step, settings, folder, resume=True), step
    assert run_train(settings, 0, folder, resume=True).resumed > 0
    same(folder, whole)


@pytest.mark.slow
def test_the_command_itself_is_killed_from_outside(settings: TrainSettings, whole: Path, tmp_path: Path) -> None:
    """`llava-hr train` as a process, killed when a step is logged, and inside a write. Fails as the tests above do."""
    folder, config = tmp_path / "run", tmp_path / "tiny.yaml"
    config.write_text(yaml.safe_dump(settings.model_dump(mode="json")))
    command = [sys.executable, "-m", "llava_hr", "train", "--config", str(config), "--output", str(folder)]

    def logged() -> int:
        path = folder / "metrics.jsonl"
        rows = path.read_text().splitlines() if path.exists() else []
        return max((json.loads(line)["step"] for line in rows if line.endswith("}")), default=0)

    def writing() -> bool:
        return any(folder.glob("checkpoint-*/.tmp-*"))

    for reached in (lambda: logged() >= 1, writing, lambda: logged() >= PRETRAIN_STEPS + 3):
        process = subprocess.Popen([*command, "--resume"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        deadline = time.monotonic() + 300
        while not reached():
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.001)
        process.kill()
        process.communicate()
    done = subprocess.run([*command, "--resume"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "going on after step" in done.stderr
    assert bits(folder) == bits(whole)
