"""VizWiz-VQA: questions that blind people asked about their own photos (Gurari et al. 2018).

<folder>/Annotations/{train,val,test}.json      (or <folder>/<split>.json, as LLaVA lays them)
<folder>/<split>/VizWiz_val_00000000.jpg

[{"image": "VizWiz_val_00000000.jpg", "question": "Ok. What is in this picture?", "answer_type": "other",
  "answers": [{"answer": "keyboard", "answer_confidence": "yes"}, ...], "answerable": 1}, ...]

The test split has image and question only: its answers are scored by a server.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from tenfold.data.formats.prompts import UNANSWERABLE, short_answer
from tenfold.data.formats.records import Fields, ImageFolder, Picture, not_empty, once, relative_name
from tenfold.errors import UserError
from tenfold.runs import atomic_write_json, read_json

SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class VizWizSample:
    """One question about one photo.

    Args:
        image_name: the photo's file name; the question has no other id.
        question: as it was spoken.
        answers: the human answers (ten, officially); none in the test split.
        picture: the image, unopened.
        answer_type: "other", "unanswerable", "yes/no" or "number"; None in the test split.
        answerable: whether the photo shows the answer; None in the test split.
    """

    image_name: str
    question: str
    answers: tuple[str, ...]
    picture: Picture
    answer_type: str | None = None
    answerable: bool | None = None

    @property
    def id(self) -> str:
        """The photo's file name."""
        return self.image_name

    @property
    def prompt(self) -> str:
        """The question, what to say when the photo does not show it, and the request for a short answer."""
        return short_answer(f"{self.question}\n{UNANSWERABLE}")

    def image(self) -> Image.Image:
        """The decoded image, RGB. Raises UserError naming a broken file."""
        return self.picture.open()


def annotations_file(folder: str | Path, split: str) -> Path:
    """Where a split's questions are: in Annotations/, or beside the images. Raises UserError for an unknown split."""
    if split not in SPLITS:
        raise UserError("unknown VizWiz split", split, " or ".join(SPLITS))
    official, beside = Path(folder) / "Annotations" / f"{split}.json", Path(folder) / f"{split}.json"
    return beside if beside.exists() and not official.exists() else official


def read_vizwiz(folder: str | Path, split: str = "val") -> list[VizWizSample]:
    """Read a split; images are looked up now and opened on access.

    Raises:
        UserError: an unknown split, a missing or broken file, a missing field or one of the wrong type, an image that
            occurs twice, a missing image file, no records.
    """
    path = annotations_file(folder, split)
    images = ImageFolder(Path(folder) / split)
    values = read_json(path)
    if not isinstance(values, list):
        raise UserError(f"{type(values).__name__} instead of a list", path, "[{...}, ...]")
    seen: set[str] = set()
    samples = []
    for number, value in enumerate(values):
        record = Fields(value, f"{path}, record {number}")
        name = record.text("image")
        once(seen, name, "image", record.where)
        picture = images.picture(name, record.where)
        answers, answer_type, answerable = _annotation(record, required=split != "test")
        samples.append(VizWizSample(name, record.text("question"), answers, picture, answer_type, answerable))
    return not_empty(samples, path)


def _annotation(record: Fields, required: bool) -> tuple[tuple[str, ...], str | None, bool | None]:
    if not required and "answers" not in record:
        return (), None, None
    answers = [Fields(answer, f"{record.where}, answer {k}") for k, answer in enumerate(record.items("answers"))]
    answerable = record.integer("answerable")
    if answerable not in (0, 1):
        raise record.wrong("answerable", f"is {answerable}", "0 or 1")
    return tuple(answer.text("answer") for answer in answers), record.text("answer_type"), bool(answerable)


def write_vizwiz(folder: str | Path, samples: Iterable[VizWizSample], split: str = "val") -> None:
    """Write a split in the official layout; samples without answers have image and question only."""
    records = []
    for sample in samples:
        name = relative_name(sample.image_name, f"image {sample.image_name}")
        sample.picture.write(Path(folder) / split / name)
        record: dict[str, Any] = {"image": name, "question": sample.question}
        if sample.answers:
            record["answers"] = [{"answer": answer, "answer_confidence": "yes"} for answer in sample.answers]
            record |= {"answer_type": sample.answer_type, "answerable": int(bool(sample.answerable))}
        records.append(record)
    annotations_file(folder, split)  # refuses an unknown split
    atomic_write_json(Path(folder) / "Annotations" / f"{split}.json", records)
