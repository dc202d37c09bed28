"""MMBench: multiple choice in one tab-separated file that holds its images (Liu et al. 2023).

<folder>/mmbench_dev_20230712.tsv           (MMBench)
<folder>/mmbench_dev_cn_20231003.tsv        (MMBench-CN)
<folder>/mmbench_test_20230712.tsv, mmbench_test_cn_20231003.tsv        (without answers: a server scores them)

index  question  hint  A  B  C  D  answer  category  image  source  l2-category  comment  split

`image` is a base64 JPEG or PNG, or the index of the row that has it. Rows whose index is equal modulo one million ask
one question with the options turned round: CircularEval counts it as right when all of them are. The file is read row
by row; images stay on the disk.
"""

from __future__ import annotations

import base64
import binascii
import csv
import io
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from PIL import Image

from tenfold.data.formats.encoded import decode_image, encode_image
from tenfold.data.formats.prompts import OPTION_LETTER, OPTION_LETTER_CN, multiple_choice
from tenfold.data.formats.records import Picture, not_empty, once
from tenfold.errors import UserError
from tenfold.runs import atomic_write_text

SPLITS = ("dev", "test")
LETTERS = ("A", "B", "C", "D")
_FILES = {
    ("dev", "en"): "mmbench_dev_20230712.tsv",
    ("test", "en"): "mmbench_test_20230712.tsv",
    ("dev", "cn"): "mmbench_dev_cn_20231003.tsv",
    ("test", "cn"): "mmbench_test_cn_20231003.tsv",
}
_NEEDED = ("index", "question", "A", "B", "image")
_COLUMNS = (
    "index", "question", "hint", *LETTERS, "answer", "category", "image", "source", "l2-category", "comment", "split",
)  # fmt: skip
# How pandas, which wrote the official files, spells an empty cell; LLaVA leaves out such hints and options.
_EMPTY = ("", "nan")


@dataclass(frozen=True)
class EmbeddedPicture(Picture):
    """An image in base64 in a row of a tab-separated file (`source`), read from there when asked for.

    Args:
        offset: where the row begins, in bytes.
        column: the cell's place in the row.
    """

    offset: int = 0
    column: int = 0

    def content(self) -> bytes:
        """The bytes of the image file. Raises UserError naming file and row when they are no base64."""
        assert isinstance(self.source, Path)
        try:
            with open(self.source, "rb") as file:
                file.seek(self.offset)
                row = next(_rows(file, self.source, self.offset))[1]
            return base64.b64decode(row[self.column], validate=True)
        except OSError as error:
            raise UserError(f"cannot read ({error.strerror})", self.source, "a readable file") from error
        except (binascii.Error, ValueError, IndexError, StopIteration) as error:
            raise UserError("broken base64", self.where, "the whole image in base64") from error

    def open(self) -> Image.Image:
        """The decoded image, RGB. Raises UserError naming file and row when it is broken."""
        return decode_image(self.content(), self.where)

    def write(self, path: Path) -> None:
        """Write the image's bytes to `path`."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(self.content())


@dataclass(frozen=True)
class MMBenchSample:
    """One row.

    Args:
        index: rows equal modulo one million ask the same question.
        question, hint: what is asked, and a text to read first; "" for none.
        options: two to four.
        answer: the right option's letter; None in the test splits.
        category, l2_category: what the leaderboard splits by; "" where the file has none.
        picture: the image, still in the file.
        language: "en" or "cn": the language of the request for a letter.
        split: as the row says; "" where it says nothing.
    """

    index: int
    question: str
    hint: str
    options: tuple[str, ...]
    answer: str | None
    category: str
    l2_category: str
    picture: Picture
    language: str = "en"
    split: str = "dev"

    @property
    def id(self) -> str:
        """The index as text."""
        return str(self.index)

    @property
    def prompt(self) -> str:
        """Hint, question, options and the request for a letter, a line each."""
        ending = OPTION_LETTER_CN if self.language == "cn" else OPTION_LETTER
        return multiple_choice(self.question, self.options, self.hint, ending)

    def image(self) -> Image.Image:
        """The decoded image, RGB. Raises UserError naming file and row when it is broken."""
        return self.picture.open()


def mmbench_file(folder: str | Path, split: str = "dev", language: str = "en") -> Path:
    """The official name of a split. Raises UserError for an unknown split or language."""
    if (split, language) not in _FILES:
        raise UserError("unknown MMBench split", f"{split}, {language}", "dev or test, en or cn")
    return Path(folder) / _FILES[split, language]


def read_mmbench(folder: str | Path, split: str = "dev", language: str = "en") -> list[MMBenchSample]:
    """Read a split row by row; images stay in the file until they are asked for.

    Raises:
        UserError: an unknown split or language, a missing file, one that is not UTF-8, a missing column, a row of
            another length, an index that is no number or occurs twice, an empty question or image, fewer than two
            options, an answer that is none of them or is missing in "dev", no records.
    """
    path = mmbench_file(folder, split, language)
    seen: set[int] = set()
    offsets: dict[int, int] = {}
    elsewhere: dict[int, int] = {}
    samples = []
    try:
        with open(path, "rb") as file:
            rows = _rows(file, path, 0)
            header = next(rows, (0, []))[1]
            missing = [name for name in _NEEDED if name not in header]
            if missing:
                raise UserError(f"no column {missing[0]!r}", path, f"columns {', '.join(_NEEDED)}")
            for number, (offset, row) in enumerate(rows, start=1):
                where = f"{path}, row {number}"
                if len(row) != len(header):
                    raise UserError(f"{len(row)} cells", where, f"{len(header)}, as in the first line")
                cells = dict(zip(header, row, strict=True))
                sample = _sample(cells, EmbeddedPicture(path, where, offset, header.index("image")), language, where)
                if sample.answer is None and split == "dev":
                    raise UserError("no answer", where, "a letter in column 'answer'")
                once(seen, sample.index, "index", where)
                offsets[sample.index] = offset
                if cells["image"].isdecimal():
                    elsewhere[sample.index] = int(cells["image"])
                samples.append(sample)
    except FileNotFoundError as error:
        raise UserError("no such file", path) from error
    except OSError as error:
        raise UserError(f"cannot read ({error.strerror})", path, "a readable file") from error
    return not_empty([_with_image(sample, offsets, elsewhere) for sample in samples], path)


def _with_image(sample: MMBenchSample, offsets: dict[int, int], elsewhere: dict[int, int]) -> MMBenchSample:
    """The sample; where another row has its image, with that row's place in the file."""
    if sample.index not in elsewhere:
        return sample
    other = elsewhere[sample.index]
    if other not in offsets or other in elsewhere:
        raise UserError(f"no image in row with index {other}", sample.picture.where, "the index of a row with an image")
    assert isinstance(sample.picture, EmbeddedPicture)
    return replace(sample, picture=replace(sample.picture, offset=offsets[other]))


def _sample(cells: dict[str, str], picture: EmbeddedPicture, language: str, where: str) -> MMBenchSample:
    if not cells["index"].isdecimal():
        raise UserError(f"index {cells['index']!r}", where, "a number")
    for name in ("question", "image"):
        if not cells[name]:
            raise UserError(f"empty cell {name!r}", where, "some text")
    options: list[str] = []
    for letter in LETTERS:
        if cells.get(letter, "") in _EMPTY:
            break
        options.append(cells[letter])
    if len(options) < 2:
        raise UserError(f"{len(options)} options", where, "at least two, from A on")
    answer = cells.get("answer", "")
    if answer not in _EMPTY and answer not in LETTERS[: len(options)]:
        raise UserError(f"answer {answer!r}", where, " or ".join(LETTERS[: len(options)]))
    hint = cells.get("hint", "")
    return MMBenchSample(
        index=int(cells["index"]),
        question=cells["question"],
        hint="" if hint.lower() in (*_EMPTY, "none") else hint,
        options=tuple(options),
        answer=None if answer in _EMPTY else answer,
        category=cells.get("category", ""),
        l2_category=cells.get("l2-category", ""),
        picture=picture,
        language=language,
        split=cells.get("split", ""),
    )


def _rows(file: Iterable[bytes], path: Path, start: int) -> Iterator[tuple[int, list[str]]]:
    """(where it begins in bytes, cells) of each row from `start` on; one row at a time is in memory."""
    position = start

    def lines() -> Iterator[str]:
        nonlocal position
        for line in file:
            position += len(line)
            yield line.decode("utf-8")

    reader = csv.reader(lines(), delimiter="\t", strict=True)
    while True:
        begin = position
        try:
            with _long_cells():
                row = next(reader, None)
        except UnicodeDecodeError as error:
            raise UserError("is not text", f"{path}, byte {begin}", "UTF-8") from error
        except csv.Error as error:
            raise UserError(f"broken row ({error})", f"{path}, byte {begin}", "tab-separated cells") from error
        if row is None:
            return
        if row:
            yield begin, row


@contextmanager
def _long_cells() -> Iterator[None]:
    """Let csv read cells of any length (a photo in base64 exceeds its limit), and leave its limit as it was."""
    limit = csv.field_size_limit(sys.maxsize)
    try:
        yield
    finally:
        csv.field_size_limit(limit)


def write_mmbench(
    folder: str | Path, samples: Iterable[MMBenchSample], split: str = "dev", language: str = "en"
) -> None:
    """Write a split in the official layout; an image in memory becomes a PNG."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, delimiter="\t", lineterminator="\n")
    writer.writerow(_COLUMNS)
    for sample in samples:
        picture = sample.picture
        content = picture.content() if isinstance(picture, EmbeddedPicture) else encode_image(picture)
        options = [*sample.options, *[""] * (len(LETTERS) - len(sample.options))]
        image = base64.b64encode(content).decode("ascii")
        writer.writerow(
            [
                sample.index, sample.question, sample.hint, *options, sample.answer or "", sample.category, image, "",
                sample.l2_category, "", sample.split,
            ]
        )  # fmt: skip
    atomic_write_text(mmbench_file(folder, split, language), buffer.getvalue())
