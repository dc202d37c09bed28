"""GQA: questions made from scene graphs, one-word answers, a folder of images (Hudson and Manning 2019).

<folder>/testdev_balanced_questions.json    {"201307251": {"imageId", "question", "answer", "types": {...}, ...}, ...}
<folder>/images/<imageId>.jpg
<folder>/llava_gqa_testdev_balanced.jsonl   (LLaVA's question file, optional)

LLaVA's file has {"question_id": "201307251", "image": "n161313.jpg", "text": "Is it overcast?\\nAnswer the ..."}.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from tenfold.data.formats.encoded import read_keyed
from tenfold.data.formats.prompts import short_answer
from tenfold.data.formats.records import ImageFolder, Picture, not_empty, once, read_lines, relative_name
from tenfold.errors import UserError
from tenfold.runs import atomic_write_json

TESTDEV = "testdev_balanced"


@dataclass(frozen=True)
class GQASample:
    """One question about one image.

    Args:
        id: the question's key.
        question: as the file has it.
        answer: one word or phrase, in lower case; None in the test splits.
        image_id: the image file's stem.
        picture: the image, unopened.
        structural: "query" (open), "verify", "logical", "choose" or "compare" (binary); None where the file is silent.
        asked: LLaVA's text in place of the question, where its file was read.
    """

    id: str
    question: str
    answer: str | None
    image_id: str
    picture: Picture
    structural: str | None = None
    asked: str | None = None

    @property
    def prompt(self) -> str:
        """What is asked: the question and the request for a short answer, or LLaVA's text."""
        return short_answer(self.question) if self.asked is None else self.asked

    def image(self) -> Image.Image:
        """The decoded image, RGB. Raises UserError naming a broken file."""
        return self.picture.open()


def questions_file(folder: str | Path, split: str) -> Path:
    """The official name of a split's questions."""
    return Path(folder) / f"{split}_questions.json"


def read_gqa(folder: str | Path, split: str = TESTDEV, *, llava_questions: str | Path | None = None) -> list[GQASample]:
    """Read a split; images are looked up now and opened on access.

    Args:
        folder: holds the files named above.
        split: "testdev_balanced", "val_balanced", "test_balanced" and so on; only "test..." may lack answers.
        llava_questions: LLaVA's question file; its questions are returned, in its order, with its texts as prompts.

    Raises:
        UserError: a missing or broken file, a missing field or one of the wrong type, a key that occurs twice, a
            question of LLaVA's file that the split does not have or that occurs twice, a missing image file, no
            records.
    """
    path = questions_file(folder, split)
    images = ImageFolder(Path(folder) / "images")
    samples = []
    for identity, record in read_keyed(path):
        image_id = record.text("imageId")
        answer = record.text("answer") if not split.startswith("test_") or "answer" in record else None
        structural = record.record("types").optional_text("structural") if "types" in record else None
        picture = images.first((f"{image_id}.jpg", f"{image_id}.png"), record.where)
        samples.append(GQASample(identity, record.text("question"), answer, image_id, picture, structural))
    if llava_questions is not None:
        samples = _asked_by_llava({sample.id: sample for sample in samples}, path, llava_questions)
    return not_empty(samples, path)


def _asked_by_llava(samples: dict[str, GQASample], path: Path, llava_questions: str | Path) -> list[GQASample]:
    seen: set[str] = set()
    found = []
    for record in read_lines(llava_questions):
        identity = str(record.identifier("question_id"))
        once(seen, identity, "question_id", record.where)
        if identity not in samples:
            raise UserError(f"question_id {identity!r} is unknown", record.where, f"a question of {path}")
        values = {**vars(samples[identity]), "asked": record.text("text")}
        found.append(GQASample(**values))
    return found


def write_gqa(folder: str | Path, samples: Iterable[GQASample], split: str = TESTDEV) -> None:
    """Write a split in the official layout; an image that several questions share is written once."""
    records: dict[str, dict[str, Any]] = {}
    written = set()
    for sample in samples:
        once(set(records), sample.id, "question", "samples")
        source = sample.picture.source
        suffix = source.suffix if isinstance(source, Path) else ".png"
        name = relative_name(sample.image_id + suffix, f"question {sample.id}")
        if name not in written:
            sample.picture.write(Path(folder) / "images" / name)
            written.add(name)
        record: dict[str, Any] = {"imageId": sample.image_id, "question": sample.question, "isBalanced": True}
        if sample.answer is not None:
            record["answer"] = sample.answer
        if sample.structural is not None:
            record["types"] = {"structural": sample.structural}
        records[sample.id] = record
    atomic_write_json(questions_file(folder, split), records)
