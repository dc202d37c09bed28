"""TextVQA, GQA, VizWiz, SEED-Bench, MM-Vet: written and read back, official examples, broken files refused by name."""

from __future__ import annotations

import json
import logging
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
from tenfold.data.formats.textvqa import LLAVA_OCR_FILE

READ = {
    "textvqa": formats.read_textvqa,
    "gqa": formats.read_gqa,
    "vizwiz": formats.read_vizwiz,
    "seed": formats.read_seed,
    "mmvet": formats.read_mmvet,
}
WRITE = {
    "textvqa": formats.write_textvqa,
    "gqa": formats.write_gqa,
    "vizwiz": formats.write_vizwiz,
    "seed": formats.write_seed,
    "mmvet": formats.write_mmvet,
}
FILES = {
    "textvqa": "TextVQA_0.5.1_val.json",
    "gqa": "testdev_balanced_questions.json",
    "vizwiz": "Annotations/val.json",
    "seed": "SEED-Bench.json",
    "mmvet": "mm-vet.json",
}


def make(layout: str) -> list[Any]:
    return list(getattr(mini_sets, layout)(0, 6, 24))


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A folder per layout, each holding a small mini world."""
    folders = {}
    for layout, write in WRITE.items():
        folders[layout] = tmp_path_factory.mktemp(layout)
        write(folders[layout], make(layout))
    return folders


@pytest.mark.parametrize("layout", list(READ))
def test_what_is_written_is_read_back(layout: str, written: dict[str, Path], tmp_path: Path) -> None:
    """Fails if a writer drops a field, or a reader returns another image's pixels."""
    samples, read = make(layout), READ[layout](written[layout])
    assert [replace(sample, picture=None) for sample in read] == [replace(sample, picture=None) for sample in samples]
    for ours, theirs in zip(samples, read, strict=True):
        assert theirs.image().mode == "RGB"
        assert (np.asarray(ours.image()) == np.asarray(theirs.image())).all()
    # A second writing, from files instead of memory, copies the images byte for byte.
    WRITE[layout](tmp_path, read)
    original = {p.relative_to(written[layout]): p.read_bytes() for p in written[layout].rglob("*") if p.is_file()}
    assert {p.relative_to(tmp_path): p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == original


@pytest.mark.parametrize("layout", list(READ))
def test_images_are_opened_on_access_only(
    layout: str, written: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fails if a reader decodes images while it reads the records."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("an image was opened")

    monkeypatch.setattr(Image, "open", refuse)
    samples = READ[layout](written[layout])
    with pytest.raises(AssertionError, match="opened"):
        samples[0].image()


def put(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")


def show(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 6), "red").save(path, format="JPEG")


def test_an_official_textvqa_record_is_read_with_and_without_llavas_ocr_tokens(tmp_path: Path) -> None:
    """Keys and names as published (texts made up). Fails if the two files are not joined by image and question."""
    show(tmp_path / "train_images" / "003a8ae2ef43b901.jpg")
    record = {
        "question": "What is the brand of this camera?", "image_id": "003a8ae2ef43b901", "image_classes": ["Camera"],
        "flickr_original_url": "x", "image_width": 1024, "image_height": 664, "set_name": "val", "question_id": 34602,
        "question_tokens": ["what"], "answers": ["dakota"] * 9 + ["clos culombu"],
    }  # fmt: skip
    second = {**record, "question_id": 34603, "question": "What time is it?"}
    header = {"dataset_type": "val", "dataset_name": "textvqa", "dataset_version": "0.5.1"}
    put(tmp_path / "TextVQA_0.5.1_val.json", {**header, "data": [record, second]})
    first, _ = formats.read_textvqa(tmp_path)
    assert (first.id, first.image().size, len(first.answers)) == ("34602", (8, 6), 10)
    ending = "Answer the question using a single word or phrase."
    assert first.prompt == f"What is the brand of this camera?\n{ending}"
    texts = [f"{q}\nReference OCR token: DAKOTA, 30\n{ending}" for q in ("what time is it?", record["question"])]
    lines = [
        {"question_id": "003a8ae2ef43b901", "image": "003a8ae2ef43b901.jpg", "text": text, "category": "default"}
        for text in texts
    ]
    put(tmp_path / LLAVA_OCR_FILE, "\n".join(map(json.dumps, lines)))
    asked = formats.read_textvqa(tmp_path, llava_questions=tmp_path / LLAVA_OCR_FILE)
    assert [(sample.id, sample.prompt) for sample in asked] == [("34602", texts[1]), ("34603", texts[0])]
    formats.write_textvqa(tmp_path / "copy", asked)
    assert (tmp_path / "copy" / LLAVA_OCR_FILE).is_file()
    put(tmp_path / LLAVA_OCR_FILE, json.dumps(lines[0]))
    with pytest.raises(UserError, match="no text for the question of image '003a8ae2ef43b901'"):
        formats.read_textvqa(tmp_path, llava_questions=tmp_path / LLAVA_OCR_FILE)


def test_a_textvqa_test_split_has_other_images_and_no_answers(tmp_path: Path) -> None:
    """Fails if test looks into train_images, or asks for answers."""
    samples = [replace(sample, answers=()) for sample in make("textvqa")]
    formats.write_textvqa(tmp_path, samples, "test")
    assert (tmp_path / "test_images").is_dir()
    assert all(sample.answers == () for sample in formats.read_textvqa(tmp_path, "test"))
    with pytest.raises(UserError, match="unknown TextVQA split: dev"):
        formats.read_textvqa(tmp_path, "dev")


def test_official_gqa_records_are_read_and_llavas_file_chooses_and_orders_them(tmp_path: Path) -> None:
    """Keys as published (texts made up). Fails if LLaVA's order or text is not taken."""
    show(tmp_path / "images" / "n161313.jpg")
    record = {
        "semantic": [], "entailed": [], "equivalent": ["201307251"], "question": "Is it overcast?",
        "imageId": "n161313", "isBalanced": True, "groups": {"global": None, "local": "13-weather_overcast"},
        "answer": "no", "semanticStr": "x", "annotations": {}, "fullAnswer": "No, it is clear.",
        "types": {"detailed": "weatherVerify", "semantic": "global", "structural": "verify"},
    }  # fmt: skip
    other = {**record, "question": "What is it?", "answer": "tree", "types": {"structural": "query"}}
    put(tmp_path / FILES["gqa"], {"201307251": record, "20": other, "21": other})
    read = formats.read_gqa(tmp_path)
    assert [(sample.id, sample.structural) for sample in read] == [
        ("201307251", "verify"), ("20", "query"), ("21", "query"),
    ]  # fmt: skip
    lines = [{"question_id": one, "image": "n161313.jpg", "text": f"T{one}"} for one in ("20", "201307251")]
    put(tmp_path / "llava.jsonl", "\n".join(map(json.dumps, lines)))
    asked = formats.read_gqa(tmp_path, llava_questions=tmp_path / "llava.jsonl")
    assert [(sample.id, sample.prompt) for sample in asked] == [("20", "T20"), ("201307251", "T201307251")]
    put(tmp_path / "llava.jsonl", json.dumps({**lines[0], "question_id": "9"}))
    with pytest.raises(UserError, match=r"question_id '9' is unknown: .*llava\.jsonl, line 1"):
        formats.read_gqa(tmp_path, llava_questions=tmp_path / "llava.jsonl")


def test_a_gqa_question_needs_an_answer_except_in_a_test_split(tmp_path: Path) -> None:
    """Fails if testdev ("test" is in its name) is read without answers."""
    samples = [replace(sample, answer=None) for sample in make("gqa")]
    formats.write_gqa(tmp_path, samples, "test_balanced")
    assert formats.read_gqa(tmp_path, "test_balanced")[0].answer is None
    formats.write_gqa(tmp_path, samples)
    with pytest.raises(UserError, match="field 'answer' is missing"):
        formats.read_gqa(tmp_path)


def test_official_vizwiz_records_are_read_and_the_test_split_has_no_answers(tmp_path: Path) -> None:
    """Keys as published (texts made up); LLaVA puts test.json beside its images. Fails if either place is not tried."""
    answers = [{"answer": "basil leaves", "answer_confidence": "maybe"}] * 10
    record = {
        "image": "VizWiz_val_00000001.jpg", "question": "Can you tell me what this is?", "answers": answers,
        "answer_type": "other", "answerable": 1,
    }  # fmt: skip
    show(tmp_path / "val" / record["image"])
    show(tmp_path / "test" / "VizWiz_test_00000001.jpg")
    put(tmp_path / "Annotations" / "val.json", [record])
    (sample,) = formats.read_vizwiz(tmp_path)
    assert (sample.answers, sample.answerable, sample.id) == (("basil leaves",) * 10, True, record["image"])
    put(tmp_path / "test.json", [{"image": "VizWiz_test_00000001.jpg", "question": "Ok. What is it?"}])
    (sample,) = formats.read_vizwiz(tmp_path, "test")
    assert (sample.answers, sample.answer_type, sample.answerable) == ((), None, None)
    assert sample.prompt == (
        "Ok. What is it?\nWhen the provided information is insufficient, respond with 'Unanswerable'.\n"
        "Answer the question using a single word or phrase."
    )
    with pytest.raises(UserError, match=r"no such file: .*Annotations/train\.json"):
        formats.read_vizwiz(tmp_path, "train")


def test_official_seed_questions_are_read_and_videos_are_passed_over_with_a_count(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Fails if a question about a video looks for an image, or vanishes without a word."""
    show(tmp_path / "SEED-Bench-image" / "1454426_2591111986")
    question = {
        "answer": "A", "choice_a": "One", "choice_b": "Two", "choice_c": "Three", "choice_d": "Four",
        "data_id": "1454426_2591111986", "data_type": "image", "question": "How many towels are in the image?",
        "question_id": "101669", "question_type_id": 5,
    }  # fmt: skip
    video = {**question, "data_type": "video", "data_id": "28954.webm", "question_id": "2", "question_type_id": 10}
    types = {"Instances Counting": 5, "Action Recognition": 10}
    put(tmp_path / "SEED-Bench.json", {"questions": [video, question], "question_type": types})
    with caplog.at_level(logging.INFO):
        (sample,) = formats.read_seed(tmp_path)
    assert "1 questions about videos" in caplog.text
    assert (sample.question_type, sample.image().size) == ("Instances Counting", (8, 6))
    assert sample.prompt == (
        "How many towels are in the image?\nA. One\nB. Two\nC. Three\nD. Four\n"
        "Answer with the option's letter from the given choices directly."
    )


def test_an_official_mmvet_record_is_read(tmp_path: Path) -> None:
    """Keys as published (texts made up). Fails if anything is added to the question."""
    show(tmp_path / "images" / "v1_0.png")
    record = {
        "imagename": "v1_0.png", "question": "What is x in the equation?", "answer": "-1<AND>-5", "imagesource": "url",
        "capability": ["ocr", "math"],
    }  # fmt: skip
    put(tmp_path / "mm-vet.json", {"v1_0": record})
    (sample,) = formats.read_mmvet(tmp_path)
    assert (sample.id, sample.prompt, sample.capabilities) == ("v1_0", "What is x in the equation?", ("ocr", "math"))


# --- broken files: (layout, what is done to its file, what the message must say) ---

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


G, T, S = "000001000", ("data", 1), ("questions", 1)
BROKEN = [
    ("textvqa", edit(*T, "question", drop=True), "'question' is missing: {file}, record 1"),
    ("textvqa", edit(*T, "question_id", value="7"), "'question_id' is of type str: {file}, record 1"),
    ("textvqa", edit(*T, "question_id", value=0), "question_id 0 twice: {file}, record 1"),
    ("textvqa", edit(*T, "image_id", value="gone"), "no such image: {folder}/train_images/gone.jpg"),
    ("textvqa", edit(*T, "image_id", value="../x"), "leaves the image folder: {file}, record 1"),
    ("textvqa", edit(*T, "answers", value=["a"] * 9), "10 strings"),
    ("textvqa", edit(*T, "answers", 3, value=3), "10 strings"),
    ("textvqa", edit(*T, "answers", drop=True), "'answers' is missing: {file}, record 1"),
    ("textvqa", edit(*T, value=3), "int instead of an object: {file}, record 1"),
    ("textvqa", edit("data", value=[]), "'data' is empty: {file}"),
    ("textvqa", lambda data: data["data"], "list instead of an object: {file}"),
    ("gqa", edit(G, "question", drop=True), "'question' is missing: {file}, " + G),
    ("gqa", edit(G, "imageId", value=3), "'imageId' is of type int: {file}, " + G),
    ("gqa", edit(G, "imageId", value="n99"), "no such image: {folder}/images/n99.jpg"),
    ("gqa", edit(G, "answer", value=None), "'answer' is of type NoneType: {file}, " + G),
    ("gqa", edit(G, "types", value="query"), "str instead of an object: {file}, " + G + ", types"),
    ("gqa", edit(G, value=[]), "list instead of an object: {file}, " + G),
    ("gqa", lambda data: {}, "no records: {file}"),
    ("gqa", lambda data: list(data.values()), "list instead of an object: {file}"),
    ("vizwiz", edit(2, "image", drop=True), "'image' is missing: {file}, record 2"),
    ("vizwiz", edit(2, "image", value="VizWiz_val_00000000.png"), "twice: {file}, record 2"),
    ("vizwiz", edit(2, "image", value="gone.jpg"), "no such image: {folder}/val/gone.jpg"),
    ("vizwiz", edit(2, "question", value=None), "'question' is of type NoneType: {file}, record 2"),
    ("vizwiz", edit(2, "answers", drop=True), "'answers' is missing: {file}, record 2"),
    ("vizwiz", edit(2, "answers", 1, "answer", value=1), "'answer' is of type int: {file}, record 2, answer 1"),
    ("vizwiz", edit(2, "answerable", value=2), "'answerable' is 2: {file}, record 2"),
    ("vizwiz", lambda data: {"data": data}, "dict instead of a list: {file}"),
    ("vizwiz", lambda data: [], "no records: {file}"),
    ("seed", edit(*S, "choice_c", drop=True), "'choice_c' is missing: {file}, question 1"),
    ("seed", edit(*S, "answer", value="E"), "'answer' is 'E': {file}, question 1"),
    ("seed", edit(*S, "data_type", value="sound"), "'data_type' is 'sound': {file}, question 1"),
    ("seed", edit(*S, "question_type_id", value=99), "'question_type_id' is 99: {file}, question 1"),
    ("seed", edit(*S, "question_type_id", value="5"), "'question_type_id' is of type str: {file}, question 1"),
    ("seed", edit(*S, "question_id", value="1"), "question_id '1' twice: {file}, question 1"),
    ("seed", edit(*S, "data_id", value="gone"), "no such image: {folder}/SEED-Bench-image/gone"),
    ("seed", edit("question_type", drop=True), "'question_type' is missing: {file}"),
    ("seed", edit("question_type", "Visual Reasoning", value="8"), "'Visual Reasoning' is of type str"),
    ("seed", edit("questions", value=[]), "'questions' is empty: {file}"),
    ("mmvet", edit("v1_1", "imagename", drop=True), "'imagename' is missing: {file}, v1_1"),
    ("mmvet", edit("v1_1", "imagename", value="gone.png"), "no such image: {folder}/images/gone.png"),
    ("mmvet", edit("v1_1", "capability", value=[1]), "'capability' is [1]: {file}, v1_1"),
    ("mmvet", edit("v1_1", "answer", value=3), "'answer' is of type int: {file}, v1_1"),
    ("mmvet", lambda data: {}, "no records: {file}"),
]  # fmt: skip


@pytest.mark.parametrize(("layout", "change", "message"), BROKEN)
def test_a_broken_record_is_refused_by_file_record_and_field(
    layout: str, change: Change, message: str, written: dict[str, Path], tmp_path: Path
) -> None:
    """Fails if the check of that field is dropped, or its message does not say where."""
    folder = tmp_path / "data"
    shutil.copytree(written[layout], folder)
    file = folder / FILES[layout]
    put(file, change(json.loads(file.read_text(encoding="utf-8"))))
    with pytest.raises(UserError) as caught:
        READ[layout](folder)
    assert message.format(file=file, folder=folder) in str(caught.value)
    assert "expected" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("layout", list(READ))
@pytest.mark.parametrize("damage", ["missing", "cut", "binary", "folder", "empty"])
def test_a_file_that_cannot_be_read_is_named(
    layout: str, damage: str, written: dict[str, Path], tmp_path: Path
) -> None:
    """Fails if an error of the system or of json comes through."""
    folder = tmp_path / "data"
    shutil.copytree(written[layout], folder)
    file = folder / FILES[layout]
    content = file.read_bytes()
    file.unlink()
    if damage == "folder":
        file.mkdir()
    elif damage != "missing":
        file.write_bytes({"cut": content[:-7], "binary": b"\xff\xfe\x00" + content, "empty": b""}[damage])
    with pytest.raises(UserError) as caught:
        READ[layout](folder)
    assert str(file) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("layout", ["gqa", "mmvet"])
def test_a_key_that_occurs_twice_is_refused(layout: str, written: dict[str, Path], tmp_path: Path) -> None:
    """Fails if the file is read with plain `json.loads`, which keeps the last of two equal keys."""
    folder = tmp_path / "data"
    shutil.copytree(written[layout], folder)
    file = folder / FILES[layout]
    first = next(iter(json.loads(file.read_text())))
    file.write_text(file.read_text().rstrip().removesuffix("}") + f', "{first}": {{}}}}')
    with pytest.raises(UserError, match=f"key '{first}' twice: {file}"):
        READ[layout](folder)


def test_writers_keep_images_below_their_folder_and_types_official(tmp_path: Path) -> None:
    """Fails if the name of a sample can lead a writer elsewhere, or a question type has no number."""
    names = {"textvqa": "image_id", "gqa": "image_id", "vizwiz": "image_name", "seed": "data_id", "mmvet": "image_name"}
    for layout, name in names.items():
        with pytest.raises(UserError, match="leaves the image folder"):
            WRITE[layout](tmp_path / "data", [replace(make(layout)[0], **{name: "../outside"})])
    with pytest.raises(UserError, match="unknown question type: Smell"):
        formats.write_seed(tmp_path / "data", [replace(make("seed")[0], question_type="Smell")])
    assert not list(tmp_path.rglob("outside*"))
