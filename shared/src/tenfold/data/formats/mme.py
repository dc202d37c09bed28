"""MME: two yes/no questions about each image, in fourteen subtasks (Fu et al. 2023).

<folder>/MME_Benchmark_release_version/<subtask>/<name>.jpg and <name>.txt, side by side, or, for artwork, celebrity,
landmark, posters and scene,
<folder>/MME_Benchmark_release_version/<subtask>/images/<name>.jpg and .../questions_answers_YN/<name>.txt

A text file has two lines, a tab between question and answer: "Is there a dog in this image? Please answer yes or no."
and "Yes" or "No". The folder MME_Benchmark_release_version itself may be named too.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from tenfold.data.formats.prompts import short_answer
from tenfold.data.formats.records import ImageFolder, Picture, not_empty, relative_name
from tenfold.errors import UserError
from tenfold.metrics.mme import SUBTASKS
from tenfold.runs import atomic_write_text, read_text

logger = logging.getLogger(__name__)

RELEASE = "MME_Benchmark_release_version"
# Subtasks with a folder for the images and one for the questions.
IN_FOLDERS = ("posters", "celebrity", "scene", "landmark", "artwork")
YES_OR_NO = "Please answer yes or no."
_SUFFIXES = (".jpg", ".png", ".jpeg")
_PER_IMAGE = 2


@dataclass(frozen=True)
class MMESample:
    """One question about one image.

    Args:
        subtask: one of `tenfold.metrics.mme.SUBTASKS`.
        image_name: the image's file name.
        number: 1 or 2, the line of the image's text file.
        question: the line, with "Please answer yes or no.".
        label: "yes" or "no".
        picture: the image, unopened.
    """

    subtask: str
    image_name: str
    number: int
    question: str
    label: str
    picture: Picture

    @property
    def id(self) -> str:
        """Such as "color/0001.png#2"."""
        return f"{self.subtask}/{self.image_name}#{self.number}"

    @property
    def prompt(self) -> str:
        """The question with LLaVA's request for a short answer in place of MME's for yes or no."""
        return short_answer(self.question.replace(YES_OR_NO, "").strip())

    def image(self) -> Image.Image:
        """The decoded image, RGB. Raises UserError naming a broken file."""
        return self.picture.open()


def read_mme(folder: str | Path) -> list[MMESample]:
    """Read the subtasks that are there, in the official order, images sorted by name; opened on access.

    A release has all fourteen; a warning names those that are missing.

    Raises:
        UserError: no subtask, a text file that has not two lines of question, tab and Yes or No, one without an image.
    """
    root = Path(folder) / RELEASE
    root = root if root.is_dir() else Path(folder)
    missing = [subtask for subtask in SUBTASKS if not (root / subtask).is_dir()]
    if len(missing) == len(SUBTASKS):
        raise UserError("no MME subtask", root, f"folders such as {SUBTASKS[0]}")
    if missing:
        logger.warning("%s: %d of %d subtasks, without %s", root, len(SUBTASKS) - len(missing), len(SUBTASKS), missing)
    return not_empty(
        [sample for subtask in SUBTASKS if subtask not in missing for sample in _read_subtask(root, subtask)], root
    )


def _read_subtask(root: Path, subtask: str) -> list[MMESample]:
    folder = root / subtask
    in_folders = (folder / "images").is_dir()
    images = ImageFolder(folder / "images" if in_folders else folder)
    texts = folder / "questions_answers_YN" if in_folders else folder
    samples = []
    for path in sorted(texts.glob("*.txt")):
        lines = [line for line in read_text(path).splitlines() if line.strip()]
        if len(lines) != _PER_IMAGE:
            raise UserError(f"{len(lines)} lines", path, f"{_PER_IMAGE} questions")
        picture = images.first(tuple(path.stem + suffix for suffix in _SUFFIXES), str(path))
        assert isinstance(picture.source, Path)
        for number, line in enumerate(lines, start=1):
            question, answer = _question(line, f"{path}, line {number}")
            samples.append(MMESample(subtask, picture.source.name, number, question, answer, picture))
    return not_empty(samples, texts)


def _question(line: str, where: str) -> tuple[str, str]:
    parts = line.strip().split("\t")
    if len(parts) != 2:
        raise UserError(f"{len(parts) - 1} tabs in a line", where, "question, tab, Yes or No")
    question, answer = parts[0], parts[1].strip().lower()
    if answer not in ("yes", "no"):
        raise UserError(f"answer {parts[1]!r}", where, "Yes or No")
    return question, answer


def write_mme(folder: str | Path, samples: Iterable[MMESample]) -> None:
    """Write subtasks in the official layout.

    Raises:
        UserError: an unknown subtask, an image with other than two questions.
    """
    groups: dict[tuple[str, str], list[MMESample]] = defaultdict(list)
    for sample in samples:
        groups[sample.subtask, sample.image_name].append(sample)
    for (subtask, image_name), group in groups.items():
        where = f"{subtask}/{image_name}"
        if subtask not in SUBTASKS:
            raise UserError("unknown MME subtask", where, " or ".join(SUBTASKS))
        if sorted(sample.number for sample in group) != [1, 2]:
            raise UserError(f"{len(group)} questions", where, f"questions 1 and {_PER_IMAGE}")
        base = Path(folder) / RELEASE / subtask
        images, texts = (base / "images", base / "questions_answers_YN") if subtask in IN_FOLDERS else (base, base)
        group[0].picture.write(images / relative_name(image_name, where))
        ordered = sorted(group, key=lambda sample: sample.number)
        lines = [f"{sample.question}\t{sample.label.capitalize()}\n" for sample in ordered]
        atomic_write_text(texts / f"{Path(image_name).stem}.txt", "".join(lines))
