r"""ScienceQA as LaVIN asks it: six formats, tokens and labels, and the authors' way to read answers.

    QCM-ALE   Question: ..\nContext: ..\nOptions: (A) .. (B) ..\nResponse:   The answer is B. BECAUSE: lecture solution

Prompt and target are joined without a space. Newlines of lecture and solution become the two characters ``\n``; in the
formats AE and AL the two texts have changed places, as released. Pictures are squeezed to a square (the aspect is not
kept) and normalised with ImageNet's mean, though the tower is CLIP's.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from eas.data.scienceqa import LETTERS
from tenfold import UserError
from tenfold.data.formats.scienceqa import ScienceQASample
from tenfold.runs import read_json

FORMATS = ("QCM-ALE", "QCM-A", "CQM-A", "QCM-LEA", "QCM-AE", "QCM-AL")
PREFIX_IMAGE, PREFIX_NONE = "Image: ", "Image: N/A"
PAD, FAILED = 0, "FAILED"
MEAN = np.array((0.485, 0.456, 0.406), dtype=np.float32)
STD = np.array((0.229, 0.224, 0.225), dtype=np.float32)
_SAID, _ANYWHERE = re.compile(r"The answer is ([A-Z])."), re.compile(r"([A-E]).")


class Tokenizer(Protocol):
    """SentencePiece, as Meta's code uses it."""

    def encode(self, text: str, *, bos: bool, eos: bool) -> list[int]: ...


@dataclass(frozen=True)
class Problem:
    """The texts of a question of ScienceQA."""

    question: str
    choices: tuple[str, ...]
    answer: int
    hint: str = ""
    lecture: str = ""
    solution: str = ""
    caption: str = ""

    @classmethod
    def of(cls, sample: ScienceQASample, caption: str = "") -> Problem:
        """What is needed to ask it, and to learn from it."""
        told = (sample.hint, sample.lecture, sample.solution, caption)
        return cls(sample.question, sample.choices, sample.answer, *told)


def prompt_of(problem: Problem, kind: str = "QCM-ALE", *, use_caption: bool = False) -> str:
    """The question as it is asked. Raises UserError for an unknown format."""
    asks, _ = _parts(kind)
    context = f"{problem.hint} {problem.caption}".strip() if use_caption else problem.hint.strip()
    options = " ".join(f"({letter}) {choice}" for letter, choice in zip(LETTERS, problem.choices, strict=False))
    lines = {
        "Q": f"Question: {problem.question}",
        "C": f"Context: {context or 'N/A'}",
        "M": f"Options: {options}",
    }
    return "\n".join([*(lines[letter] for letter in asks), "Response:"]).replace("  ", " ").strip()


def target_of(problem: Problem, kind: str = "QCM-ALE") -> str:
    """What is to be answered. Raises UserError for an unknown format."""
    _, says = _parts(kind)
    lecture, solution = (text.replace("\n", "\\n") for text in (problem.lecture, problem.solution))
    answer = f"The answer is {LETTERS[problem.answer]}."
    reason = {"ALE": f"{lecture} {solution}", "AE": lecture, "AL": solution}
    if says in reason:
        answer = f"{answer} BECAUSE: {reason[says]}"
    elif says == "LEA":
        answer = f"{lecture} {solution} {answer}"
    return answer.replace("  ", " ").strip()


def _parts(kind: str) -> tuple[str, str]:
    if kind not in FORMATS:
        raise UserError(f"prompt format {kind}", "ScienceQA", ", ".join(FORMATS))
    asks, _, says = kind.partition("-")
    return asks, says


def tokenize(tokenizer: Tokenizer, prompt: str, target: str, most: int) -> tuple[Tensor, Tensor, Tensor]:
    """A training's sample: ids, labels and mask ``[most]``; as many labels are 0 as the prompt alone has tokens."""
    ids = tokenizer.encode(prompt + target, bos=True, eos=True)[:most]
    example = torch.tensor(ids + [PAD] * (most - len(ids)))
    labels = example.clone()
    labels[: len(tokenizer.encode(prompt, bos=True, eos=False))] = PAD
    mask = (torch.arange(most) < len(ids)).float()
    return example, labels, mask


@dataclass(frozen=True)
class LavinBatch:
    """Samples of a training as `eas.lavin.Lavin.insert` takes them.

    Attributes:
        ids, labels: ``[batch, tokens]``, right-padded with 0 to what the sequence with all that is inserted takes.
        images: ``[batch, 3, size, size]``, zeros where there is none. pictures: ``[batch]`` bool.
        lengths: ``[batch]``, positions of each sequence that hold something.
    """

    ids: Tensor
    labels: Tensor
    images: Tensor
    pictures: Tensor
    lengths: Tensor


class LavinSamples:
    """Questions of ScienceQA with their answers, tokenised when they are asked for.

    Args:
        size, features: of the pictures, and vectors of each. max_length: of a sequence; what is longer is cut.
        full: batches are as long as the longest sequence may be, as the authors' are, whose means run over the padding.
    """

    def __init__(
        self,
        samples: Sequence[ScienceQASample],
        tokenizer: Tokenizer,
        *,
        size: int,
        features: int,
        prompt_format: str = "QCM-ALE",
        max_length: int = 512,
        full: bool = False,
    ) -> None:
        self.samples, self.tokenizer, self.format = samples, tokenizer, prompt_format
        self.size, self.features, self.max_length, self.full = size, features, max_length, full
        self.prefixes = [
            torch.tensor(tokenizer.encode(one, bos=False, eos=False)) for one in (PREFIX_NONE, PREFIX_IMAGE)
        ]

    def __len__(self) -> int:
        return len(self.samples)

    def batch(self, numbers: Sequence[int], epoch: int = 0) -> LavinBatch:
        """These samples, in every epoch the same."""
        rows = [self._row(self.samples[number]) for number in numbers]
        lengths = [length for *_, length in rows]
        longest = self.max_length if self.full else max(lengths)
        ids = torch.stack([F.pad(one, (0, longest - len(one)), value=PAD) for one, _, _ in rows])
        labels = torch.stack([F.pad(one, (0, longest - len(one)), value=PAD) for _, one, _ in rows])
        pictures = [self.samples[number].image() for number in numbers]
        images = torch.zeros(len(rows), 3, self.size, self.size)
        for row, picture in enumerate(pictures):
            if picture is not None:
                images[row] = prepare_square(picture, self.size)
        there = torch.tensor([picture is not None for picture in pictures])
        return LavinBatch(ids, labels, images, there, torch.tensor(lengths))

    def _row(self, sample: ScienceQASample) -> tuple[Tensor, Tensor, int]:
        """Ids and labels, and the length of their sequence."""
        problem, picture = Problem.of(sample), sample.picture is not None
        inserted = 1 + len(self.prefixes[picture]) + self.features * picture  # the modality token, prefix and vectors
        texts = prompt_of(problem, self.format), target_of(problem, self.format)
        ids, labels, mask = tokenize(self.tokenizer, *texts, self.max_length - inserted)
        length = int(mask.sum())
        return ids[:length], labels[:length], inserted + length


def prompt_ids(tokenizer: Tokenizer, prompt: str, features: int, picture: bool) -> tuple[list[int], int | None]:
    """A question's ids with its prefix, zeros for the picture's vectors, and where they begin."""
    front = tokenizer.encode(PREFIX_IMAGE if picture else PREFIX_NONE, bos=True, eos=False)
    words = tokenizer.encode(prompt, bos=False, eos=False)
    return front + [PAD] * (features * picture) + words, len(front) if picture else None


def official_answer(text: str) -> str:
    """The letter that the authors' evaluation reads from prompt and answer together, or "FAILED".

    Without "The answer is X." it is the first letter from A to E that anything follows: mostly the C of "Context".
    """
    found = _SAID.findall(text) or _ANYWHERE.findall(text)
    return found[0] if found else FAILED


def read_predictions(path: str | Path, samples: Sequence[ScienceQASample]) -> dict[str, int]:
    """The authors' file of predictions, ``{"4": 0, "5": 1, ...}``: an option's place for every question.

    Raises:
        UserError: a broken file, a question without prediction, one that is not asked, or a place that is no number
            from 0 to 4.
    """
    content = read_json(path)
    if not isinstance(content, Mapping):
        raise UserError("no predictions", path, "question id -> place of the option")
    asked = {one.id for one in samples}
    if missing := sorted(asked - set(content)):
        raise UserError(f"{len(missing)} questions without prediction, first {missing[0]}", path, "all of the split")
    if more := sorted(set(content) - asked):
        raise UserError(f"{len(more)} predictions of other questions, first {more[0]}", path, "those of the split")
    for name, value in content.items():
        if type(value) is not int or not 0 <= value < len(LETTERS):
            raise UserError(f"prediction {str(value)[:40]!r} of {name}", path, "a place from 0 to 4")
    return {str(name): value for name, value in content.items()}


def prepare_square(picture: Image.Image, size: int) -> Tensor:
    """A picture ``[3, size, size]``, squeezed, bicubic, ImageNet's mean and spread."""
    values = np.asarray(picture.convert("RGB").resize((size, size), Image.Resampling.BICUBIC), dtype=np.float32) / 255
    return torch.from_numpy((values - MEAN) / STD).permute(2, 0, 1).contiguous()


class SentencePiece:
    """LLaMA's ``tokenizer.model``. Raises UserError for a file that is none, or without the library."""

    def __init__(self, path: str | Path) -> None:
        try:
            from sentencepiece import SentencePieceProcessor
        except ImportError as error:
            raise UserError("sentencepiece is not installed", path, "pip install 'eas[lavin]'") from error
        if not Path(path).is_file():
            raise UserError("no tokenizer", path, "LLaMA's tokenizer.model")
        try:
            self.inner: Any = SentencePieceProcessor(model_file=str(path))
        except (OSError, RuntimeError, TypeError) as error:
            raise UserError("no tokenizer of SentencePiece", path, "LLaMA's tokenizer.model") from error
        self.end = int(self.inner.eos_id())

    def encode(self, text: str, *, bos: bool, eos: bool) -> list[int]:
        ids = list(self.inner.encode(text))
        return [int(self.inner.bos_id())] * bos + ids + [self.end] * eos

    def decode(self, ids: Sequence[int]) -> str:
        return str(self.inner.decode(list(ids)))
