"""transformers' Trainer, killed and resumed, ends with the same weights."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("train_and_die.py")
STEPS = 9


@pytest.fixture(scope="module")
def outcome(tmp_path_factory) -> dict:
    """What `train_and_die.py` saw: one interpreter trains, dies (in forks) and resumes."""
    folder = tmp_path_factory.mktemp("trainer")
    done = subprocess.run([sys.executable, SCRIPT, folder], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads((folder / "outcome.json").read_text())


@pytest.mark.parametrize("death", ["at step 7", "inside the write of checkpoint 6"])
def test_a_killed_and_resumed_training_ends_bit_identical(outcome, death):
    """Fails if the mixin saves in place, or resumes without the optimiser's or the generators' state."""
    seen = outcome[death]
    assert seen["killed"]
    assert seen["resumed_from"] > 0
    assert seen["steps"] == STEPS
    assert seen["sha256"] == outcome["uninterrupted"]["sha256"]


def test_a_kill_inside_the_write_leaves_no_checkpoint_of_that_name(outcome):
    seen = outcome["inside the write of checkpoint 6"]
    assert seen["left"] == [".tmp-6", "checkpoint-3"]
    assert seen["resumed_from"] == 3
    assert outcome["at step 7"]["resumed_from"] == 6


def test_a_torn_checkpoint_of_plain_trainer_is_skipped_with_a_message(outcome):
    """Fails if train(resume_from_checkpoint=True) asks transformers for the last checkpoint."""
    seen = outcome["a torn checkpoint-8"]
    assert seen["resumed_from"] == 6
    assert "skipping torn checkpoint" in seen["message"]
    assert seen["sha256"] == outcome["uninterrupted"]["sha256"]


def test_the_limit_counts_complete_checkpoints_and_leaves_no_temporary_folder(outcome):
    assert outcome["uninterrupted"]["left"] == ["checkpoint-6", "checkpoint-9"]
    assert outcome["at step 7"]["final"] == ["checkpoint-6", "checkpoint-9"]
    assert outcome["inside the write of checkpoint 6"]["final"] == ["checkpoint-6", "checkpoint-9"]


def test_the_best_checkpoint_stays_and_is_named_by_its_final_path(outcome):
    """Fails if trainer_state.json keeps the temporary folder as the best checkpoint's path."""
    seen = outcome["best"]
    assert seen["recorded"] == seen["expected"]
    assert seen["left"] == ["checkpoint-3", "checkpoint-9"]
    assert seen["loaded"]


def test_what_cannot_be_resumed_is_one_line(outcome):
    assert outcome["nothing to resume"].startswith("nothing to resume from: ")
    assert "no marker file COMPLETE" in outcome["resume from torn"]
    assert outcome["hub"].startswith("push_to_hub uploads checkpoints before they are complete")


@pytest.mark.slow
def test_two_ranks_publish_one_checkpoint_with_both_states(tmp_path):
    """Fails if every rank writes into a temporary folder of its own."""
    script = Path(__file__).with_name("train_in_ranks.py")
    ranks = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run([*ranks, script, tmp_path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-6", "checkpoint-9"]
    for checkpoint in tmp_path.iterdir():
        files = {path.name for path in checkpoint.iterdir()}
        assert {"COMPLETE", "model.safetensors", "rng_state_0.pth", "rng_state_1.pth"} <= files
