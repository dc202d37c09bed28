"""D10: what DTNet reads, damaged at random: refused in one line, or right."""

import pickle
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from dtnet_mini import write_untrained

from dtnet.checkpoints.keys import convert
from dtnet.commands.app import main
from dtnet.data.captions import read_captions
from dtnet.data.extract import convert_maps
from dtnet.data.grid_features import GridFeatures
from dtnet.data.mini import FEATURES, VOCABULARY, write_mini_coco
from dtnet.model import DTNet
from dtnet.training.settings import TrainSettings
from dtnet.vocabulary import Vocabulary
from tenfold.testing.fuzz import FEW, INPUTS, Reading, command, fuzz, usual


def readings(folder: Path) -> list[Reading]:
    """Everything below `folder`."""
    model = write_untrained(folder / "model")
    coco = write_mini_coco(folder / "coco", 0, 6, 2, 2)
    scene = folder / "scene"
    scene.mkdir()
    picture = next(coco.rglob("*.png"), None) or next(coco.rglob("*.jpg"))
    (scene / "photo.png").write_bytes(picture.read_bytes())
    official, words, maps, many = (folder / name for name in ("official", "words", "maps", "many"))
    official.mkdir()
    convert(model, official / "official.pth", to="official")
    words.mkdir()
    (words / "vocab.pkl").write_bytes(pickle.dumps(["<unk>", "<pad>", "<bos>", "<eos>", "a", "dog"]))
    maps.mkdir()
    for number in (1, 2):
        torch.save(torch.rand(1, 8, 9, 9), maps / f"{number}.pth")
    many.mkdir()
    with h5py.File(many / "features.h5", "w") as file:
        for number in range(20):
            kind = {"compression": "gzip"} if number % 2 else {}
            file.create_dataset(f"{number}_grids", data=np.random.default_rng(number).random((49, 24)), **kind)
    return [
        *usual(folder / "usual", "dtnet", main, TrainSettings, "mini.yaml"),
        Reading("model", model, lambda f: DTNet.from_pretrained(f).state_dict()),
        Reading("features", coco, lambda f: _features(f / FEATURES), (FEATURES,)),
        Reading("many features", many, lambda f: _features(f / "features.h5")),
        Reading("altered features", many, _altered_features),
        Reading("captions", coco, lambda f: read_captions(f).captions, ("dataset_coco.json",)),
        Reading("annotations", coco, lambda f: read_captions(f / "annotations").captions, ("annotations/*",)),
        Reading("vocabulary", coco, lambda f: Vocabulary.load(f / VOCABULARY).words, (VOCABULARY,)),
        Reading("maps", maps, lambda f: convert_maps(f, f / "out.h5") and _features(f / "out.h5")),
        Reading("official", official, lambda f: convert(f / "official.pth", f / "made")),
        command("caption", scene, main, "caption", "--model", str(model), "--image", "{in}/photo.png"),
    ]


def _features(path: Path) -> list[torch.Tensor]:
    found = GridFeatures(path)
    return [found[number] for number in found.ids()]


def _altered_features(folder: Path) -> list[torch.Tensor]:
    """One data set of the file, which may be damaged already, is made odd."""
    path = folder / "features.h5"
    if folder.parent.name == "altered features":  # undamaged
        return _features(path)
    seed = sum(path.read_bytes()[-4000:])
    odd = (
        np.full((49, 24), np.nan), np.full((49, 24), 1e300), np.zeros((49, 24), dtype="int32"), np.zeros(49),
        np.zeros((49, 0)), np.zeros((3, 24)), np.zeros((49, 25)), "text", np.zeros((49, 24), dtype="complex64"), None,
    )  # fmt: skip
    try:
        with h5py.File(path, "r+") as file:
            if not len(file):  # damaged so that nothing is left
                return _features(path)
            name = sorted(file)[seed % len(file)]
            del file[name]
            value = odd[seed % len(odd)]
            if value is None:
                file.create_group(name)
            else:
                file[name] = value
    except (OSError, KeyError, RuntimeError):
        pass
    return _features(path) if seed % len(odd) != 2 else []


def test_d10_a_few_damaged_files(tmp_path):
    found = fuzz(readings(tmp_path / "good"), tmp_path, inputs=FEW)
    assert found == [], "\n".join(map(str, found))


@pytest.mark.slow
def test_d10_damaged_files_are_refused_or_right(tmp_path):
    """Fails if a file of any kind gives a traceback, a hang, 2 GB, half a result, or NaN that is taken for good."""
    found = fuzz(readings(tmp_path / "good"), tmp_path, inputs=INPUTS)
    assert found == [], "\n".join(map(str, found))
