"""TextVQA 0.5.1: questions about text in photos, ten human answers each (Singh et al. 2019).

<folder>/TextVQA_0.5.1_val.json         {"data": [{"question_id", "image_id", "question", "answers": [10], ...}, ...]}
<folder>/train_images/<image_id>.jpg    (of train and val; those of test are in test_images)
<folder>/llava_textvqa_val_v051_ocr.jsonl                   (LLaVA's question file, optional)

LLaVA's file asks the same questions with the text that an OCR system found; its question_id is the image's:
{"question_id": "003a8ae2ef43b901", "image": "003a8ae2ef43b901.jpg", "category": "default",
 "text": "what is the brand of this camera?\\nReference OCR token: N, u, g0\\nAnswer the question using a ..."}
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from tenfold.data.formats.prompts import short_answer
from tenfold.data.formats.records import Fields, ImageFolder, Picture, not_empty, once, read_lines, relative_name
from tenfold.errors import UserError
from tenfold.runs import atomic_write_json, atomic_write_text, read_json

SPLITS = ("train", "val", "test")
HUMANS = 10
LLAVA_OCR_FILE = "llava_textvqa_val_v051_ocr.jsonl"


@dataclass(frozen=True)
class TextVQASample:
    """One question about one image.

    Args:
        question_id, image_id: as the file numbers them.
        question: as the annotators wrote it.
        answers: the ten human answers; none in the test split.
        picture: the image, unopened.
        asked: LLaVA's text in place of the question, where its file was read.
    """

    question_id: int
    image_id: str
    question: str
    answers: tuple[str, ...]
    picture: Picture
    asked: str | None = None

    @property
    def id(self) -> str:
        """The question's number as text."""
        return str(self.question_id)

    @property
    def prompt(self) -> str:
        """What is asked: LLaVA's text with the OCR tokens, or the question and the request for a short answer."""
        return short_answer(self.question) if self.asked is None else self.asked

    def image(self) -> Image.Image:
        """The decoded image, RGB. Raises UserError naming a broken file."""
        return self.picture.open()


def questions_file(folder: str | Path, split: str) -> Path:
    """The official name of a split. Raises UserError for an unknown one."""
    if split not in SPLITS:
        raise UserError("unknown TextVQA split", split, " or ".join(SPLITS))
    return Path(folder) / f"TextVQA_0.5.1_{split}.json"


def read_textvqa(
    folder: str | Path, split: str = "val", *, llava_questions: str | Path | None = None
) -> list[TextVQASample]:
    """Read a split as `TextVQASample`s; images are looked up now and opened on access.

    Args:
        folder: holds the files named above.
        split: "train", "val" or "test"; only the test split may lack answers.
        llava_questions: LLaVA's question file; its texts become the prompts.

    Raises:
        UserError: an unknown split, a missing or broken file, a missing field or one of the wrong type, other than ten
            answers, a question_id that occurs twice, a question that LLaVA's file does not ask, a missing image file,
            no records.
    """
    path = questions_file(folder, split)
    images = ImageFolder(Path(folder) / _image_folder(split))
    asked = {} if llava_questions is None else _read_llava_questions(llava_questions)
    seen: set[int] = set()
    samples = []
    for number, values in enumerate(Fields(read_json(path), str(path)).items("data")):
        record = Fields(values, f"{path}, record {number}")
        question_id, image_id, question = (
            record.integer("question_id"), record.text("image_id"), record.text("question"),
        )  # fmt: skip
        once(seen, question_id, "question_id", record.where)
        answers = _answers(record) if split != "test" or "answers" in record else ()
        picture = images.first((f"{image_id}.jpg", f"{image_id}.png"), record.where)
        text = asked.get((image_id, question.lower()))
        if text is None and llava_questions is not None:
            raise UserError(f"no text for the question of image {image_id!r}", llava_questions, f"all of {path.name}")
        samples.append(TextVQASample(question_id, image_id, question, answers, picture, text))
    return not_empty(samples, path)


def _answers(record: Fields) -> tuple[str, ...]:
    answers = record.items("answers")
    if len(answers) != HUMANS or not all(isinstance(answer, str) for answer in answers):
        raise record.wrong("answers", f"is {answers!r}", f"{HUMANS} strings")
    return tuple(answers)


def _read_llava_questions(path: str | Path) -> dict[tuple[str, str], str]:
    """(image id, question in lower case) -> text: what LLaVA's evaluation joins the two files by."""
    asked = {}
    for record in read_lines(path):
        text = record.text("text")
        asked[str(record.identifier("question_id")), text.split("\n")[0].lower()] = text
    return asked


def _image_folder(split: str) -> str:
    return "test_images" if split == "test" else "train_images"


def write_textvqa(folder: str | Path, samples: Iterable[TextVQASample], split: str = "val") -> None:
    """Write a split in the official layout; LLaVA's question file too where samples have its texts."""
    samples = list(samples)
    records, lines, written = [], [], set()
    for sample in samples:
        source = sample.picture.source
        suffix = source.suffix if isinstance(source, Path) else ".png"
        name = relative_name(sample.image_id + suffix, f"question {sample.question_id}")
        if name not in written:
            sample.picture.write(Path(folder) / _image_folder(split) / name)
            written.add(name)
        record = {"question_id": sample.question_id, "image_id": sample.image_id, "question": sample.question}
        answers = {"answers": list(sample.answers)} if sample.answers else {}
        records.append({**record, **answers, "set_name": split})
        if sample.asked is not None:
            line = {"question_id": sample.image_id, "image": name, "text": sample.asked, "category": "default"}
            lines.append(json.dumps(line, ensure_ascii=False) + "\n")
    header = {"dataset_type": split, "dataset_name": "textvqa", "dataset_version": "0.5.1"}
    atomic_write_json(questions_file(folder, split), {**header, "data": records})
    if lines:
        atomic_write_text(Path(folder) / LLAVA_OCR_FILE, "".join(lines))
