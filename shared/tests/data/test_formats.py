"""The official formats: what is written is read back, official examples are read, broken files are refused by name."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tenfold import UserError
from tenfold.data import formats, mini_sets
from tenfold.data.formats import Picture
from tenfold.metrics.pope import SUBSETS

SIZE = 24
COUNT = 10


def read_all(layout: str, folder: Path) -> list[Any]:
    """Every sample of a folder that `write_all` filled."""
    if layout == "llava_instruct":
        return formats.read_llava_instruct(folder / "data.json", folder / "images")
    if layout == "calibration":
        return formats.read_calibration(folder / "data.jsonl", folder / "images")
    if layout == "vqav2":
        return formats.read_vqav2(folder)
    if layout == "pope":
        return [sample for subset in SUBSETS for sample in formats.read_pope(folder, subset)]
    return [sample for split in ("train", "val", "test") for sample in formats.read_scienceqa(folder, split)]


def write_all(layout: str, folder: Path, samples: list[Any]) -> None:
    if layout == "llava_instruct":
        formats.write_llava_instruct(folder / "data.json", folder / "images", samples)
    elif layout == "calibration":
        formats.write_calibration(folder / "data.jsonl", folder / "images", samples)
    elif layout == "vqav2":
        formats.write_vqav2(folder, samples)
    elif layout == "pope":
        third = len(samples) // 3
        for number, subset in enumerate(SUBSETS):
            formats.write_pope(folder, subset, samples[number * third : (number + 1) * third])
    else:
        formats.write_scienceqa(folder, samples)


def make(layout: str) -> list[Any]:
    if layout == "pope":
        return [sample for samples in mini_sets.pope(0, COUNT, SIZE).values() for sample in samples]
    samples = list(getattr(mini_sets, layout)(0, COUNT, SIZE))
    if layout == "scienceqa":  # read split by split
        samples = [replace(one, lecture=f"On {one.topic}.", solution=f"{one.id}\nit is.") for one in samples]
        samples.sort(key=lambda sample: ["train", "val", "test"].index(sample.split))
    return samples


LAYOUTS = ("llava_instruct", "calibration", "vqav2", "pope", "scienceqa")


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A folder per layout, each holding a small mini world."""
    folders = {}
    for layout in LAYOUTS:
        folders[layout] = tmp_path_factory.mktemp(layout)
        write_all(layout, folders[layout], make(layout))
    return folders


@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_is_written_is_read_back(layout: str, written: dict[str, Path], tmp_path: Path) -> None:
    """Fails if a writer drops a field, or a reader returns another image's pixels."""
    samples, read = make(layout), read_all(layout, written[layout])
    assert [replace(sample, picture=None) for sample in read] == [replace(sample, picture=None) for sample in samples]
    for ours, theirs in zip(samples, read, strict=True):
        assert (ours.picture is None) == (theirs.picture is None)
        if ours.picture is not None:
            assert theirs.image().mode == "RGB"
            assert (np.asarray(ours.image()) == np.asarray(theirs.image())).all()
    # A second writing, from files instead of memory, copies the images byte for byte.
    write_all(layout, tmp_path, read)
    original = {p.relative_to(written[layout]): p.read_bytes() for p in written[layout].rglob("*") if p.is_file()}
    copied = {p.relative_to(tmp_path): p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    assert copied == original


@pytest.mark.parametrize("layout", LAYOUTS)
def test_images_are_opened_on_access_only(
    layout: str, written: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fails if a reader decodes images while it reads the records."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("an image was opened")

    monkeypatch.setattr(Image, "open", refuse)
    samples = read_all(layout, written[layout])
    with pytest.raises(AssertionError, match="opened"):
        next(sample for sample in samples if sample.picture is not None).image()


def test_the_official_examples_are_read(tmp_path: Path) -> None:
    """Records with the official names, keys and extra fields, as the benchmarks publish them (texts made up).

    Fails if a reader asks for another file name or key, or refuses a field that it does not know.
    """
    (tmp_path / "val2014").mkdir()
    Image.new("RGB", (8, 6), "red").save(tmp_path / "val2014" / "COCO_val2014_000000262148.jpg")
    question = {"image_id": 262148, "question": "Where is he looking?", "question_id": 262148000}
    answers = [{"answer": "down", "answer_confidence": "yes", "answer_id": k} for k in range(1, 11)]
    annotation = {
        "question_type": "none of the above", "multiple_choice_answer": "down", "answers": answers,
        "image_id": 262148, "answer_type": "other", "question_id": 262148000,
    }  # fmt: skip
    header = {"info": {"year": 2017}, "license": {"url": "x"}, "data_type": "mscoco", "data_subtype": "val2014"}
    questions_json = {**header, "task_type": "Open-Ended", "questions": [question]}
    (tmp_path / "v2_OpenEnded_mscoco_val2014_questions.json").write_text(json.dumps(questions_json))
    (tmp_path / "v2_mscoco_val2014_annotations.json").write_text(json.dumps({**header, "annotations": [annotation]}))
    (vqa,) = formats.read_vqav2(tmp_path)
    assert (vqa.question_id, vqa.annotation.answers, vqa.image().size) == (262148000, ("down",) * 10, (8, 6))

    (tmp_path / "coco").mkdir()
    line = {
        "question_id": 1,
        "image": "COCO_val2014_000000262148.jpg",
        "text": "Is there a dog in the image?",
        "label": "no",
    }
    (tmp_path / "coco" / "coco_pope_random.json").write_text(json.dumps(line) + "\n")
    (pope,) = formats.read_pope(tmp_path, "random")
    assert (pope.question_id, pope.label, pope.image().size) == (1, "no", (8, 6))

    (tmp_path / "images" / "test" / "7").mkdir(parents=True)
    Image.new("RGBA", (4, 4)).save(tmp_path / "images" / "test" / "7" / "image.png")
    problem = {
        "question": "Which is it?", "choices": ["this", "that"], "answer": 1, "hint": "", "image": "image.png",
        "task": "closed choice", "grade": "grade2", "subject": "natural science", "topic": "biology",
        "category": "x", "skill": "y", "lecture": "z", "solution": "w", "split": "test",
    }  # fmt: skip
    (tmp_path / "problems.json").write_text(
        json.dumps({"7": problem, "8": {**problem, "image": None}, "9": "unlisted"})
    )
    splits = {"train": [], "val": [], "test": ["7", "8"], "minitest": ["7"]}
    (tmp_path / "pid_splits.json").write_text(json.dumps(splits))
    first, second = formats.read_scienceqa(tmp_path, "test")
    assert first.image().mode == "RGB" and second.image() is None
    assert [sample.id for sample in formats.read_scienceqa(tmp_path, "minitest")] == ["7"]

    records = [
        {
            "id": "wNBG8Gp_0", "model": "",
            "conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Ho"}],
        },
        {
            "id": "000000262148", "image": "val2014/COCO_val2014_000000262148.jpg",
            "conversations": [{"from": "human", "value": "What?\n<image>"}, {"from": "gpt", "value": "A <image> tag."}],
        },
    ]  # fmt: skip
    (tmp_path / "mix.json").write_text(json.dumps(records))
    text_only, about_image = formats.read_llava_instruct(tmp_path / "mix.json", tmp_path)
    assert text_only.image() is None and about_image.image().size == (8, 6)

    line = {"question_id": 5, "image": "val2014/COCO_val2014_000000262148.jpg", "text": "What?"}
    (tmp_path / "calibration.jsonl").write_text("\n" + json.dumps(line))
    (calibration,) = formats.read_calibration(tmp_path / "calibration.jsonl", tmp_path)
    assert (calibration.question_id, calibration.category) == (5, "default")


def test_a_test_set_has_no_annotations_and_shares_its_images(tmp_path: Path) -> None:
    """Fails if test-dev2015 looks for images of its own, or for annotations."""
    samples = [replace(sample, annotation=None) for sample in make("vqav2")]
    formats.write_vqav2(tmp_path, samples, "test-dev2015")
    assert (tmp_path / "test2015" / "COCO_test2015_000000000000.png").is_file()
    read = formats.read_vqav2(tmp_path, "test-dev2015")
    assert len(read) == len(samples) and all(sample.annotation is None for sample in read)
    with pytest.raises(UserError, match=r"v2_mscoco_val2014_annotations\.json"):
        formats.write_vqav2(tmp_path, samples)
        formats.read_vqav2(tmp_path)
    with pytest.raises(UserError, match="annotations are incomplete"):
        formats.write_vqav2(tmp_path, [*samples, make("vqav2")[0]])


# --- broken files: (layout, file, what is done to it, what the message must say) ---

Change = Callable[[Any], Any]


def edit(*keys: Any, value: Any = None, drop: bool = False) -> Change:
    """Set or drop the value at a path of keys."""

    def change(data: Any) -> Any:
        *way, last = keys
        inner = data
        for key in way:
            inner = inner[key]
        if drop:
            del inner[last]
        else:
            inner[last] = value
        return data

    return change


def twice(data: Any) -> Any:
    return [data[0], *data]


ASKED, ANSWERED = "v2_OpenEnded_mscoco_val2014_questions.json", "v2_mscoco_val2014_annotations.json"
POPE = "coco/coco_pope_random.json"
MIX, LINES, SQA, SPLITS = "data.json", "data.jsonl", "problems.json", "pid_splits.json"
BROKEN = [
    ("llava_instruct", MIX, edit(3, "conversations", drop=True), "'conversations' is missing: {file}, record 3"),
    ("llava_instruct", MIX, edit(3, "conversations", value=[]), "'conversations' is empty: {file}, record 3"),
    ("llava_instruct", MIX, edit(3, "conversations", 1, "from", value="bot"), "is 'bot': {file}, record 3, turn 1"),
    ("llava_instruct", MIX, edit(3, "conversations", 1, "value", value=7), "type int: {file}, record 3, turn 1"),
    ("llava_instruct", MIX, edit(3, "conversations", 0, "value", value="no mark"), "has 0 <image>"),
    ("llava_instruct", MIX, edit(3, "conversations", 0, "value", value="<image><image>"), "has 2 <image>"),
    ("llava_instruct", MIX, edit(3, "image", value="other.png"), "no such image: {folder}/images/other.png"),
    ("llava_instruct", MIX, edit(3, "image", value="../data.json"), "leaves the image folder: {file}, record 3"),
    ("llava_instruct", MIX, edit(3, "image", value="/etc/passwd"), "leaves the image folder"),
    ("llava_instruct", MIX, edit(3, "image", value=None), "'image' is of type NoneType"),
    ("llava_instruct", MIX, edit(3, value="text"), "str instead of an object: {file}, record 3"),
    ("llava_instruct", MIX, edit(3, "id", value=True), "'id' is of type bool"),
    ("llava_instruct", MIX, lambda data: {"data": data}, "dict instead of a list: {file}"),
    ("llava_instruct", MIX, lambda data: [], "no records: {file}"),
    ("calibration", LINES, twice, "question_id '000000' twice: {file}, line 2"),
    ("calibration", LINES, edit(2, "text", drop=True), "'text' is missing: {file}, line 3"),
    ("calibration", LINES, edit(2, "text", value=["a"]), "'text' is of type list: {file}, line 3"),
    ("calibration", LINES, edit(2, "category", value=1), "'category' is of type int: {file}, line 3"),
    ("calibration", LINES, edit(2, "image", value="none.png"), "no such image: {folder}/images/none.png"),
    ("calibration", LINES, lambda data: [], "no records: {file}"),
    ("vqav2", ASKED, edit("questions", 2, "question", value=1), "'question' is of type int: {file}, question 2"),
    ("vqav2", ASKED, edit("questions", 2, "question_id", value=0), "question_id 0 twice: {file}, question 2"),
    ("vqav2", ASKED, edit("questions", 2, "question_id", value=9), "question_id 9 has no annotation"),
    ("vqav2", ASKED, edit("questions", 2, "image_id", value=5), "'image_id' is 5: {file}, question 2"),
    ("vqav2", ASKED, edit("questions", 2, drop=True), "question_id 2 is annotated but never asked"),
    ("vqav2", ASKED, edit("questions", drop=True), "'questions' is missing: {file}"),
    ("vqav2", ANSWERED, edit("annotations", 1, "answers", value=[]), "'answers' is empty: {file}, annotation 1"),
    ("vqav2", ANSWERED, edit("annotations", 1, "answers", 3, "answer", value=3), "annotation 1, answer 3"),
    ("vqav2", ANSWERED, edit("annotations", 1, "answer_type", value="odd"), "'answer_type' is 'odd'"),
    ("vqav2", ANSWERED, edit("annotations", 1, "question_id", value=0), "question_id 0 twice: {file}, annotation 1"),
    ("pope", POPE, edit(1, "label", value="maybe"), "'label' is 'maybe': {file}, line 2"),
    ("pope", POPE, edit(1, "question_id", value=1), "question_id 1 twice: {file}, line 2"),
    ("pope", POPE, edit(1, "question_id", value=1.5), "'question_id' is of type float"),
    ("pope", POPE, edit(1, "image", value="x.jpg"), "no such image: {folder}/val2014/x.jpg"),
    ("scienceqa", SQA, edit("1", "answer", value=9), "'answer' is 9: {file}, 1"),
    ("scienceqa", SQA, edit("1", "answer", value=-1), "'answer' is -1"),
    ("scienceqa", SQA, edit("1", "answer", value=True), "'answer' is of type bool"),
    ("scienceqa", SQA, edit("1", "choices", value=["a", 2]), "'choices' is ['a', 2]"),
    ("scienceqa", SQA, edit("1", "choices", value=list("abcdef")), "1 to 5 strings"),
    ("scienceqa", SQA, edit("1", "split", value="dev"), "'split' is 'dev'"),
    ("scienceqa", SQA, edit("1", "image", drop=True), "'image' is missing: {file}, 1"),
    ("scienceqa", SQA, edit("1", "image", value="p.png"), "no such image: {folder}/images/train/1/p.png"),
    ("scienceqa", SQA, edit("1", drop=True), "'1' is missing: {file}"),
    ("scienceqa", SQA, edit("1", value=[]), "list instead of an object: {file}, 1"),
    ("scienceqa", SPLITS, edit("train", value=["1", "1"]), "problem '1' twice: {file}, train 1"),
    ("scienceqa", SPLITS, edit("train", value=[1]), "problem id 1 is of type int: {file}, train 0"),
    ("scienceqa", SPLITS, edit("train", value=[]), "'train' is empty: {file}"),
    ("scienceqa", SPLITS, edit("train", drop=True), "no split 'train': {file}"),
]  # fmt: skip


@pytest.mark.parametrize(("layout", "name", "change", "message"), BROKEN)
def test_a_broken_record_is_refused_by_file_record_and_field(
    layout: str, name: str, change: Change, message: str, written: dict[str, Path], tmp_path: Path
) -> None:
    """Fails if the check of that field is dropped, or its message does not say where."""
    folder = tmp_path / "data"
    shutil.copytree(written[layout], folder)
    file = folder / name
    lines = name.endswith(".jsonl") or layout == "pope"
    text = file.read_text()
    data = change([json.loads(line) for line in text.splitlines()] if lines else json.loads(text))
    file.write_text("".join(json.dumps(line) + "\n" for line in data) if lines else json.dumps(data))
    with pytest.raises(UserError) as caught:
        read_all(layout, folder)
    assert message.format(file=file, folder=folder) in str(caught.value)
    assert "expected" in str(caught.value) and "\n" not in str(caught.value)


FILES = {
    "llava_instruct": ["data.json"],
    "calibration": ["data.jsonl"],
    "vqav2": [ASKED, ANSWERED],
    "pope": ["coco/coco_pope_popular.json"],
    "scienceqa": ["problems.json", "pid_splits.json"],
}


@pytest.mark.parametrize(("layout", "name"), [(layout, name) for layout in LAYOUTS for name in FILES[layout]])
@pytest.mark.parametrize("damage", ["missing", "cut", "binary", "folder"])
def test_a_file_that_cannot_be_read_is_named(
    layout: str, name: str, damage: str, written: dict[str, Path], tmp_path: Path
) -> None:
    """Fails if a torn last line is dropped in silence, or an error of the system or of json comes through."""
    folder = tmp_path / "data"
    shutil.copytree(written[layout], folder)
    file = folder / name
    content = file.read_bytes()
    file.unlink()
    if damage == "cut":
        file.write_bytes(content[:-7])
    elif damage == "binary":
        file.write_bytes(b"\xff\xfe\x00" + content)
    elif damage == "folder":
        file.mkdir()
    with pytest.raises(UserError) as caught:
        read_all(layout, folder)
    assert str(file) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_damaged_images_are_refused_by_name(suffix: str, tmp_path: Path) -> None:
    """Cut anywhere, overwritten with noise, or no image at all.

    Fails if a cut image is read as far as it goes, or a decoder's own exception comes through.
    """
    rng = random.Random(0)
    whole = tmp_path / f"whole{suffix}"
    pixels = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(whole)
    content = whole.read_bytes()
    file = tmp_path / f"damaged{suffix}"
    # The last bytes of both formats are an end mark that decoders do without.
    cuts = [content[:length] for length in (0, 1, 10, 40, 200, len(content) // 2, len(content) - 60)]
    for damaged in [*cuts, b"not an image", rng.randbytes(2000)]:
        file.write_bytes(damaged)
        with pytest.raises(UserError, match=file.name):
            Picture(file).open()
    for _ in range(200):  # noise may leave an image whole; it must never leave another exception
        noisy = bytearray(content)
        for _ in range(rng.randint(1, 20)):
            noisy[rng.randrange(len(noisy))] = rng.randrange(256)
        file.write_bytes(noisy)
        try:
            assert Picture(file).open().mode == "RGB"
        except UserError as error:
            assert file.name in str(error)
    with pytest.raises(UserError, match="no such image"):
        Picture(tmp_path / "absent.png").open()
    with pytest.raises(UserError, match="a folder instead of an image"):
        Picture(tmp_path).open()


def test_an_image_that_vanishes_after_reading_is_named_on_access(written: dict[str, Path], tmp_path: Path) -> None:
    """Fails if the error of the system comes through."""
    folder = tmp_path / "data"
    shutil.copytree(written["pope"], folder)
    sample = formats.read_pope(folder, "random")[0]
    (folder / "val2014" / sample.image_name).unlink()
    with pytest.raises(UserError, match=sample.image_name):
        sample.image()


def test_an_unknown_pope_subset_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="unknown POPE subset: rare"):
        formats.read_pope(tmp_path, "rare")


def test_a_writer_keeps_images_below_its_folder(tmp_path: Path) -> None:
    """Fails if the name of a sample can lead a writer elsewhere."""
    sample = replace(make("calibration")[0], image_name="../outside.png")
    with pytest.raises(UserError, match="leaves the image folder"):
        formats.write_calibration(tmp_path / "q.jsonl", tmp_path / "images", [sample])
    assert not list(tmp_path.rglob("*.png"))
