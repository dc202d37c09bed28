"""Fixtures of DIT's tests: a tiny model with words, a tiny data set in REFER's files, a few scenes."""

import os
import sys
from pathlib import Path

# Tiny tensors: more threads only wait for each other. Set before torch is loaded; subprocesses inherit it.
os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parent))

import pytest
import torch
from dit_sam_tiny import tiny_model

from dit_sam.data.mini import write_mini
from dit_sam.data.settings import MiniSettings


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny():
    return tiny_model("layer_wise")


@pytest.fixture(scope="session")
def tiny_folder(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny") / "model"
    tiny.save_pretrained(folder, trained="nothing")
    return folder


@pytest.fixture(scope="session")
def mini_data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "mini"
    write_mini(folder, MiniSettings(train=12, val=3, test=3, seed=9))
    return folder
