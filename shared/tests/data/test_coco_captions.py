"""COCO captions: annotations, Karpathy's json and results are read back as written; broken ones are refused by name."""

from __future__ import annotations

import hashlib
import json
import zipfile
from pathlib import Path
from typing import Any

import pytest

from tenfold import UserError
from tenfold.data import mini_captions, miniworld
from tenfold.data.formats.coco_captions import (
    CocoCaption,
    CocoCaptions,
    KarpathyImage,
    read_caption_results,
    read_coco_captions,
    read_karpathy,
    results_name,
    write_caption_results,
    write_coco_captions,
    write_karpathy,
    write_online_test,
)

PINNED = "e6d8a234fe033114726b3ca448c08b499abad223f807da2aa39b58b54b972b30"

# As the authors of the split publish it (texts made up), with the fields that nobody here reads.
OFFICIAL = {
    "images": [
        {
            "filepath": "val2014",
            "sentids": [770337, 771687],
            "filename": "COCO_val2014_000000391895.jpg",
            "imgid": 0,
            "split": "test",
            "sentences": [
                {"tokens": ["a", "man"], "raw": "A man. ", "imgid": 0, "sentid": 770337},
                {"tokens": ["two"], "raw": "Two\n", "imgid": 0, "sentid": 771687},
            ],
            "cocoid": 391895,
        }
    ],
    "dataset": "coco",
}


def write(path: Path, values: Any) -> Path:
    path.write_text(json.dumps(values), encoding="utf-8")
    return path


def test_the_official_karpathy_record_is_read(tmp_path: Path) -> None:
    """Fails if the image's id is taken from `imgid` where there is a `cocoid`, or captions lose their white space."""
    (image,) = read_karpathy(write(tmp_path / "dataset_coco.json", OFFICIAL))
    assert image == KarpathyImage(
        391895, "COCO_val2014_000000391895.jpg", "test", ("A man. ", "Two\n"), (770337, 771687), "val2014"
    )


def test_flickr_has_no_cocoid_and_no_filepath(tmp_path: Path) -> None:
    record = {name: value for name, value in OFFICIAL["images"][0].items() if name not in ("cocoid", "filepath")}
    (image,) = read_karpathy(write(tmp_path / "dataset_flickr8k.json", {"images": [record], "dataset": "flickr8k"}))
    assert (image.image_id, image.folder) == (0, "")


@pytest.mark.parametrize("dataset", ["coco", "flickr8k"])
def test_karpathy_json_is_read_back(dataset: str, tmp_path: Path) -> None:
    """Fails if the writer drops a field that the reader needs, for either family of data sets."""
    folder = "train2014" if dataset == "coco" else ""
    images = [
        KarpathyImage(number, f"{number}.jpg", split, ("A “kite”.", "two"), (2 * number, 2 * number + 1), folder)
        for number, split in enumerate(("train", "restval", "val", "test"))
    ]
    write_karpathy(tmp_path / "d.json", images, dataset)
    assert read_karpathy(tmp_path / "d.json") == images


def test_annotations_are_read_back(tmp_path: Path) -> None:
    captions = CocoCaptions({7: "COCO_val2014_000000000007.jpg"}, (CocoCaption(5, 7, "é"), CocoCaption(3, 7, "b")))
    write_coco_captions(tmp_path / "captions_val2014.json", captions)
    assert read_coco_captions(tmp_path / "captions_val2014.json") == captions


def changed(**fields: Any) -> dict[str, Any]:
    return {"images": [{**OFFICIAL["images"][0], **fields}]}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"images": []}, "'images' is empty"),
        ([1], "list instead of an object"),
        (changed(split="dev"), "'split' is 'dev'.*restval"),
        (changed(sentids=[1]), "'sentids' has 1 entries.*2, one a sentence"),
        (changed(sentids=[1, 1]), "sentence id 1 twice"),
        (changed(sentids=[1, "2"]), "'sentids' holds something else"),
        (changed(cocoid="391895"), "'cocoid' is of type str"),
        (changed(filename="../x.jpg"), "leaves the image folder"),
        (changed(sentences=[{"tokens": []}, {"raw": "a"}]), "sentence 0.*a string"),
        ({"images": OFFICIAL["images"] * 2}, "image id 391895 twice"),
    ],
)
def test_broken_karpathy_files_are_refused(values: Any, message: str, tmp_path: Path) -> None:
    """Fails if one of the checks is removed: every message names file, record and field."""
    with pytest.raises(UserError, match=message):
        read_karpathy(write(tmp_path / "d.json", values))


def annotations(**fields: Any) -> dict[str, Any]:
    return {
        "images": [{"id": 7, "file_name": "7.jpg"}],
        "annotations": [{"id": 5, "image_id": 7, "caption": "a"} | fields],
    }


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (annotations(image_id=8), "'image_id' is 8.*one of the file's images"),
        (annotations(caption=None), "'caption' is of type NoneType"),
        (annotations() | {"annotations": []}, "'annotations' is empty"),
        ({**annotations(), "annotations": annotations()["annotations"] * 2}, "annotation id 5 twice"),
    ],
)
def test_broken_annotations_are_refused(values: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        read_coco_captions(write(tmp_path / "captions_val2014.json", values))


def test_results_are_read_back_by_ascending_id(tmp_path: Path) -> None:
    """The server's layout: a list of {"image_id", "caption"}, nothing else."""
    path = tmp_path / results_name("dtnet", "val2014")
    assert path.name == "captions_val2014_dtnet_results.json"
    write_caption_results(path, {9: "a dog", 2: ""})
    assert json.loads(path.read_text()) == [{"image_id": 2, "caption": ""}, {"image_id": 9, "caption": "a dog"}]
    assert read_caption_results(path) == {2: "", 9: "a dog"}
    with pytest.raises(UserError, match="not a name"):
        results_name("dt_net")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "dict instead of a list"),
        ([], "no records"),
        ([{"image_id": 1, "caption": "a"}, {"image_id": 1, "caption": "b"}], "image_id 1 twice"),
        ([{"image_id": "1", "caption": "a"}], "'image_id' is of type str"),
    ],
)
def test_broken_results_are_refused(values: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        read_caption_results(write(tmp_path / "r.json", values))


def test_the_online_test_wants_whole_sets(tmp_path: Path) -> None:
    """40,775 and 40,504 captions, or nothing is written. Fails if the writer does not count."""
    with pytest.raises(UserError, match=r"3 captions: subset test2014 \(expected 40775"):
        write_online_test(tmp_path, "dtnet", {"test2014": {1: "a", 2: "b", 3: "c"}, "val2014": {}})
    whole = {"test2014": dict.fromkeys(range(40_775), "a"), "val2014": dict.fromkeys(range(40_503), "a")}
    with pytest.raises(UserError, match=r"40503 captions: subset val2014 \(expected 40504"):
        write_online_test(tmp_path, "dtnet", whole)
    assert not list(tmp_path.iterdir())


def test_the_online_test_is_two_results_in_a_zip(tmp_path: Path) -> None:
    """Fails if a file's name in the zip has a folder, or its content is another than the file beside it."""
    captions = {"test2014": {3: "a", 1: "ü"}, "val2014": {8: "c"}}
    path = write_online_test(tmp_path, "dtnet", captions, images={"test2014": 2, "val2014": 1})
    with zipfile.ZipFile(path) as archive:
        names = ["captions_test2014_dtnet_results.json", "captions_val2014_dtnet_results.json"]
        assert archive.namelist() == names
        for name, subset in zip(names, captions, strict=True):
            assert {row["image_id"]: row["caption"] for row in json.loads(archive.read(name))} == captions[subset]
            assert read_caption_results(tmp_path / name) == captions[subset]
    again = path.read_bytes()
    write_online_test(tmp_path, "dtnet", captions, images={"test2014": 2, "val2014": 1})
    assert path.read_bytes() == again


def test_mini_scenes_are_of_three_kinds_and_their_captions_are_true() -> None:
    """Fails if a caption's words come from elsewhere than the scene's own objects."""
    scenes = [mini_captions.caption_scene(0, index) for index in range(300)]
    kinds = [one.kind for one in scenes]
    assert all(60 < kinds.count(kind) < 140 for kind in mini_captions.KINDS)
    for one in scenes:
        things = one.scene.things
        assert len(one.captions) == len(set(one.captions)) == mini_captions.CAPTIONS
        for thing in things:
            assert thing.radius <= min(thing.x, thing.y, miniworld.UNITS - thing.x, miniworld.UNITS - thing.y)
            assert all(thing.colour in caption and thing.shape in caption for caption in one.captions)
        if one.kind == "line":
            number = mini_captions.NUMBERS[len(things)]
            level = len({thing.y for thing in things}) == 1
            assert all(number in caption for caption in one.captions)
            assert all(("row" if level else "column") in caption for caption in one.captions)
            assert len({(thing.shape, thing.colour, thing.size, thing.radius) for thing in things}) == 1
        if one.kind == "pair":
            first, second = things  # in reading order
            if first.x == second.x:
                expected = f"a {first.colour} {first.shape} above a {second.colour} {second.shape}"
            else:
                left, right = sorted(things, key=lambda thing: thing.x)
                expected = f"a {left.colour} {left.shape} left of a {right.colour} {right.shape}"
            assert one.captions[0] == expected


def test_objects_of_a_mini_scene_do_not_overlap() -> None:
    for index in range(200):
        scene = mini_captions.caption_scene(1, index).scene
        assert (miniworld.masks(scene, 56).sum(0) <= 1).all()
        assert all(mask.any() for mask in miniworld.masks(scene, 56))


def test_mini_scenes_are_pinned() -> None:
    """The same scenes on every platform. Fails if a draw is added, removed or reordered."""
    scenes = repr([mini_captions.caption_scene(0, index) for index in range(50)])
    assert hashlib.sha256(scenes.encode()).hexdigest() == PINNED
    assert mini_captions.caption_scene(1, 0) != mini_captions.caption_scene(0, 0)


def test_karpathy_images_split_like_coco() -> None:
    """A tenth of train is restval, from the val2014 folder like val and test; sentence ids are unique."""
    images = [image for image, _ in mini_captions.karpathy_images(0, 20, 3, 2)]
    assert [image.split for image in images].count("restval") == 2
    assert {image.folder for image in images if image.split != "train"} == {"val2014"}
    assert [image.split for image in images[20:]] == ["val"] * 3 + ["test"] * 2
    ids = [number for image in images for number in image.sentence_ids]
    assert len(set(ids)) == len(ids) == 25 * mini_captions.CAPTIONS
