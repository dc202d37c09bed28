"""OK-VQA: questions that need knowledge from outside the image, in VQA's layout (Marino et al. 2019).

<folder>/OpenEnded_mscoco_val2014_questions.json    {"questions": [{"question_id", "image_id", "question"}, ...]}
<folder>/mscoco_val2014_annotations.json            {"annotations": [{"question_id", "image_id", "answers": [{"answer",
                                                     "raw_answer", "answer_confidence", "answer_id"}, ...]}, ...]}
<folder>/val2014/COCO_val2014_000000297147.jpg

Ten answers each; "answer" is the word's stem, which the official tool compares with, "raw_answer" what was written.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from tenfold.data.formats.prompts import short_answer
from tenfold.data.formats.records import Fields, ImageFolder, Picture, not_empty, once
from tenfold.errors import UserError
from tenfold.runs import atomic_write_json, read_json

SUBSETS = ("val2014", "train2014")


@dataclass(frozen=True)
class OKVQASample:
    """One question about one image, and the human answers (ten, officially) in the form that is compared."""

    question_id: int
    image_id: int
    question: str
    answers: tuple[str, ...]
    picture: Picture

    @property
    def id(self) -> str:
        """The question's number as text."""
        return str(self.question_id)

    @property
    def prompt(self) -> str:
        """The question and the request for a short answer."""
        return short_answer(self.question)

    def image(self) -> Image.Image:
        """The decoded image, RGB. Raises UserError naming a broken file."""
        return self.picture.open()


def okvqa_files(folder: str | Path, subset: str) -> tuple[Path, Path]:
    """The official names of a subset's questions and annotations. Raises UserError for an unknown subset."""
    if subset not in SUBSETS:
        raise UserError("unknown OK-VQA subset", subset, " or ".join(SUBSETS))
    folder = Path(folder)
    return folder / f"OpenEnded_mscoco_{subset}_questions.json", folder / f"mscoco_{subset}_annotations.json"


def read_okvqa(
    folder: str | Path, subset: str = "val2014", *, image_folder: str | Path | None = None
) -> list[OKVQASample]:
    """Read a subset; images are looked up now and opened on access.

    Args:
        folder: holds the files named above.
        subset: "val2014" or "train2014".
        image_folder: where COCO's images of the subset are; None: `folder/<subset>`.

    Raises:
        UserError: an unknown subset, a missing or broken file, a missing field or one of the wrong type, an id that
            occurs twice, a question without annotation, one about another image, a missing image file, no records.
    """
    path, annotated = okvqa_files(folder, subset)
    images = ImageFolder(Path(folder) / subset if image_folder is None else image_folder)
    annotations = _read_annotations(annotated)
    seen: set[int] = set()
    samples = []
    for number, values in enumerate(Fields(read_json(path), str(path)).items("questions")):
        record = Fields(values, f"{path}, question {number}")
        question_id, image_id = record.integer("question_id"), record.integer("image_id")
        once(seen, question_id, "question_id", record.where)
        if question_id not in annotations:
            raise UserError(f"question_id {question_id} has no annotation", record.where, f"one in {annotated.name}")
        about, answers = annotations[question_id]
        if about != image_id:
            raise record.wrong("image_id", f"is {image_id}", f"{about}, as its annotation says")
        name = _image_name(subset, image_id)
        picture = images.first((f"{name}.jpg", f"{name}.png"), record.where)
        samples.append(OKVQASample(question_id, image_id, record.text("question"), answers, picture))
    return not_empty(samples, path)


def _read_annotations(path: Path) -> dict[int, tuple[int, tuple[str, ...]]]:
    """Question id -> image id and answers."""
    found: dict[int, tuple[int, tuple[str, ...]]] = {}
    for number, values in enumerate(Fields(read_json(path), str(path)).items("annotations")):
        record = Fields(values, f"{path}, annotation {number}")
        question_id = record.integer("question_id")
        if question_id in found:
            raise UserError(f"question_id {question_id} twice", record.where, "unique ids")
        answers = [Fields(answer, f"{record.where}, answer {k}") for k, answer in enumerate(record.items("answers"))]
        found[question_id] = record.integer("image_id"), tuple(answer.text("answer") for answer in answers)
    return found


def _image_name(subset: str, image_id: int) -> str:
    return f"COCO_{subset}_{image_id:012d}"


def write_okvqa(folder: str | Path, samples: Iterable[OKVQASample], subset: str = "val2014") -> None:
    """Write a subset in the official layout; an image that several questions share is written once."""
    samples = list(samples)
    questions, annotations = okvqa_files(folder, subset)
    for sample in {sample.image_id: sample for sample in samples}.values():
        source = sample.picture.source
        suffix = source.suffix if isinstance(source, Path) else ".png"
        sample.picture.write(Path(folder) / subset / (_image_name(subset, sample.image_id) + suffix))
    header = {"info": {"description": "OK-VQA layout"}, "license": {}, "data_type": "mscoco", "data_subtype": subset}
    asked = [{"image_id": one.image_id, "question": one.question, "question_id": one.question_id} for one in samples]
    answered = [
        {
            "image_id": one.image_id, "answer_type": "other", "question_type": "other", "question_id": one.question_id,
            "answers": [
                {"answer_id": number, "raw_answer": answer, "answer_confidence": "yes", "answer": answer}
                for number, answer in enumerate(one.answers, start=1)
            ],
        }
        for one in samples
    ]  # fmt: skip
    atomic_write_json(questions, {**header, "task_type": "Open-Ended", "questions": asked})
    atomic_write_json(annotations, {**header, "annotations": answered})
