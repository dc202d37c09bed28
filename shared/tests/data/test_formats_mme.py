"""MME: text files of two questions, in both official layouts; broken ones are refused by name and line."""

from __future__ import annotations

import logging
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tenfold import UserError
from tenfold.data import formats, mini_sets
from tenfold.data.formats.mme import RELEASE


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small mini world, which has four of the subtasks."""
    folder = tmp_path_factory.mktemp("mme")
    formats.write_mme(folder, mini_sets.mme(0, 4, 24))
    return folder


@pytest.fixture
def folder(written: Path, tmp_path: Path) -> Path:
    """A copy of it to break."""
    shutil.copytree(written, tmp_path, dirs_exist_ok=True)
    return tmp_path


def test_what_is_written_is_read_back_in_the_official_order(folder: Path, tmp_path: Path) -> None:
    """Fails if a question, its label or its image is exchanged with another's."""
    made = list(mini_sets.mme(0, 4, 24))
    read = formats.read_mme(folder)
    order = ("existence", "count", "position", "color")
    assert list(dict.fromkeys(sample.subtask for sample in read)) == list(order)
    made.sort(key=lambda sample: (order.index(sample.subtask), sample.image_name, sample.number))
    assert [replace(sample, picture=None) for sample in read] == [replace(sample, picture=None) for sample in made]
    for ours, theirs in zip(made, read, strict=True):
        assert (np.asarray(ours.image()) == np.asarray(theirs.image())).all()
    formats.write_mme(tmp_path / "copy", read)
    copied = {p.relative_to(tmp_path / "copy"): p.read_bytes() for p in (tmp_path / "copy").rglob("*") if p.is_file()}
    assert copied == {p.relative_to(folder): p.read_bytes() for p in (folder / RELEASE).rglob("*") if p.is_file()}


def test_the_official_layouts_are_read_from_the_release_or_the_folder_above(tmp_path: Path) -> None:
    """Images beside their texts, or each in a folder. Fails if a layout, or the order of the lines, is lost."""
    root = tmp_path / RELEASE
    for subtask, images, texts in (
        ("posters", "images", "questions_answers_YN"),
        ("code_reasoning", "", ""),
    ):
        for place in (root / subtask / images, root / subtask / texts):
            place.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 6), "red").save(root / subtask / images / "0020.jpg")
        lines = (
            "Is a c++ code shown in the picture? Please answer yes or no.\tYes\n"
            "Is a python code shown in the picture? Please answer yes or no.\tNo"
        )
        (root / subtask / texts / "0020.txt").write_text(lines)
    (root / "eval_tool").mkdir()
    read = formats.read_mme(root)
    assert [sample.id for sample in read] == [sample.id for sample in formats.read_mme(tmp_path)]
    assert [(sample.id, sample.label) for sample in read] == [
        ("posters/0020.jpg#1", "yes"), ("posters/0020.jpg#2", "no"),
        ("code_reasoning/0020.jpg#1", "yes"), ("code_reasoning/0020.jpg#2", "no"),
    ]  # fmt: skip
    assert read[0].image().size == (8, 6)
    # LLaVA asks for a word or phrase where MME asks for yes or no.
    assert read[0].prompt == ("Is a c++ code shown in the picture?\nAnswer the question using a single word or phrase.")


def test_missing_subtasks_are_named_in_the_log(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Fails if an incomplete release is summed up without a word."""
    with caplog.at_level(logging.WARNING):
        formats.read_mme(folder)
    assert "4 of 14 subtasks" in caplog.text and "'OCR'" in caplog.text


QUESTION = "Is there a dog in this image? Please answer yes or no."
BROKEN = {
    "one line": (f"{QUESTION}\tYes\n", "1 lines: {file}"),
    "three lines": (f"{QUESTION}\tYes\n" * 3, "3 lines: {file}"),
    "empty": ("", "0 lines: {file}"),
    "no tab": (f"{QUESTION}\tYes\n{QUESTION} No\n", "0 tabs in a line: {file}, line 2"),
    "two tabs": (f"{QUESTION}\tYes\n{QUESTION}\tNo\tNo\n", "2 tabs in a line: {file}, line 2"),
    "label": (f"{QUESTION}\tYes\n{QUESTION}\tMaybe\n", "answer 'Maybe': {file}, line 2"),
    "binary": (b"\xff\xfe\x00", "is not text: {file}"),
}


@pytest.mark.parametrize("damage", list(BROKEN))
def test_a_broken_text_file_is_refused_by_name_and_line(damage: str, folder: Path) -> None:
    """Fails if the check is dropped, or its message does not say where."""
    content, message = BROKEN[damage]
    file = folder / RELEASE / "color" / "000000000001.txt"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError) as caught:
        formats.read_mme(folder)
    assert message.format(file=file) in str(caught.value) and "\n" not in str(caught.value)


def test_missing_files_and_folders_are_named(folder: Path, tmp_path: Path) -> None:
    """Fails if a text without an image, an empty subtask or a folder of something else is passed over."""
    with pytest.raises(UserError, match=f"no MME subtask: {tmp_path / 'none'}"):
        formats.read_mme(tmp_path / "none")
    (folder / RELEASE / "OCR").mkdir()
    with pytest.raises(UserError, match=rf"no records: {folder / RELEASE}/OCR"):
        formats.read_mme(folder)
    (folder / RELEASE / "OCR").rmdir()
    (folder / RELEASE / "count" / "000000000002.png").unlink()
    with pytest.raises(UserError, match=r"no such image: .*count/000000000002\.jpg"):
        formats.read_mme(folder)


def test_a_damaged_image_is_named_on_access(folder: Path) -> None:
    """Fails if a cut image is read as far as it goes."""
    image = folder / RELEASE / "existence" / "000000000000.png"
    image.write_bytes(image.read_bytes()[:60])
    sample = formats.read_mme(folder)[0]
    with pytest.raises(UserError, match=image.name):
        sample.image()


def test_the_writer_refuses_unpaired_questions_and_unknown_subtasks(tmp_path: Path) -> None:
    """Fails if a file is written that the reader would refuse."""
    first, second, *_ = mini_sets.mme(0, 1, 24)
    with pytest.raises(UserError, match=r"1 questions: existence/000000000000\.png"):
        formats.write_mme(tmp_path, [first])
    with pytest.raises(UserError, match="unknown MME subtask: smell/"):
        formats.write_mme(tmp_path, [replace(first, subtask="smell"), replace(second, subtask="smell")])
    with pytest.raises(UserError, match="leaves the image folder"):
        formats.write_mme(tmp_path, [replace(one, image_name="../a.png") for one in (first, second)])
    assert not list(tmp_path.rglob("*.png"))
