"""LLaVA's instruction data: one json list of conversations, and a folder of images (Liu et al. 2023, section 4).

[{"id": "000000033471", "image": "coco/train2017/000000033471.jpg",
  "conversations": [{"from": "human", "value": "<image>\\nWhat is ...?"}, {"from": "gpt", "value": "..."}]}, ...]
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from tenfold.data.formats.records import Fields, ImageFolder, Picture, not_empty, relative_name
from tenfold.errors import UserError
from tenfold.runs import atomic_write_json, read_json

SPEAKERS = ("human", "gpt")


@dataclass(frozen=True)
class Turn:
    """What one speaker ("human" or "gpt") says."""

    speaker: str
    text: str


@dataclass(frozen=True)
class LlavaInstructSample:
    """A conversation about one image, or about none.

    Args:
        id: not unique in the official mixtures (one COCO image appears in several sources).
        turns: one of the human turns of a conversation about an image holds `<image>`.
        image_name: relative to the image folder; None for text only.
        picture: the image, unopened; None for text only.
    """

    id: int | str
    turns: tuple[Turn, ...]
    image_name: str | None = None
    picture: Picture | None = None

    def image(self) -> Image.Image | None:
        """The decoded image, RGB. Raises UserError naming a broken file."""
        return self.picture.open() if self.picture else None


def read_llava_instruct(path: str | Path, image_folder: str | Path) -> list[LlavaInstructSample]:
    """Read a json list of conversations; images are looked up now and opened on access.

    Raises:
        UserError: a missing or broken json, a record or field of the wrong type, an unknown speaker, a conversation
            whose number of `<image>` is not one (with an image), a missing image file, no records.
    """
    records = read_json(path)
    if not isinstance(records, list):
        raise UserError(f"{type(records).__name__} instead of a list", path, "a list of conversations")
    images = ImageFolder(image_folder)
    return not_empty(
        [_sample(Fields(record, f"{path}, record {number}"), images) for number, record in enumerate(records)], path
    )


def _sample(record: Fields, images: ImageFolder) -> LlavaInstructSample:
    turns = []
    for number, values in enumerate(record.items("conversations")):
        said = Fields(values, f"{record.where}, turn {number}")
        turns.append(Turn(said.choice("from", SPEAKERS), said.text("value")))
    sample_id = record.identifier("id")
    if "image" not in record:
        return LlavaInstructSample(sample_id, tuple(turns))
    name = record.text("image")
    marks = sum(turn.text.count("<image>") for turn in turns if turn.speaker == "human")
    if marks != 1:
        raise record.wrong("conversations", f"has {marks} <image> in its human turns", "one <image> for one image")
    return LlavaInstructSample(sample_id, tuple(turns), name, images.picture(name, record.where))


def write_llava_instruct(path: str | Path, image_folder: str | Path, samples: Iterable[LlavaInstructSample]) -> None:
    """Write conversations to `path` and their images below `image_folder`."""
    records: list[dict[str, Any]] = []
    for sample in samples:
        record: dict[str, Any] = {"id": sample.id}
        if sample.picture is not None:
            record["image"] = relative_name(sample.image_name or "", f"sample {sample.id}")
            sample.picture.write(Path(image_folder) / record["image"])
        record["conversations"] = [{"from": turn.speaker, "value": turn.text} for turn in sample.turns]
        records.append(record)
    atomic_write_json(path, records)
