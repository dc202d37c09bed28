"""SEED-Bench, the part with images: questions with four choices in nine types (Li et al. 2023).

<folder>/SEED-Bench.json            {"questions": [...], "question_type": {"Scene Understanding": 1, ...}}
<folder>/SEED-Bench-image/<data_id>     (an image file without suffix)

{"question_id": "101669", "question_type_id": 5, "data_type": "image", "data_id": "1454426_2591111986", "answer": "A",
 "question": "How many towels are in the image?", "choice_a": "One", "choice_b": "Two", "choice_c": "Three", ...}
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from tenfold.data.formats.encoded import encode_image
from tenfold.data.formats.prompts import multiple_choice
from tenfold.data.formats.records import Fields, ImageFolder, Picture, not_empty, once, relative_name
from tenfold.errors import UserError
from tenfold.runs import atomic_write_bytes, atomic_write_json, read_json

logger = logging.getLogger(__name__)

IMAGE_FOLDER = "SEED-Bench-image"
ANSWERS = ("A", "B", "C", "D")
_CHOICES = ("choice_a", "choice_b", "choice_c", "choice_d")
# What `write_seed` numbers types by; a reader goes by the file. The last three are about videos.
QUESTION_TYPES = {
    "Scene Understanding": 1,
    "Instance Identity": 2,
    "Instance Attributes": 3,
    "Instance Location": 4,
    "Instances Counting": 5,
    "Spatial Relation": 6,
    "Instance Interaction": 7,
    "Visual Reasoning": 8,
    "Text Understanding": 9,
    "Action Recognition": 10,
    "Action Prediction": 11,
    "Procedure Understanding": 12,
}


@dataclass(frozen=True)
class SeedSample:
    """One question about one image; `answer` is a letter, `question_type` the type's name."""

    question_id: int | str
    question: str
    choices: tuple[str, ...]
    answer: str
    question_type: str
    data_id: str
    picture: Picture

    @property
    def id(self) -> str:
        """The question's id as text."""
        return str(self.question_id)

    @property
    def prompt(self) -> str:
        """Question, choices "A. ..." to "D. ..." and the request for a letter."""
        return multiple_choice(self.question, self.choices)

    def image(self) -> Image.Image:
        """The decoded image, RGB. Raises UserError naming a broken file."""
        return self.picture.open()


def read_seed(folder: str | Path) -> list[SeedSample]:
    """Read the questions about images, which are opened on access; a log message counts those about videos.

    Raises:
        UserError: a missing or broken file, a missing field or one of the wrong type, an answer that is no letter from
            A to D, an unknown question type, a question_id that occurs twice, a missing image file, no records.
    """
    path = Path(folder) / "SEED-Bench.json"
    values = read_json(path)
    content = Fields(values, str(path))
    names_of_types = content.record("question_type")
    names = {names_of_types.integer(name): name for name in values["question_type"]}
    images = ImageFolder(Path(folder) / IMAGE_FOLDER)
    seen: set[int | str] = set()
    samples, videos = [], 0
    for number, question in enumerate(content.items("questions")):
        record = Fields(question, f"{path}, question {number}")
        question_id = record.identifier("question_id")
        once(seen, question_id, "question_id", record.where)
        if record.choice("data_type", ("image", "video")) == "video":
            videos += 1
            continue
        kind = record.integer("question_type_id")
        if kind not in names:
            raise record.wrong("question_type_id", f"is {kind}", f"a number of question_type in {path.name}")
        data_id = record.text("data_id")
        picture = images.first((data_id, f"{data_id}.jpg", f"{data_id}.png"), record.where)
        choices = tuple(str(record.identifier(choice)) for choice in _CHOICES)
        answer = record.choice("answer", ANSWERS)
        sample = SeedSample(question_id, record.text("question"), choices, answer, names[kind], data_id, picture)
        samples.append(sample)
    if videos:
        logger.info("%s: passed over %d questions about videos", path, videos)
    return not_empty(samples, path)


def write_seed(folder: str | Path, samples: Iterable[SeedSample]) -> None:
    """Write questions and images in the official layout; images have no suffix, as officially.

    Raises:
        UserError: a question type that is none of QUESTION_TYPES.
    """
    questions: list[dict[str, Any]] = []
    written = set()
    for sample in samples:
        if sample.question_type not in QUESTION_TYPES:
            raise UserError("unknown question type", sample.question_type, " or ".join(QUESTION_TYPES))
        name = relative_name(sample.data_id, f"question {sample.question_id}")
        if name not in written:
            atomic_write_bytes(Path(folder) / IMAGE_FOLDER / name, encode_image(sample.picture))
            written.add(name)
        questions.append(
            {
                "question_id": sample.question_id,
                "question": sample.question,
                **dict(zip(_CHOICES, sample.choices, strict=True)),
                "answer": sample.answer,
                "data_id": sample.data_id,
                "data_type": "image",
                "question_type_id": QUESTION_TYPES[sample.question_type],
            }
        )
    atomic_write_json(Path(folder) / "SEED-Bench.json", {"questions": questions, "question_type": QUESTION_TYPES})
