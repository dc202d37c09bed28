"""Pictures with captions: layouts, refusals, the mini world."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from e3_facenet.camera import camera_poses
from e3_facenet.data.captioned import Pictures, open_split, read_picture
from e3_facenet.data.mini_world import ATTRIBUTES, caption, draw, heads, vocabulary
from e3_facenet.data.settings import DataSettings
from tenfold import UserError


def write(folder, index, names=("a", "b")):
    folder.mkdir(exist_ok=True)
    (folder / "images").mkdir(exist_ok=True)
    for name in names:
        Image.new("RGB", (32, 32), (200, 100, 50)).save(folder / "images" / f"{name}.jpg")
    (folder / "dataset.json").write_text(index if isinstance(index, str) else json.dumps(index))
    return folder


def pairs(names, captions=None):
    return {"filenames": list(names), "captions": list(captions or ["A face."] * len(names))}


def test_the_official_layout_gives_pairs_in_order(tmp_path):
    """Fails if captions are looked up elsewhere than beside their file's name."""
    folder = write(tmp_path / "d", {"train": pairs(["b", "a", "b"], ["one", "two", "three"]), "test": pairs([])})
    split = open_split(DataSettings(), folder, "train")
    assert [path.stem for path in split.files] == ["b", "a", "b"] and split.captions == ("one", "two", "three")
    assert [path.stem for path in split.pictures] == ["b", "a"]


def test_json_lines_are_read_as_well(tmp_path):
    """Fails if a user's own captions need the official json."""
    folder = write(tmp_path / "d", "{}")
    (folder / "dataset.json").unlink()
    (folder / "captions.jsonl").write_text(
        '{"file": "a.jpg", "text": "one"}\n{"file": "b.jpg", "text": "two", "split": "test"}\n'
    )
    assert open_split(DataSettings(), folder, "train").captions == ("one",)
    assert open_split(DataSettings(), folder, "test").captions == ("two",)


@pytest.mark.parametrize(
    ("index", "words"),
    [
        ({"train": pairs("ab"), "test": pairs("b")}, "1 pictures in train and in test, b first"),
        ({"train": {"filenames": ["a"], "captions": []}}, "1 filenames, 0 captions"),
        ({"train": pairs(["zz"])}, "no picture zz"),
        ({"train": pairs(["../x"])}, "leads out of the folder"),
        ({"train": pairs(["a"], [""])}, "'' instead of a caption"),
        ({"train": pairs([3])}, "3 instead of a picture's name"),
        ({"train": 3}, "train has no two lists"),
        ({"test": pairs("a")}, "no captions of train"),
        ([], "not an index of captions"),
        ("{", "broken JSON"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path, index, words):
    with pytest.raises(UserError, match=words):
        open_split(DataSettings(), write(tmp_path / "d", index), "train")


def test_pictures_are_square_and_whole(tmp_path):
    Image.new("RGB", (20, 30)).save(tmp_path / "tall.png")
    with pytest.raises(UserError, match="20 x 30"):
        read_picture(tmp_path / "tall.png", 16)
    (tmp_path / "cut.png").write_bytes((tmp_path / "tall.png").read_bytes()[:40])
    with pytest.raises(UserError, match="broken image"):
        read_picture(tmp_path / "cut.png", 16)
    Image.new("RGB", (64, 64), (255, 0, 0)).save(tmp_path / "big.png")
    assert read_picture(tmp_path / "big.png", 16).shape == (3, 16, 16)


def test_batches_are_between_minus_one_and_one_and_mirrored(world):
    """Fails if pixels are scaled otherwise than x / 127.5 - 1, or a mirror image is not one."""
    pictures = Pictures(open_split(DataSettings(), world, "train"), 32, in_memory=True)
    batch = pictures.batch([0, 0], [False, True])
    assert torch.equal(batch[0].flip(-1), batch[1]) and float(batch.min()) >= -1 and float(batch.max()) <= 1
    raw = np.array(Image.open(pictures.split.files[0]))
    assert torch.allclose(batch[0], torch.from_numpy(raw).permute(2, 0, 1) / 127.5 - 1)


def test_the_mini_worlds_depth_is_that_of_its_ellipsoid():
    """Fails if the caster's camera is another one: the nearest point of a frontal head is 0.94 away."""
    pose = camera_poses(torch.zeros(1), torch.full((1,), np.pi / 2))
    made = draw(torch.zeros(1, 5, dtype=torch.long), pose, torch.full((1, 2, 3), 0.5))
    seen = made.depth[made.depth > 0]
    assert float(seen.min()) == pytest.approx(0.94, abs=2e-3) and 0.1 < len(seen) / 1024 < 0.5


def test_captions_name_what_is_drawn_and_the_vocabulary_holds_them():
    _, attributes, _ = heads(3, 0, 4)
    words = set(vocabulary())
    for row in attributes.tolist():
        text = caption(row, np.random.default_rng(0))
        assert set(text.split()) <= words
        assert all(ATTRIBUTES[name][value] in text for name, value in zip(ATTRIBUTES, row, strict=True))


def test_the_same_seed_draws_the_same_world():
    assert torch.equal(heads(5, 1, 3)[0].images, heads(5, 1, 3)[0].images)
