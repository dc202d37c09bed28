"""Captions and splits: Karpathy's json and the official annotations with lists of ids say the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dtnet.data.captions import (
    ANNOTATION_NAMES,
    ID_LISTS,
    derive_id_lists,
    read_captions,
    read_id_lists,
    write_id_lists,
)
from tenfold import UserError
from tenfold.data.formats.coco_captions import (
    CocoCaption,
    CocoCaptions,
    KarpathyImage,
    write_coco_captions,
    write_karpathy,
)

IMAGES = [
    KarpathyImage(10, "COCO_train2014_000000000010.jpg", "train", ("a", "b"), (100, 101), "train2014"),
    KarpathyImage(20, "COCO_val2014_000000000020.jpg", "restval", ("c",), (200,), "val2014"),
    KarpathyImage(30, "COCO_val2014_000000000030.jpg", "val", ("d", "e"), (301, 300), "val2014"),
    KarpathyImage(40, "COCO_val2014_000000000040.jpg", "test", ("f",), (400,), "val2014"),
]


def write_annotations(folder: Path) -> None:
    for name, subset in zip(ANNOTATION_NAMES, ("train2014", "val2014"), strict=True):
        its = [image for image in IMAGES if image.folder == subset]
        # Sorted by caption id, like COCO's: the lists of ids give the order.
        annotations = sorted(
            (number, image.image_id, caption)
            for image in its
            for number, caption in zip(image.sentence_ids, image.captions, strict=True)
        )
        files = {image.image_id: image.file_name for image in its}
        write_coco_captions(folder / name, CocoCaptions(files, tuple(CocoCaption(*one) for one in annotations)))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Official annotations, without lists of ids."""
    write_annotations(tmp_path)
    return tmp_path


def test_restval_is_trained_on(tmp_path: Path) -> None:
    """Fails if the 30,504 images of restval are left out of train, or put into val."""
    write_karpathy(tmp_path / "dataset_coco.json", IMAGES)
    read = read_captions(tmp_path / "dataset_coco.json")
    assert read.images("train") == (10, 20)
    assert (read.images("val"), read.images("test")) == ((30,), (40,))
    assert read.pairs("train") == [(10, "a"), (10, "b"), (20, "c")]
    assert read.references("val") == {30: ("d", "e")}
    assert read.files[20] == "val2014/COCO_val2014_000000000020.jpg"


@pytest.mark.parametrize("given", ["lists", "karpathy"])
def test_annotations_with_lists_of_ids_say_the_same_as_karpathy(given: str, folder: Path) -> None:
    """The .npy files list caption ids, not image ids. Fails if they are read as image ids, or restval is looked for in
    the train2014 file."""
    write_karpathy(folder / "karpathy" / "dataset_coco.json", IMAGES)
    if given == "lists":
        write_id_lists(folder, derive_id_lists(IMAGES))
    else:
        write_karpathy(folder / "dataset_coco.json", IMAGES)
    assert read_captions(folder) == read_captions(folder / "karpathy" / "dataset_coco.json")
    assert read_captions(folder / "karpathy") == read_captions(folder)


def test_lists_of_ids_are_integer_arrays_by_their_official_names(tmp_path: Path) -> None:
    write_id_lists(tmp_path, derive_id_lists(IMAGES))
    assert {path.name for path in tmp_path.iterdir()} == {f"{name}.npy" for name in ID_LISTS}
    assert np.load(tmp_path / "coco_dev_ids.npy").tolist() == [301, 300]
    assert read_id_lists(tmp_path)["coco_restval_ids"] == [200]
    with pytest.raises(UserError, match="unknown list"):
        write_id_lists(tmp_path, {"train": [1]})


def test_a_limit_keeps_the_first_images(tmp_path: Path) -> None:
    write_karpathy(tmp_path / "d.json", IMAGES)
    read = read_captions(tmp_path / "d.json")
    assert read.limit("train", 1).images("train") == (10,)
    assert read.limit("train", None) == read


def save(path: Path, values: Any) -> None:
    np.save(path, values, allow_pickle=True)


def test_broken_lists_of_ids_are_refused(folder: Path) -> None:
    """Fails if a list is unpickled, or an id without annotation is dropped in silence."""
    write_id_lists(folder, derive_id_lists(IMAGES))
    path = folder / "coco_test_ids.npy"
    for values, message in (
        (np.array([{"a": 1}], dtype=object), "cannot be read.*a .npy file of integers"),
        (np.array([1.5]), "holds something else"),
        (np.array([[400]]), "holds something else"),
        (np.array([999]), r"caption id 999: .*coco_test_ids.npy"),
        (np.array([301]), "image 30 in two splits"),
    ):
        save(path, values)
        with pytest.raises(UserError, match=message):
            read_captions(folder)
    path.write_bytes(b"")
    with pytest.raises(UserError, match="cannot be read"):
        read_captions(folder)
    path.unlink()
    with pytest.raises(UserError, match=r"no such file: .*coco_test_ids.npy"):
        read_captions(folder)


def test_what_is_missing_is_named(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(UserError, match=r"no such file: .*coco_train_ids.npy .*or dataset_coco.json"):
        read_captions(folder)
    (folder / ANNOTATION_NAMES[1]).unlink()
    with pytest.raises(UserError, match=r"no such file: .*captions_val2014.json"):
        read_captions(folder)
    with pytest.raises(UserError, match=r"no such file: .*nowhere.json"):
        read_captions(tmp_path / "nowhere.json")


def test_a_split_without_images_is_an_error(tmp_path: Path) -> None:
    write_karpathy(tmp_path / "d.json", IMAGES[:1])
    read = read_captions(tmp_path / "d.json")
    with pytest.raises(UserError, match="no images: split val"):
        read.images("val")
    with pytest.raises(UserError, match="unknown split: dev"):
        read.images("dev")


def test_flickr_is_read_like_coco(tmp_path: Path) -> None:
    """Without cocoid the running number is the image's id."""
    record = {
        "sentids": [0, 1],
        "imgid": 0,
        "sentences": [{"tokens": [], "raw": "A dog ."}, {"raw": "Two"}],
        "split": "train",
        "filename": "1000268201_693b08cb0e.jpg",
    }
    (tmp_path / "dataset_flickr8k.json").write_text(json.dumps({"images": [record], "dataset": "flickr8k"}))
    read = read_captions(tmp_path / "dataset_flickr8k.json")
    assert read.references("train") == {0: ("A dog .", "Two")}
    assert read.files == {0: "1000268201_693b08cb0e.jpg"}
