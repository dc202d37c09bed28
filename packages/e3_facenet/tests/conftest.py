"""Tiny networks that every test can afford, and a folder of one of them."""

import sys
from pathlib import Path

import pytest
import torch

from e3_facenet.facenet import E3FaceNet
from e3_facenet.miniature.model import mini_clip

sys.path.insert(0, str(Path(__file__).parent))

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory):
    """An untrained CLIP of the mini world on disk."""
    from e3_facenet.miniature.model import save_clip

    folder = tmp_path_factory.mktemp("clip")
    save_clip(mini_clip(0), folder)
    return folder


@pytest.fixture(scope="session")
def face():
    """An opened tiny model."""
    from e3_facenet_fixtures import make_generator

    return E3FaceNet(make_generator(), mini_clip(0))


@pytest.fixture(scope="session")
def model_folder(face, tmp_path_factory):
    """The same, saved."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    face.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    """A data set of a dozen heads in the official layout."""
    from e3_facenet.data.mini_world import write_mini_world

    return write_mini_world(tmp_path_factory.mktemp("world"), seed=0, train=12, test=4, captions=2)
