r"""LLaVA's json of conversations, as the LLaVA host's three tasks use it: AID, Slake and ScienceQA.

    [{"id": "109", "image": "Airport/airport_109.jpg", "answer_type": "CLOSED",
      "conversations": [{"from": "human", "value": "<image>\nWhat is the label for this image?\n..."},
                        {"from": "gpt", "value": "airport"}]}, ...]

One question and one answer a record; ``image`` may be absent (half of ScienceQA), ``answer_type`` is Slake's and
AID's.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from tenfold import UserError
from tenfold.data.pictures import open_picture
from tenfold.runs import atomic_write_json, read_json

IMAGE = "<image>"
KINDS = ("OPEN", "CLOSED")
# How ScienceQA's answers begin in the formats that LLaVA's converter writes.
ALE = "The answer is "


@dataclass(frozen=True)
class Record:
    """One question.

    Attributes:
        id: unique in its file.
        question: without the placeholder of the image.
        answer: as it is to be written.
        image: the picture's file; None: text alone.
        answer_type: "OPEN" or "CLOSED"; None: not said.
    """

    id: str
    question: str
    answer: str
    image: Path | None = None
    answer_type: str | None = None

    def picture(self) -> Image.Image | None:
        """The decoded picture, RGB. Raises UserError for a file that is none."""
        if self.image is None:
            return None
        return open_picture(self.image, raw=True)


def read_records(path: str | Path, images: str | Path) -> list[Record]:
    """Read a json of conversations.

    Args:
        images: the folder that ``image`` is relative to.

    Raises:
        UserError: a broken file, a record without question or answer, several turns, an id that comes twice, an image
            that is missing or outside of the folder, no records; each named by file and number.
    """
    content = read_json(path)
    if not isinstance(content, list):
        raise UserError(f"{type(content).__name__} instead of a list", path, "LLaVA's json of conversations")
    folder = Path(images)
    records = [_record(one, f"{path}, record {number}", folder) for number, one in enumerate(content)]
    if not records:
        raise UserError("no records", path, "at least one")
    seen: set[str] = set()
    for number, record in enumerate(records):
        if record.id in seen:
            raise UserError(f"id {record.id!r} comes twice", f"{path}, record {number}", "each once")
        seen.add(record.id)
    return records


def _record(content: Any, where: str, folder: Path) -> Record:
    if not isinstance(content, dict):
        raise UserError(f"{type(content).__name__} instead of a record", where, "id, conversations, image")
    turns = content.get("conversations")
    turns = turns if isinstance(turns, list) else []
    good = all(isinstance(turn, dict) and isinstance(turn.get("value"), str) for turn in turns)
    if not good or [turn.get("from") for turn in turns] != ["human", "gpt"]:
        raise UserError("conversations of another form", where, "one human turn and one of gpt")
    identity, kind = content.get("id"), content.get("answer_type")
    if isinstance(identity, bool) or not isinstance(identity, str | int):
        raise UserError(f"id {str(identity)[:40]!r}", where, "a text or a number")
    if kind is not None and kind not in KINDS:
        raise UserError(f"answer_type {str(kind)[:40]!r}", where, " or ".join(KINDS))
    question, answer = (turn["value"] for turn in turns)
    image = _image(content.get("image"), where, folder)
    if (image is not None) != (IMAGE in question):
        raise UserError(f"{IMAGE} and image do not go together", where, "both or neither")
    if not answer.strip():
        raise UserError("an empty answer", where, "what is to be learnt")
    return Record(str(identity), question.replace(IMAGE, "").strip(), answer.strip(), image, kind)


def _image(name: Any, where: str, folder: Path) -> Path | None:
    if name is None:
        return None
    if not isinstance(name, str) or not name or "\0" in name or len(name) > 1000:
        raise UserError(f"image {str(name)[:40]!r}", where, "a file name")
    path = folder / name
    if ".." in Path(name).parts or Path(name).is_absolute():
        raise UserError(f"image {name!r} leaves its folder", where, "a name below the images")
    if not path.is_file():
        raise UserError("no such image", path, f"the picture of {where}")
    return path


def write_records(path: str | Path, records: Iterable[Record], images: str | Path) -> None:
    """Write records in the same form; their images must lie below `images`."""
    content = []
    for record in records:
        mark = f"{IMAGE}\n" if record.image is not None else ""
        turns = [{"from": "human", "value": mark + record.question}, {"from": "gpt", "value": record.answer}]
        one: dict[str, Any] = {"id": record.id, "conversations": turns}
        if record.image is not None:
            one["image"] = record.image.relative_to(images).as_posix()
        if record.answer_type is not None:
            one["answer_type"] = record.answer_type
        content.append(one)
    atomic_write_json(path, content)


def prompt_format(records: Sequence[Record]) -> str | None:
    """The ScienceQA format of a file: "QCM-ALE" where answers begin with the letter, "QCM-LEA" where they end in it.

    None where the answers name no letter: another task.

    Raises:
        UserError: some do and some do not.
    """
    first = [record.answer.startswith(ALE) for record in records]
    last = [not begins and ALE in record.answer for begins, record in zip(first, records, strict=True)]
    letters = ["### \nANSWER: " in record.answer or "\nANSWER: " in record.answer for record in records]
    for name, found in (("QCM-ALE", first), ("QCM-LEA", last), ("QCM-LEPA", letters)):
        if all(found):
            return name
    if any(first) or any(last) or any(letters):
        raise UserError("answers in several formats", "ScienceQA's records", "one file in one format")
    return None


def check_format(expected: str | None, records: Sequence[Record], where: str | Path) -> None:
    """Refuse records in another ScienceQA format than weights were tuned on: it costs 30 to 50 points.

    Raises:
        UserError: names both formats.
    """
    found = prompt_format(records)
    if expected is not None and found is not None and found != expected:
        raise UserError(f"answers in format {found}", where, f"{expected}, which these weights were tuned on")


def check_leak(train: Sequence[Record], test: Sequence[Record], where: str | Path) -> None:
    """Refuse to evaluate on what was trained on.

    Raises:
        UserError: questions with the same picture and text are in both; says how many.
    """
    seen = {(record.image and record.image.name, record.question) for record in train}
    both = [record.id for record in test if (record.image and record.image.name, record.question) in seen]
    if both:
        raise UserError(f"{len(both)} questions were trained on, first id {both[0]}", where, "another split")
