"""METER's three tasks from their official files: what is asked, in the form that the model takes.

VQAv2 is a classification among the answers that come nine times or more in train and val; an answer is worth 0, 0.3,
0.6, 0.9 or 1 by how many of the ten people gave it. Pictures are resized by their short edge and cropped to the centre.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from eas.meter import MeterConfig, MeterInputs
from tenfold import UserError
from tenfold.data.formats.flickr30k import RetrievalSample, read_flickr30k
from tenfold.data.formats.nlvr2 import read_nlvr2
from tenfold.data.formats.records import Fields, Picture
from tenfold.data.formats.vqav2 import annotations_file, questions_file, read_vqav2
from tenfold.hosts.loading import loading_from
from tenfold.metrics.vqa import normalise_answer
from tenfold.runs import fingerprint, read_json, sample_generator

LEAST = 9  # an answer that comes more rarely is no class
VALUES = (0.0, 0.3, 0.6, 0.9, 1.0)  # of an answer that so many of ten people gave, four or more
MEAN = np.array((0.48145466, 0.4578275, 0.40821073), dtype=np.float32)
STD = np.array((0.26862954, 0.26130258, 0.27577711), dtype=np.float32)
_FALSE = 2**40  # of a sample's stream of wrong captions: those of a stage's own draws are small
# Where each task's splits lie; images that two splits share are a leak.
SPLITS = {
    "vqa": ("train2014", "val2014", "test-dev2015", "test2015"),
    "nlvr2": ("train", "dev", "test1"),
    "irtr": ("train", "val", "test"),
}


@dataclass(frozen=True)
class Query:
    """A question about one or two pictures.

    Attributes:
        id: of the question, or NLVR2's identifier. text: what is asked, or the sentence.
        target: VQA: answer -> its value; NLVR2: "True" or "False" -> 1. None: a test set without answers.
        images: of what ids its pictures are, to find leaks.
    """

    id: str
    text: str
    pictures: tuple[Picture, ...]
    target: Mapping[str, float] | None
    images: tuple[str, ...]


def read_queries(task: str, folder: str | Path, split: str) -> list[Query]:
    """The questions of VQAv2 or the sentences of NLVR2. Raises UserError as tenfold's readers do."""
    if split not in SPLITS[task]:
        raise UserError(f"no split {split!r}", f"task {task}", ", ".join(SPLITS[task]))
    if task == "nlvr2":
        return [
            Query(one.identifier, one.sentence, one.pictures, {str(one.answer): 1.0}, (one.pair,))
            for one in read_nlvr2(folder, split)
        ]
    return [
        Query(
            str(one.question_id),
            one.question,
            (one.picture,),
            None if one.annotation is None else soft_targets(one.annotation.answers),
            (str(one.image_id),),
        )
        for one in read_vqav2(folder, split)
    ]


def read_photographs(folder: str | Path, split: str) -> list[RetrievalSample]:
    """Flickr30k's photographs with their captions."""
    return read_flickr30k(folder, split)


def soft_targets(answers: Sequence[str]) -> dict[str, float]:
    """What each answer is worth, by how many people gave it."""
    return {answer: VALUES[min(count, len(VALUES) - 1)] for answer, count in Counter(map(vqa_word, answers)).items()}


def vqa_word(answer: str) -> str:
    """An answer as the classifier's classes are written: VQA's normal form without commas."""
    return normalise_answer(answer).replace(",", "")


def answer_vocabulary(folder: str | Path, least: int = LEAST) -> list[str]:
    """The classes of VQAv2's classifier, in the authors' order: as they first come in train's, then val's annotations.

    Raises:
        UserError: an annotations file is missing or broken.
    """
    counted: Counter[str] = Counter()
    for subset in ("train2014", "val2014"):
        path = annotations_file(folder, subset)
        for number, values in enumerate(Fields(read_json(path), str(path)).items("annotations")):
            record = Fields(values, f"{path}, annotation {number}")
            counted[vqa_word(record.text("multiple_choice_answer"))] += 1
    return [answer for answer, count in counted.items() if count >= least]


def read_answers(path: str | Path) -> list[str]:
    """The classifier's answers: a json list of texts, or made from VQAv2's annotations in a folder.

    Raises:
        UserError: no such file or folder, or another form.
    """
    if Path(path).is_dir():
        return answer_vocabulary(path)
    content = read_json(path)
    if not isinstance(content, list) or not content or not all(isinstance(one, str) for one in content):
        raise UserError("no list of answers", path, "a json list of texts, or VQAv2's folder")
    return content


def image_ids(task: str, folder: str | Path, split: str) -> set[str] | None:
    """The ids of a split's pictures, from its questions alone; None where its files are not there."""
    if task == "irtr":
        return {str(one.image_id) for one in read_flickr30k(folder, split)}
    path = questions_file(folder, split) if task == "vqa" else Path(folder) / "nlvr2" / "data" / f"{split}.json"
    if not path.is_file():
        return None
    if task == "vqa":
        questions = Fields(read_json(path), str(path)).items("questions")
        return {str(Fields(one, str(path)).integer("image_id")) for one in questions}
    return {image for one in read_queries(task, folder, split) for image in one.images}


def leak(task: str, folder: str | Path, split: str, trained_on: Sequence[str], images: set[str]) -> tuple[int, str]:
    """How many of a split's pictures are those of a training, and what could be compared.

    Args:
        trained_on: splits of the same data. images: ids of the pictures that are asked about.
    """
    if split in trained_on:
        return len(images), f"{split} is in the training set"
    if not trained_on:
        return 0, "no training set is known"
    known = {one: image_ids(task, folder, one) for one in trained_on}
    there = {one: ids for one, ids in known.items() if ids is not None}
    shared = set().union(*there.values()) & images if there else set()
    absent = [one for one in trained_on if one not in there]
    told = f"compared with {', '.join(there)}" if there else "not compared"
    return len(shared), told + (f"; files of {', '.join(absent)} are not there" if absent else "")


class Encoder:
    """Texts and pictures as METER takes them.

    Args:
        folder: of ours, with RoBERTa's tokenizer in it.

    Raises:
        UserError: no tokenizer there, or one of another model.
    """

    def __init__(self, folder: str | Path, config: MeterConfig) -> None:
        from transformers import AutoTokenizer

        self.config = config
        with loading_from(folder, "RoBERTa's tokenizer beside meter.json: eas convert --tokenizer FOLDER"):
            options = {"local_files_only": True, "trust_remote_code": False}
            self.tokenizer: Any = AutoTokenizer.from_pretrained(folder, **options)
        pad = self.tokenizer.pad_token_id
        if pad != 1 or len(self.tokenizer) > config.vocabulary:
            told = f"{len(self.tokenizer)} tokens, padding {pad}"
            raise UserError(f"a tokenizer with {told}", folder, f"RoBERTa's: at most {config.vocabulary}, padding 1")

    def texts(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Ids and mask ``[batch, max_text]``; what is longer is cut, as in the authors' code."""
        options = {"padding": "max_length", "truncation": True, "max_length": self.config.max_text}
        found = self.tokenizer(list(texts), return_tensors="pt", **options)
        return found["input_ids"], found["attention_mask"]

    def pixels(self, pictures: Sequence[Picture]) -> Tensor:
        """``[batch, 3, size, size]`` float32. Raises UserError for a broken picture."""
        return torch.stack([prepare(one.open(), self.config.size) for one in pictures])

    def batch(self, queries: Sequence[Query]) -> MeterInputs:
        """Questions with their pictures."""
        ids, mask = self.texts([one.text for one in queries])
        pictures = zip(*(one.pictures for one in queries), strict=True)
        return MeterInputs(ids, mask, tuple(self.pixels(column) for column in pictures))


def prepare(picture: Image.Image, size: int) -> Tensor:
    """A picture ``[3, size, size]``: short edge to `size`, bicubic, centre crop, CLIP's mean and spread."""
    width, height = picture.size
    short = min(width, height)
    scaled = (size, int(size * height / width)) if width == short else (int(size * width / height), size)
    picture = picture.convert("RGB").resize(scaled, Image.Resampling.BICUBIC)
    left, top = (round((edge - size) / 2) for edge in picture.size)
    values = np.asarray(picture.crop((left, top, left + size, top + size)), dtype=np.float32) / 255
    return torch.from_numpy((values - MEAN) / STD).permute(2, 0, 1).contiguous()


class MeterSamples:
    """What a task's splits teach: questions, sentences, or every caption of a photograph with it.

    Args:
        answers: VQA's classes. seed: of what is drawn. false_texts: retrieval: wrong captions beside each right one.

    Raises:
        UserError: a split that is missing, or without answers.
    """

    def __init__(
        self,
        task: str,
        folder: str | Path,
        splits: Sequence[str],
        encoder: Encoder,
        answers: Sequence[str] = (),
        *,
        seed: int = 0,
        false_texts: int = 15,
    ) -> None:
        self.task, self.encoder, self.seed, self.false_texts = task, encoder, seed, false_texts
        self.classes = {answer: number for number, answer in enumerate(answers)}
        self.queries: list[Query] = []
        self.pairs: list[tuple[RetrievalSample, str]] = []
        for split in splits:
            if task == "irtr":
                self.pairs += [(one, text) for one in read_photographs(folder, split) for text in one.captions]
            else:
                self.queries += read_queries(task, folder, split)
        if any(one.target is None for one in self.queries):
            raise UserError("questions without answers", f"splits {', '.join(splits)}", "annotated splits")
        if task == "irtr" and len({one.image_id for one, _ in self.pairs}) < 2:
            raise UserError("one photograph", f"splits {', '.join(splits)}", "others whose captions are wrong for it")

    def __len__(self) -> int:
        return len(self.pairs or self.queries)

    @property
    def print(self) -> str:
        """Fingerprint of what is asked, with its answers."""
        asked = [(one.id, one.text, dict(one.target or {})) for one in self.queries]
        return fingerprint({"asked": asked or [(one.image_id, text) for one, text in self.pairs]})

    def batch(self, numbers: Sequence[int], epoch: int) -> tuple[MeterInputs, Tensor]:
        """These samples with the targets that `eas.meter.task_loss` takes; each epoch draws its own wrong captions."""
        if self.task == "irtr":
            return self._retrieval(numbers, epoch)
        some = [self.queries[number] for number in numbers]
        if self.task == "nlvr2":
            return self.encoder.batch(some), torch.tensor([int("True" in (one.target or {})) for one in some])
        targets = torch.zeros(len(some), len(self.classes))
        for row, one in enumerate(some):
            for answer, value in (one.target or {}).items():
                if answer in self.classes:
                    targets[row, self.classes[answer]] = value
        return self.encoder.batch(some), targets

    def _retrieval(self, numbers: Sequence[int], epoch: int) -> tuple[MeterInputs, Tensor]:
        """Each photograph with its caption first, then with captions of others."""
        texts = []
        for number in numbers:
            photograph, caption = self.pairs[number]
            generator = sample_generator(self.seed, epoch, _FALSE + number)
            texts.append(caption)
            while len(texts) % (1 + self.false_texts):
                other, wrong = self.pairs[int(torch.randint(len(self.pairs), (), generator=generator))]
                if other.image_id != photograph.image_id:
                    texts.append(wrong)
        ids, mask = self.encoder.texts(texts)
        pixels = self.encoder.pixels([self.pairs[number][0].picture for number in numbers])
        pixels = pixels.repeat_interleave(1 + self.false_texts, dim=0)
        return MeterInputs(ids, mask, (pixels,)), torch.zeros(len(numbers), dtype=torch.long)
