"""MMBench: a tab-separated file with its images inside, read row by row; broken rows are refused by number."""

from __future__ import annotations

import base64
import csv
import io
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tenfold import UserError
from tenfold.data import formats, mini_sets
from tenfold.data.formats.mmbench import mmbench_file

COLUMNS = (
    "index", "question", "hint", "A", "B", "C", "D", "answer", "category", "image", "source", "l2-category", "comment",
    "split",
)  # fmt: skip


def photo(edge: int = 8) -> str:
    """A JPEG in base64."""
    pixels = np.random.default_rng(0).integers(0, 256, (edge, edge + 2, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="JPEG", quality=95)
    return base64.b64encode(buffer.getvalue()).decode()


def row(**cells: str) -> dict[str, str]:
    """A row as the official file has it (texts made up)."""
    official = {
        "index": "241", "question": "Which one is right?", "hint": "", "A": "this", "B": "that", "C": "both", "D": "",
        "answer": "B", "category": "physical_relation", "image": photo(), "source": "scienceqa",
        "l2-category": "relation_reasoning", "comment": "", "split": "dev",
    }  # fmt: skip
    return official | cells


def put(folder: Path, *rows: dict[str, str], columns: tuple[str, ...] = COLUMNS, language: str = "en") -> Path:
    """Write rows as pandas does: quoted where a cell holds a tab, a quote or a line break."""
    path = mmbench_file(folder, "dev", language)
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, delimiter="\t", lineterminator="\n", extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
    return path


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    """Fails if a writer drops a field, or a row is given another row's image."""
    made = list(mini_sets.mmbench(0, 5, 24))
    formats.write_mmbench(tmp_path, made)
    read = formats.read_mmbench(tmp_path)
    assert [replace(sample, picture=None) for sample in read] == [replace(sample, picture=None) for sample in made]
    for ours, theirs in reversed(list(zip(made, read, strict=True))):
        assert (np.asarray(ours.image()) == np.asarray(theirs.image())).all()
    formats.write_mmbench(tmp_path, read, "test")
    assert mmbench_file(tmp_path, "test").read_bytes() == mmbench_file(tmp_path).read_bytes()


def test_official_rows_are_read_with_hints_line_breaks_and_fewer_options(tmp_path: Path) -> None:
    """Fails if quoted line breaks end a row, "nan" counts as a hint, or the empty option D is listed."""
    hint = 'The passage has "quotes",\ta tab\nand a line break.'
    image = photo(10)
    put(tmp_path, row(hint=hint), row(index="1000241", hint="nan", C="nan", answer="A", image=image), row(index="7"))
    first, second, third = formats.read_mmbench(tmp_path)
    assert first.prompt == (
        f"{hint}\nWhich one is right?\nA. this\nB. that\nC. both\n"
        "Answer with the option's letter from the given choices directly."
    )
    assert (second.options, second.hint, second.answer) == (("this", "that"), "", "A")
    assert (first.category, first.l2_category) == ("physical_relation", "relation_reasoning")
    assert [sample.image().size for sample in (third, second, first)] == [(10, 8), (12, 10), (10, 8)]
    second.picture.write(tmp_path / "out" / "image.jpg")
    assert (tmp_path / "out" / "image.jpg").read_bytes() == base64.b64decode(image)


def test_the_chinese_file_asks_in_chinese(tmp_path: Path) -> None:
    """Fails if MMBench-CN's questions end in English."""
    put(tmp_path, row(question="哪个是对的？", A="这个", B="那个", C=""), language="cn")
    (sample,) = formats.read_mmbench(tmp_path, language="cn")
    assert sample.prompt == "哪个是对的？\nA. 这个\nB. 那个\n请直接回答选项字母。"
    with pytest.raises(UserError, match="unknown MMBench split: dev, fr"):
        formats.read_mmbench(tmp_path, language="fr")


def test_an_image_may_be_in_another_row(tmp_path: Path) -> None:
    """Fails if an index in the image column is decoded as base64."""
    put(tmp_path, row(index="1000241", image="241"), row(image=photo(16)))
    assert [sample.image().size for sample in formats.read_mmbench(tmp_path)] == [(18, 16), (18, 16)]
    put(tmp_path, row(index="1000241", image="9"))
    with pytest.raises(UserError, match=r"no image in row with index 9: .*tsv, row 1"):
        formats.read_mmbench(tmp_path)


def test_images_stay_on_the_disk_and_exceed_the_limit_of_csv(tmp_path: Path) -> None:
    """Fails if the rows are kept in memory, cells above csv's limit are refused, or that limit stays changed."""
    image = photo(300)
    assert len(image) > csv.field_size_limit()
    path = put(tmp_path, *(row(index=str(number), image=image) for number in range(60)))
    limit = csv.field_size_limit()
    tracemalloc.start()
    samples = formats.read_mmbench(tmp_path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < path.stat().st_size / 4
    assert samples[59].image().size == (302, 300)
    assert csv.field_size_limit() == limit


BROKEN: list[tuple[dict[str, str], str]] = [
    ({"index": "7.5"}, "index '7.5': {file}, row 2"),
    ({"index": ""}, "index '': {file}, row 2"),
    ({"index": "241"}, "index 241 twice: {file}, row 2"),
    ({"question": ""}, "empty cell 'question': {file}, row 2"),
    ({"image": ""}, "empty cell 'image': {file}, row 2"),
    ({"B": ""}, "1 options: {file}, row 2"),
    ({"A": "nan"}, "0 options: {file}, row 2"),
    ({"answer": "D"}, "answer 'D': {file}, row 2 (expected A or B or C)"),
    ({"answer": "b"}, "answer 'b': {file}, row 2"),
    ({"answer": ""}, "no answer: {file}, row 2"),
]


@pytest.mark.parametrize(("cells", "message"), BROKEN)
def test_a_broken_row_is_refused_by_its_number(cells: dict[str, str], message: str, tmp_path: Path) -> None:
    """Fails if the check of that cell is dropped, or its message does not say where."""
    file = put(tmp_path, row(), row(index="242") | cells)
    with pytest.raises(UserError) as caught:
        formats.read_mmbench(tmp_path)
    assert message.format(file=file) in str(caught.value) and "\n" not in str(caught.value)


def cut_row(text: bytes) -> bytes:
    return text[: text.rindex(b"\t")] + b"\n"


DAMAGES: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "short row": (cut_row, "13 cells: {file}, row 2"),
    "long row": (lambda text: text.rstrip(b"\n") + b"\tmore\n", "15 cells: {file}, row 2"),
    "no text": (lambda text: text + b"\xff\xfe\x00\n", "is not text: {file}"),
    "open quote": (lambda text: text + b'243\t"what', "broken row"),
    "empty": (lambda text: b"", "no column 'index': {file}"),
    "header only": (lambda text: text.split(b"\n")[0] + b"\n", "no records: {file}"),
    "commas": (lambda text: text.replace(b"\t", b","), "no column 'index': {file}"),
}


@pytest.mark.parametrize("damage", list(DAMAGES))
def test_a_damaged_file_is_named(damage: str, tmp_path: Path) -> None:
    """Fails if an error of csv or of the encoding comes through, or a torn last row is taken."""
    file = put(tmp_path, row(), row(index="242"))
    change, message = DAMAGES[damage]
    file.write_bytes(change(file.read_bytes()))
    with pytest.raises(UserError) as caught:
        formats.read_mmbench(tmp_path)
    assert message.format(file=file) in str(caught.value) and str(file) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_column_or_folder_is_named(tmp_path: Path) -> None:
    """Fails if an error of the system comes through."""
    file = mmbench_file(tmp_path)
    with pytest.raises(UserError, match=f"no such file: {file}"):
        formats.read_mmbench(tmp_path)
    put(tmp_path, row(), columns=tuple(name for name in COLUMNS if name != "image"))
    with pytest.raises(UserError, match=f"no column 'image': {file}"):
        formats.read_mmbench(tmp_path)
    file.unlink()
    file.mkdir()
    with pytest.raises(UserError, match=f"cannot read .*: {file}"):
        formats.read_mmbench(tmp_path)


@pytest.mark.parametrize("damage", ["cut base64", "cut image", "no base64", "stray mark", "no image"])
def test_a_damaged_image_is_named_by_file_and_row_on_access(damage: str, tmp_path: Path) -> None:
    """Fails if it is refused while reading, read as far as it goes, or another exception comes through."""
    whole = photo(40)
    image = {
        "cut base64": whole[: len(whole) // 2 // 4 * 4 - 1],
        "cut image": whole[: len(whole) // 2 // 4 * 4],
        "no base64": "!" * 80,
        "stray mark": f"{whole[:100]}!{whole[100:]}",
        "no image": base64.b64encode(b"not an image" * 9).decode(),
    }[damage]
    file = put(tmp_path, row(), row(index="242", image=image))
    good, broken = formats.read_mmbench(tmp_path)
    assert good.image().size == (10, 8)
    with pytest.raises(UserError, match=rf"broken (base64|image).*: {file}, row 2"):
        broken.image()


def test_a_file_that_vanishes_or_shrinks_after_reading_is_named_on_access(tmp_path: Path) -> None:
    """Fails if the error of the system or a StopIteration comes through."""
    file = put(tmp_path, row(), row(index="242"))
    _, sample = formats.read_mmbench(tmp_path)
    put(tmp_path, row(image="241"))
    with pytest.raises(UserError, match="row 2"):
        sample.image()
    file.unlink()
    with pytest.raises(UserError, match=file.name):
        sample.image()


def test_a_test_split_has_no_answers(tmp_path: Path) -> None:
    """Fails if the test split asks for answers."""
    made = [replace(sample, answer=None, split="test") for sample in mini_sets.mmbench(0, 2, 24)]
    formats.write_mmbench(tmp_path, made, "test")
    assert {sample.answer for sample in formats.read_mmbench(tmp_path, "test")} == {None}
