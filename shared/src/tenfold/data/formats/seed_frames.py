"""SEED-Bench with its videos, each by the frame in its middle, as LLaVA's evaluation asks it (Li et al. 2023).

<folder>/SEED-Bench.json            all questions, as `tenfold.data.formats.seed` has them; "data_type" tells apart
<folder>/llava-seed-bench.jsonl     LLaVA's question file: {"question_id": 101669, "image": "SEED-Bench-image/14544...",
                                    "text": "...\\nA. One\\n..."} a line; images are named from <folder> on
<folder>/SEED-Bench-image/, <folder>/SEED-Bench-video-image/
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from tenfold.data.formats.encoded import encode_image
from tenfold.data.formats.records import Fields, ImageFolder, Picture, not_empty, once, read_lines, relative_name
from tenfold.data.formats.seed import _CHOICES, ANSWERS, QUESTION_TYPES
from tenfold.errors import UserError
from tenfold.runs import atomic_write_bytes, atomic_write_json, atomic_write_text, read_json

QUESTIONS = "llava-seed-bench.jsonl"
KINDS = ("image", "video")


@dataclass(frozen=True)
class SeedFrameSample:
    """One question about an image, or about the frame in the middle of a video.

    Args:
        question_id: as text; LLaVA's file has some as numbers.
        text: what is asked, choices and request for a letter included.
        choices, answer: the texts, and the right one's letter.
        question_type: the type's name.
        kind: "image" or "video".
        image_name: below the data set's folder.
        picture: the image, unopened.
    """

    question_id: str
    text: str
    choices: tuple[str, ...]
    answer: str
    question_type: str
    kind: str
    image_name: str
    picture: Picture

    @property
    def id(self) -> str:
        """The question's id."""
        return self.question_id

    @property
    def prompt(self) -> str:
        """The text as it is."""
        return self.text

    def image(self) -> Image.Image:
        """The decoded image, RGB. Raises UserError naming a broken file."""
        return self.picture.open()


def read_seed_frames(folder: str | Path) -> list[SeedFrameSample]:
    """Read the questions of LLaVA's file, in its order; images are looked up now and opened on access.

    Raises:
        UserError: a missing or broken file, a missing field or one of the wrong type, an answer that is no letter from
            A to D, an unknown question type, an id that occurs twice or that SEED-Bench.json does not have, a missing
            image file, no records.
    """
    known = _read_answers(Path(folder) / "SEED-Bench.json")
    path = Path(folder) / QUESTIONS
    images = ImageFolder(folder)
    seen: set[str] = set()
    samples = []
    for record in read_lines(path):
        identity, name = str(record.identifier("question_id")), record.text("image")
        once(seen, identity, "question_id", record.where)
        if identity not in known:
            raise UserError(f"question_id {identity!r} is unknown", record.where, "a question of SEED-Bench.json")
        picture = images.first((name, f"{name}.jpg", f"{name}.png"), record.where)
        samples.append(SeedFrameSample(identity, record.text("text"), *known[identity], name, picture))
    return not_empty(samples, path)


def _read_answers(path: Path) -> dict[str, tuple[tuple[str, ...], str, str, str]]:
    """Question id -> choices, answer, type and kind."""
    values = read_json(path)
    content = Fields(values, str(path))
    types = content.record("question_type")
    names = {types.integer(name): name for name in values["question_type"]}
    found: dict[str, tuple[tuple[str, ...], str, str, str]] = {}
    for number, question in enumerate(content.items("questions")):
        record = Fields(question, f"{path}, question {number}")
        identity, kind = str(record.identifier("question_id")), record.integer("question_type_id")
        if identity in found:
            raise UserError(f"question_id {identity!r} twice", record.where, "unique ids")
        if kind not in names:
            raise record.wrong("question_type_id", f"is {kind}", f"a number of question_type in {path.name}")
        choices = tuple(str(record.identifier(choice)) for choice in _CHOICES)
        answer = record.choice("answer", ANSWERS)
        found[identity] = choices, answer, names[kind], record.choice("data_type", KINDS)
    return found


def write_seed_frames(folder: str | Path, samples: Iterable[SeedFrameSample]) -> None:
    """Write both files and the images.

    Raises:
        UserError: a question type that is none of `tenfold.data.formats.seed.QUESTION_TYPES`.
    """
    questions: list[dict[str, Any]] = []
    lines, written = [], set()
    for sample in samples:
        if sample.question_type not in QUESTION_TYPES:
            raise UserError("unknown question type", sample.question_type, " or ".join(QUESTION_TYPES))
        name = relative_name(sample.image_name, f"question {sample.question_id}")
        if name not in written:
            atomic_write_bytes(Path(folder) / name, encode_image(sample.picture))
            written.add(name)
        questions.append(
            {
                "question_id": sample.question_id,
                "question": sample.text.partition("\n")[0],
                **dict(zip(_CHOICES, sample.choices, strict=True)),
                "answer": sample.answer,
                "data_id": Path(name).name,
                "data_type": sample.kind,
                "question_type_id": QUESTION_TYPES[sample.question_type],
            }
        )
        # LLaVA's file has numbers where the official one has their texts.
        identity: int | str = int(sample.question_id) if sample.question_id.isdigit() else sample.question_id
        lines.append(json.dumps({"question_id": identity, "image": name, "text": sample.text}) + "\n")
    atomic_write_json(Path(folder) / "SEED-Bench.json", {"questions": questions, "question_type": QUESTION_TYPES})
    atomic_write_text(Path(folder) / QUESTIONS, "".join(lines))
