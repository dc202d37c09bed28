"""OCR-VQA: questions about the covers of books, one answer each (Mishra et al. 2019).

<folder>/ocrvqa_test.jsonl      LLaVA-HR's question file: {"question_id": "0307408930", "image": "0307408930.jpg",
                                 "text": "Who wrote this book?\\nAnswer the question using ...", "answer": "..."} a line
<folder>/dataset.json           the official one: {"0307408930": {"imageURL", "questions": [...], "answers": [...],
                                 "title", "authorName", "genre", "split": 3}, ...}, read where there is no jsonl
<folder>/images/0307408930.jpg

Several questions share a book's id: a sample's own id counts them.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from PIL import Image

from tenfold.data.formats.encoded import read_keyed
from tenfold.data.formats.prompts import short_answer
from tenfold.data.formats.records import Fields, ImageFolder, Picture, not_empty, read_lines, relative_name
from tenfold.errors import UserError
from tenfold.runs import atomic_write_text

# The numbers by which dataset.json names them.
SPLITS = {"train": 1, "val": 2, "test": 3}
OFFICIAL_FILE = "dataset.json"
_SUFFIXES = (".jpg", ".png", ".jpeg", ".gif")


@dataclass(frozen=True)
class OCRVQASample:
    """One question about one cover.

    Args:
        book: the book's id; `number` counts its questions from 0.
        text: what is asked, with the request for a short answer.
        answer: the one right answer.
        image_name: the cover's file name.
        picture: the image, unopened.
    """

    book: str
    number: int
    text: str
    answer: str
    image_name: str
    picture: Picture

    @property
    def id(self) -> str:
        """Such as "0307408930/2"."""
        return f"{self.book}/{self.number}"

    @property
    def prompt(self) -> str:
        """The text as it is."""
        return self.text

    def image(self) -> Image.Image:
        """The decoded image, RGB. Raises UserError naming a broken file."""
        return self.picture.open()


def llava_file(folder: str | Path, split: str) -> Path:
    """The name of a split's question file. Raises UserError for an unknown split."""
    if split not in SPLITS:
        raise UserError("unknown OCR-VQA split", split, " or ".join(SPLITS))
    return Path(folder) / f"ocrvqa_{split}.jsonl"


def read_ocrvqa(
    folder: str | Path, split: str = "test", *, image_folder: str | Path | None = None
) -> list[OCRVQASample]:
    """Read a split, from the JSON lines or else from dataset.json; images are looked up now and opened on access.

    Args:
        folder: holds the files named above.
        split: "train", "val" or "test".
        image_folder: where the covers are; None: `folder/images`.

    Raises:
        UserError: an unknown split, neither file, a broken file, a missing field or one of the wrong type, as many
            answers as questions not, a missing image file, no records.
    """
    path, official = llava_file(folder, split), Path(folder) / OFFICIAL_FILE
    images = ImageFolder(Path(folder) / "images" if image_folder is None else image_folder)
    if path.exists():
        return not_empty(_read_lines(path, images), path)
    if not official.exists():
        raise UserError("no such file", path, f"this file or {OFFICIAL_FILE}")
    return not_empty(_read_official(official, SPLITS[split], images), f"{official}, split {SPLITS[split]}")


def _read_lines(path: Path, images: ImageFolder) -> list[OCRVQASample]:
    numbers: Counter[str] = Counter()
    samples = []
    for record in read_lines(path):
        book, name = str(record.identifier("question_id")), record.text("image")
        picture = images.picture(name, record.where)
        samples.append(OCRVQASample(book, numbers[book], record.text("text"), record.text("answer"), name, picture))
        numbers[book] += 1
    return samples


def _read_official(path: Path, split: int, images: ImageFolder) -> list[OCRVQASample]:
    samples = []
    for book, record in read_keyed(path):
        if record.integer("split") != split:
            continue
        questions, answers = _texts(record, "questions"), _texts(record, "answers")
        if len(questions) != len(answers):
            raise record.wrong("answers", f"has {len(answers)} items", f"{len(questions)}, one for each question")
        linked = PurePosixPath(record.text("imageURL")).suffix if "imageURL" in record else ""
        suffixes = dict.fromkeys((*_SUFFIXES[:1], *([linked] if linked else []), *_SUFFIXES[1:]))
        picture = images.first(tuple(f"{book}{suffix}" for suffix in suffixes), record.where)
        assert isinstance(picture.source, Path)
        samples += [
            OCRVQASample(book, number, short_answer(question), answer, picture.source.name, picture)
            for number, (question, answer) in enumerate(zip(questions, answers, strict=True))
        ]
    return samples


def _texts(record: Fields, name: str) -> list[str]:
    values = record.items(name)
    if not all(isinstance(value, str) for value in values):
        raise record.wrong(name, "holds something else", "strings")
    return values


def write_ocrvqa(folder: str | Path, samples: Iterable[OCRVQASample], split: str = "test") -> None:
    """Write a split as JSON lines; a cover that several questions share is written once."""
    lines, written = [], set()
    for sample in samples:
        name = relative_name(sample.image_name, f"question {sample.id}")
        if name not in written:
            sample.picture.write(Path(folder) / "images" / name)
            written.add(name)
        record = {"question_id": sample.book, "image": name, "text": sample.text, "answer": sample.answer}
        lines.append(json.dumps(record, ensure_ascii=False) + "\n")
    atomic_write_text(llava_file(folder, split), "".join(lines))
