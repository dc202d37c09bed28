"""VQAv2: a json of questions, a json of annotations, a folder of COCO images (Goyal et al. 2017).

<folder>/v2_OpenEnded_mscoco_val2014_questions.json
<folder>/v2_mscoco_val2014_annotations.json             (none for the test sets)
<folder>/val2014/COCO_val2014_000000262148.jpg
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from tenfold.data.formats.records import Fields, ImageFolder, Picture, not_empty, once
from tenfold.errors import UserError
from tenfold.runs import atomic_write_json, read_json

ANSWER_TYPES = ("yes/no", "number", "other")
_SUFFIXES = (".jpg", ".png", ".jpeg")


@dataclass(frozen=True)
class VQAv2Annotation:
    """The human answers to one question (ten, officially) and what the official tables split by."""

    answers: tuple[str, ...]
    multiple_choice_answer: str
    question_type: str
    answer_type: str


@dataclass(frozen=True)
class VQAv2Sample:
    """One question about one image; `annotation` is None in the test sets."""

    question_id: int
    image_id: int
    question: str
    picture: Picture
    annotation: VQAv2Annotation | None = None

    def image(self) -> Image.Image:
        """The decoded image, RGB. Raises UserError naming a broken file."""
        return self.picture.open()


def questions_file(folder: str | Path, subset: str) -> Path:
    """The official name of a subset's questions."""
    return Path(folder) / f"v2_OpenEnded_mscoco_{subset}_questions.json"


def annotations_file(folder: str | Path, subset: str) -> Path:
    """The official name of a subset's annotations."""
    return Path(folder) / f"v2_mscoco_{subset}_annotations.json"


def _image_name(subset: str, image_id: int) -> str:
    # test-dev2015 and test2015 ask about the same images.
    images = "test2015" if subset.startswith("test") else subset
    return f"{images}/COCO_{images}_{image_id:012d}"


def read_vqav2(folder: str | Path, subset: str = "val2014") -> list[VQAv2Sample]:
    """Read a subset; images are looked up now and opened on access.

    Args:
        folder: holds the files named above.
        subset: "train2014", "val2014", "test-dev2015" or "test2015". Test sets have no annotations and need none; an
            annotations file that is there is read.

    Raises:
        UserError: a missing or broken file, a missing field or one of the wrong type, an id that occurs twice, a
            question without annotation or the other way round, a missing image file, no records.
    """
    path = questions_file(folder, subset)
    images = ImageFolder(folder)
    annotations = _read_annotations(annotations_file(folder, subset), required=not subset.startswith("test"))
    seen: set[int] = set()
    samples = []
    for number, values in enumerate(Fields(read_json(path), str(path)).items("questions")):
        record = Fields(values, f"{path}, question {number}")
        question_id, image_id = record.integer("question_id"), record.integer("image_id")
        once(seen, question_id, "question_id", record.where)
        if annotations is not None and question_id not in annotations:
            raise UserError(f"question_id {question_id} has no annotation", record.where, "one annotation a question")
        about, annotation = annotations[question_id] if annotations is not None else (image_id, None)
        if about != image_id:
            raise record.wrong("image_id", f"is {image_id}", f"{about}, as its annotation says")
        name = _image_name(subset, image_id)
        picture = images.first(tuple(name + suffix for suffix in _SUFFIXES), record.where)
        samples.append(VQAv2Sample(question_id, image_id, record.text("question"), picture, annotation))
    if annotations is not None and (left := annotations.keys() - seen):
        where = str(annotations_file(folder, subset))
        raise UserError(f"question_id {min(left)} is annotated but never asked", where, f"the questions of {path.name}")
    return not_empty(samples, path)


def _read_annotations(path: Path, required: bool) -> dict[int, tuple[int, VQAv2Annotation]] | None:
    """Question id -> (image id, annotation); None when there is no file and none is required."""
    if not required and not path.exists():
        return None
    annotations: dict[int, tuple[int, VQAv2Annotation]] = {}
    for number, values in enumerate(Fields(read_json(path), str(path)).items("annotations")):
        record = Fields(values, f"{path}, annotation {number}")
        question_id = record.integer("question_id")
        if question_id in annotations:
            raise UserError(f"question_id {question_id} twice", record.where, "unique ids")
        answers = [Fields(answer, f"{record.where}, answer {k}") for k, answer in enumerate(record.items("answers"))]
        annotation = VQAv2Annotation(
            answers=tuple(answer.text("answer") for answer in answers),
            multiple_choice_answer=record.text("multiple_choice_answer"),
            question_type=record.text("question_type"),
            answer_type=record.choice("answer_type", ANSWER_TYPES),
        )
        annotations[question_id] = (record.integer("image_id"), annotation)
    return annotations


def write_vqav2(folder: str | Path, samples: Iterable[VQAv2Sample], subset: str = "val2014") -> None:
    """Write a subset in the official layout; the annotations file only when the samples have annotations.

    Raises:
        UserError: some samples have annotations and some have none.
    """
    samples = list(samples)
    annotated = [sample for sample in samples if sample.annotation is not None]
    if annotated and len(annotated) < len(samples):
        given = f"{len(annotated)} of {len(samples)}"
        raise UserError("annotations are incomplete", given, "an annotation for every question, or for none")
    for sample in {sample.image_id: sample for sample in samples}.values():
        source = sample.picture.source
        suffix = source.suffix if isinstance(source, Path) else ".png"
        sample.picture.write(Path(folder) / (_image_name(subset, sample.image_id) + suffix))
    header = {"info": {"description": "VQA v2 layout"}, "license": {}, "data_type": "mscoco", "data_subtype": subset}
    asked = [
        {"image_id": sample.image_id, "question": sample.question, "question_id": sample.question_id}
        for sample in samples
    ]
    atomic_write_json(questions_file(folder, subset), {**header, "task_type": "Open-Ended", "questions": asked})
    if annotated:
        answered = [_annotation_record(sample, sample.annotation) for sample in annotated if sample.annotation]
        atomic_write_json(annotations_file(folder, subset), {**header, "annotations": answered})


def _annotation_record(sample: VQAv2Sample, annotation: VQAv2Annotation) -> dict[str, object]:
    return {
        "question_type": annotation.question_type,
        "multiple_choice_answer": annotation.multiple_choice_answer,
        "answers": [
            {"answer": answer, "answer_confidence": "yes", "answer_id": number}
            for number, answer in enumerate(annotation.answers, start=1)
        ],
        "image_id": sample.image_id,
        "answer_type": annotation.answer_type,
        "question_id": sample.question_id,
    }
