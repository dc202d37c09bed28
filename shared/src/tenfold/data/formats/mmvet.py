"""MM-Vet: open questions that need several abilities at once (Yu et al. 2023). A language model judges the answers.

<folder>/mm-vet.json        {"v1_0": {"imagename", "question", "answer", "imagesource", "capability": [...]}, ...}
<folder>/images/v1_0.png
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from tenfold.data.formats.encoded import read_keyed
from tenfold.data.formats.records import ImageFolder, Picture, not_empty, once, relative_name
from tenfold.runs import atomic_write_json


@dataclass(frozen=True)
class MMVetSample:
    """One question; `answer` is the reference (with "<AND>" and "<OR>"), `capabilities` such as ("ocr", "math")."""

    id: str
    question: str
    answer: str
    image_name: str
    capabilities: tuple[str, ...]
    picture: Picture

    @property
    def prompt(self) -> str:
        """The question as it is: answers are free text."""
        return self.question

    def image(self) -> Image.Image:
        """The decoded image, RGB. Raises UserError naming a broken file."""
        return self.picture.open()


def read_mmvet(folder: str | Path) -> list[MMVetSample]:
    """Read the questions; images are looked up now and opened on access.

    Raises:
        UserError: a missing or broken file, a missing field or one of the wrong type, a key that occurs twice, a
            missing image file, no records.
    """
    path = Path(folder) / "mm-vet.json"
    images = ImageFolder(Path(folder) / "images")
    samples = []
    for identity, record in read_keyed(path):
        name = record.text("imagename")
        capabilities = record.items("capability")
        if not all(isinstance(capability, str) for capability in capabilities):
            raise record.wrong("capability", f"is {capabilities!r}", "strings")
        picture = images.picture(name, record.where)
        sample = MMVetSample(
            identity, record.text("question"), record.text("answer"), name, tuple(capabilities), picture
        )
        samples.append(sample)
    return not_empty(samples, path)


def write_mmvet(folder: str | Path, samples: Iterable[MMVetSample]) -> None:
    """Write questions and images in the official layout; an image that several questions share is written once."""
    records: dict[str, dict[str, Any]] = {}
    written = set()
    for sample in samples:
        once(set(records), sample.id, "question", "samples")
        name = relative_name(sample.image_name, f"question {sample.id}")
        if name not in written:
            sample.picture.write(Path(folder) / "images" / name)
            written.add(name)
        records[sample.id] = {
            "imagename": name,
            "question": sample.question,
            "answer": sample.answer,
            "imagesource": "",
            "capability": list(sample.capabilities),
        }
    atomic_write_json(Path(folder) / "mm-vet.json", records)
