"""Training samples (section 5): single-round questions about one image, out of LLaVA's instruction data.

The authors' file, `mix665k_single_turn_only_image_1%.json`, was not described: about 1 % of LLaVA-1.5's mixture,
records with an image and one round. Whether records of several rounds were left out, cut or split is not known; all
three are here by name. One round a sample is a requirement: the answer is the end of the sequence.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from PIL import Image

from tenfold import UserError
from tenfold.data.formats import LlavaInstructSample, Picture, read_llava_instruct
from tenfold.runs import sample_rng

Rounds = Literal["single", "first", "split"]
MARK = "<image>"
# Epochs of the generators: sampling the file, and the order of an epoch, never share a stream.
SHARE_STREAM, ORDER_STREAM = 2**32, 2**33


@dataclass(frozen=True)
class TrainingSample:
    """One question about one image, and its answer.

    Attributes:
        id: the record's, with the round where it was split.
        question: without the image's mark.
        answer: what the frozen model's branches are judged on.
        picture: the image, unopened.
    """

    id: str
    question: str
    answer: str
    picture: Picture

    def image(self) -> Image.Image:
        """The decoded image, RGB. Raises UserError naming a broken file."""
        return self.picture.open()


def single_rounds(records: Sequence[LlavaInstructSample], rounds: Rounds) -> list[TrainingSample]:
    """Samples of one round, in the order of the records; records without an image are left out.

    Args:
        records: conversations.
        rounds: "single" keeps records of one round, "first" cuts the others to their first, "split" makes a sample of
            every round.
    """
    samples = []
    for record in records:
        pairs = list(zip(record.turns[::2], record.turns[1::2], strict=False))
        if record.picture is None or not pairs or (rounds == "single" and len(record.turns) != 2):
            continue
        for number, (human, gpt) in enumerate(pairs if rounds == "split" else pairs[:1]):
            if human.speaker != "human" or gpt.speaker != "gpt" or not gpt.text.strip():
                continue
            question = human.text.replace(MARK, "").strip()
            name = f"{record.id}#{number}" if rounds == "split" else str(record.id)
            samples.append(TrainingSample(name, question, gpt.text.strip(), record.picture))
    return samples


def drawn(samples: Sequence[TrainingSample], share: float, seed: int) -> list[TrainingSample]:
    """A share of the samples, drawn by the seed, in their order."""
    count = max(1, round(share * len(samples)))
    if count >= len(samples):
        return list(samples)
    chosen = sample_rng(seed, SHARE_STREAM, 0).choice(len(samples), size=count, replace=False)
    return [samples[number] for number in sorted(chosen.tolist())]


def read_samples(
    path: str | Path, images: str | Path, *, rounds: Rounds = "single", share: float = 1.0, seed: int = 0
) -> list[TrainingSample]:
    """The training samples of an instruction file in LLaVA's format.

    Raises:
        UserError: a broken or missing file or image, or no sample of one round with an image.
    """
    samples = single_rounds(read_llava_instruct(path, images), rounds)
    if not samples:
        raise UserError("no record of one round with an image", path, "or --set rounds=first or rounds=split")
    return drawn(samples, share, seed)


def mini_samples(seed: int, count: int) -> list[TrainingSample]:
    """Samples of the mini world for the mini host: every round of its instruction data."""
    from tenfold.data import mini_host, mini_sets

    found: list[TrainingSample] = []
    scenes = max(1, -(-count // 2))
    found = single_rounds(list(mini_sets.llava_instruct(seed, scenes, mini_host.IMAGE_SIZE)), "split")
    return found[:count]


def epoch_order(count: int, seed: int, epoch: int) -> list[int]:
    """The order in which an epoch goes through its samples: a permutation from a generator of its own."""
    return sample_rng(seed, ORDER_STREAM + epoch, 0).permutation(count).tolist()
