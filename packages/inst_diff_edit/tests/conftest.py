"""A small untrained model, and pictures."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))

from inst_diff_edit.data import scenes
from inst_diff_edit.miniature import model as mini


@pytest.fixture(scope="session")
def pipe():
    """The mini model before training: attention is noise, and whatever must hold for any weights must hold for it."""
    pipe = mini.build(0)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="session")
def double():
    """The same in float64, for comparisons of batches: an untrained model blows float32's rounding up."""
    pipe = mini.build(0).to(torch.float64)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="session")
def edits():
    return [scenes.edit(0, index) for index in range(3)]


@pytest.fixture
def settings():
    """Four steps of eight, one noise: as little as shows everything."""
    return {"num_inference_steps": 8, "num_masks": 1, "final": "latents"}


@pytest.fixture(autouse=True)
def global_random_state_is_left_alone():
    """Fails if anything draws from torch's global generator."""
    before = torch.get_rng_state()
    yield
    assert torch.equal(torch.get_rng_state(), before)
