"""D10: what E3-FaceNet reads, damaged at random: refused in one line, or right."""

from pathlib import Path

import pytest
import torch
from e3_facenet_fixtures import make_generator
from test_release import official_pickle

from e3_facenet.checkpoints.keys import to_official
from e3_facenet.checkpoints.release import read_release
from e3_facenet.commands.app import main
from e3_facenet.data.captioned import open_split, read_picture
from e3_facenet.data.mini_world import write_mini_world
from e3_facenet.data.settings import DataSettings
from e3_facenet.facenet import E3FaceNet
from e3_facenet.miniature.model import mini_clip, save_clip
from e3_facenet.text import load_text_encoder
from e3_facenet.training.settings import TrainSettings
from tenfold.testing.fuzz import FEW, INPUTS, Reading, command, fuzz, usual


def readings(folder: Path) -> list[Reading]:
    """Everything below `folder`."""
    model, clip, release = (folder / name for name in ("model", "clip", "release"))
    folder.mkdir(parents=True)
    generator = make_generator()
    E3FaceNet(generator, mini_clip(0)).save_pretrained(model)
    save_clip(mini_clip(0), clip)
    world = write_mini_world(folder / "world", seed=0, train=4, test=2, captions=2)
    release.mkdir()
    official_pickle(release / "net.pkl", {"G_ema": to_official(generator.state_dict(), "generator")})
    return [
        *usual(folder / "usual", "e3_facenet", main, TrainSettings, "mini.yaml"),
        Reading("model", model, lambda f: E3FaceNet.from_pretrained(f).generator.state_dict()),
        Reading("text encoder", clip, lambda f: load_text_encoder(f) and None),
        Reading("captions", world, _split),
        Reading("release", release, lambda f: read_release(f / "net.pkl").generator),
        command("generate", model, main, "generate", "a face with green skin", "--model", "{in}", "--output", "{out}"),
    ]


def _split(folder: Path) -> list[torch.Tensor]:
    found = open_split(DataSettings(folder=str(folder)), folder, "train")
    return [read_picture(path, 32) for path in found.files]


def test_d10_a_few_damaged_files(tmp_path):
    found = fuzz(readings(tmp_path / "good"), tmp_path, inputs=FEW)
    assert found == [], "\n".join(map(str, found))


@pytest.mark.slow
def test_d10_damaged_files_are_refused_or_right(tmp_path):
    """Fails if a file of any kind gives a traceback, a hang, 2 GB, half a result, or NaN that is taken for good."""
    found = fuzz(readings(tmp_path / "good"), tmp_path, inputs=INPUTS)
    assert found == [], "\n".join(map(str, found))
