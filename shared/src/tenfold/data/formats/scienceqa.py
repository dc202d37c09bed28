"""ScienceQA: multiple choice with and without an image (Lu et al. 2022).

<folder>/problems.json          {"1": {"question", "choices", "answer", "hint", "image", "split", ...}, ...}
<folder>/pid_splits.json        {"train": ["1", ...], "val": [...], "test": [...], "minitest": [...], ...}
<folder>/images/<split>/<id>/image.png
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from tenfold.data.formats.records import Fields, ImageFolder, Picture, not_empty, once
from tenfold.errors import UserError
from tenfold.runs import atomic_write_json, read_json

SPLITS = ("train", "val", "test")
# The evaluation names options A to E.
MAX_CHOICES = 5


@dataclass(frozen=True)
class ScienceQASample:
    """One problem.

    Args:
        id: its number, as text.
        question, choices: what is asked and the options.
        answer: the right option's place in `choices`, from 0.
        hint: the text context; "" for none.
        subject: "natural science", "social science" or "language science".
        grade: "grade1" to "grade12".
        topic: such as "biology".
        split: "train", "val" or "test": the folder of its image. (A mini split lists problems of these.)
        picture: the image, unopened; None for none.
        lecture, solution: why the answer is right, for a training; "" for none.
    """

    id: str
    question: str
    choices: tuple[str, ...]
    answer: int
    hint: str
    subject: str
    grade: str
    topic: str
    split: str
    picture: Picture | None = None
    lecture: str = ""
    solution: str = ""

    def image(self) -> Image.Image | None:
        """The decoded image, RGB. Raises UserError naming a broken file."""
        return self.picture.open() if self.picture else None


def read_scienceqa(folder: str | Path, split: str = "test") -> list[ScienceQASample]:
    """Read the problems that `pid_splits.json` lists under `split`; images are looked up now and opened on access.

    Raises:
        UserError: a missing or broken file, an unknown split, a listed problem that is missing or listed twice, a
            missing field or one of the wrong type, an answer that is no option, a missing image file, no records.
    """
    problems_path, splits_path = Path(folder) / "problems.json", Path(folder) / "pid_splits.json"
    problems = Fields(read_json(problems_path), str(problems_path))
    splits = read_json(splits_path)
    listed = Fields(splits, str(splits_path))
    if split not in listed:
        raise UserError(f"no split {split!r}", splits_path, " or ".join(sorted(splits)))
    images = ImageFolder(Path(folder) / "images")
    seen: set[str] = set()
    samples = []
    for number, identity in enumerate(listed.items(split)):
        where = f"{splits_path}, {split} {number}"
        if not isinstance(identity, str):
            raise UserError(f"problem id {identity!r} is of type {type(identity).__name__}", where, "a string")
        once(seen, identity, "problem", where)
        samples.append(_sample(identity, problems.record(identity), images))
    return not_empty(samples, splits_path)


def _sample(identity: str, record: Fields, images: ImageFolder) -> ScienceQASample:
    choices = record.items("choices")
    if len(choices) > MAX_CHOICES or not all(isinstance(choice, str) for choice in choices):
        raise record.wrong("choices", f"is {choices!r}", f"1 to {MAX_CHOICES} strings")
    answer = record.integer("answer")
    if not 0 <= answer < len(choices):
        raise record.wrong("answer", f"is {answer}", f"0 to {len(choices) - 1}, a place in choices")
    split = record.choice("split", SPLITS)
    name = record.optional_text("image")
    picture = images.picture(f"{split}/{identity}/{name}", record.where) if name else None
    return ScienceQASample(
        id=identity,
        question=record.text("question"),
        choices=tuple(choices),
        answer=answer,
        hint=record.text("hint"),
        subject=record.text("subject"),
        grade=record.text("grade"),
        topic=record.text("topic"),
        split=split,
        picture=picture,
        lecture=_reason(record, "lecture"),
        solution=_reason(record, "solution"),
    )


def _reason(record: Fields, name: str) -> str:
    # Needed by a training alone: files for an evaluation may leave it out.
    return (record.optional_text(name) if name in record else None) or ""


def write_scienceqa(folder: str | Path, samples: Iterable[ScienceQASample]) -> None:
    """Write problems, splits and images in the official layout."""
    problems: dict[str, dict[str, Any]] = {}
    splits: dict[str, list[str]] = {split: [] for split in SPLITS}
    for sample in samples:
        once(set(problems), sample.id, "problem", "samples")
        if sample.picture is not None:
            sample.picture.write(Path(folder) / "images" / sample.split / sample.id / "image.png")
        problems[sample.id] = {
            "question": sample.question,
            "choices": list(sample.choices),
            "answer": sample.answer,
            "hint": sample.hint,
            "image": "image.png" if sample.picture is not None else None,
            "task": "closed choice",
            "grade": sample.grade,
            "subject": sample.subject,
            "topic": sample.topic,
            "category": sample.topic,
            "skill": "",
            "lecture": sample.lecture,
            "solution": sample.solution,
            "split": sample.split,
        }
        splits[sample.split].append(sample.id)
    atomic_write_json(Path(folder) / "problems.json", problems)
    atomic_write_json(Path(folder) / "pid_splits.json", splits)
