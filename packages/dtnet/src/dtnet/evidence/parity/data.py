"""Golden cases of the data: augmentation, the way from captions to ids, the schedule, the metrics."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dtnet.data.datasets import pad_ids
from dtnet.training.augment import TRANSFORMS
from dtnet.training.schedule import EPOCHS, STAGES, paper_rate
from dtnet.vocabulary import Vocabulary, tokenise_all
from tenfold import UserError
from tenfold.metrics.captions.cider import CiderD
from tenfold.metrics.captions.coco import Meteor, score_captions
from tenfold.metrics.captions.ptb import PtbTokeniser

# The reference's names of the transforms.
_NAMES = {
    "addPepperSaltNoise": "pepper_and_salt",
    "resizePool": "pool",
    "randomCrop": "crop",
    "randRotate": "rotate",
    "randomHorizontalFlip": "flip_horizontally",
    "randomVerticalFlip": "flip_vertically",
    "addGaussianNoise": "gaussian_noise",
    "channelShuffle": "shuffle_channels",
    "randMask": "mask",
}
# Larger than any draw of a gate that matters: the transform acts.
_FORCED = 100.0


class _LegacyRng(np.random.RandomState):
    """The stream of numpy's global generator after `numpy.random.seed`, as the reference draws from it."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self.drawn: list[int] = []

    def integers(self, high: int) -> int:
        self.drawn.append(int(self.randint(high)))
        return self.drawn[-1]


def _augmentation(case: Mapping[str, Any], tensors: Mapping[str, Tensor], compare: Any) -> None:
    features = tensors["in/x"]
    before = features.clone()
    for name, info in case["info"].items():
        transform, _, seed = name.partition("_seed")
        if transform not in _NAMES:
            raise UserError(f"unknown transform {transform!r}", case.get("case"), ", ".join(_NAMES))
        rng = _LegacyRng(int(seed))
        ours = TRANSFORMS[_NAMES[transform]](features, rng, _FORCED)
        compare.close(name, ours, tensors[f"out/{name}"], "augmentation")
        pairs = [list(pair) for pair in zip(rng.drawn[::2], rng.drawn[1::2], strict=False)]
        first, second = info.get("first_positions"), info.get("second_positions_min")
        for key, golden, drawn in (
            ("first positions", first, pairs[: len(first or ())]),
            ("second positions", second, pairs[len(first or ()) :]),
            ("crop", [info["start_row"], info["start_col"]] if "start_row" in info else None, rng.drawn),
            ("degree", [info["degree"]] if "degree" in info else None, [number - 30 for number in rng.drawn]),
        ):
            if golden is not None:
                compare.equal(f"{name} {key}", drawn, golden)
    compare.equal("input left as it was", torch.equal(features, before), True)


def _text_pipeline(case: Mapping[str, Any], tensors: Mapping[str, Tensor], compare: Any) -> None:
    tokens = tokenise_all(case["captions"])
    compare.equal("tokens", tokens, case["tokens"])
    counted = [*tokens, *tokenise_all(case["vocab_extra_captions"])]
    vocabulary = Vocabulary.build(counted, min_count=case.get("min_freq", 2))
    compare.equal("vocabulary", list(vocabulary.words), case["itos"])
    compare.equal("ids", pad_ids([vocabulary.encode(words) for words in tokens]), tensors["out/batch_ids"])

    decode_ids = tensors["in/decode_ids"]
    compare.equal("captions", vocabulary.decode_all(decode_ids, collapse=False), case["decoded_joined"])
    compare.equal("captions without repeats", vocabulary.decode_all(decode_ids), case["decoded_deduplicated"])
    compare.equal("words", [vocabulary.words_of(row) for row in decode_ids], case["decoded_words"])

    with TemporaryDirectory() as folder:
        path = Path(folder, "vocab.pkl")
        path.write_bytes(tensors["in/vocab_pickle_bytes"].numpy().tobytes())
        compare.equal("words of the pickle", list(Vocabulary.load_pickle(path).words), case["itos"])


def _lr_schedule(case: Mapping[str, Any], tensors: Mapping[str, Tensor], compare: Any) -> None:
    epochs = [(stage, epoch) for stage in STAGES for epoch in range(EPOCHS[stage])]
    compare.equal("stage of each epoch", [int(stage == "scst") for stage, _ in epochs], tensors["out/is_rl_epoch"])
    rates = [paper_rate(stage, epoch) for stage, epoch in epochs]
    compare.equal("rate of each epoch", rates, tensors["out/lr_per_epoch"])


def captions_scored(
    case: Mapping[str, Any], tensors: Mapping[str, Tensor], compare: Any, meteor: Meteor | None = None
) -> None:
    """Every string is in the case's json; scores are compared as the reference gives them, from 0 to 1 (or 10)."""
    strings = case["strings"]
    images = list(strings["refs"])
    with PtbTokeniser() as tokenise:
        train = tokenise(strings["train_raw"])
        beams = tokenise([caption for image in images for caption in strings["hyps"][image]])
        references = [tokenise(strings["refs"][image]) for image in images]
    compare.equal("training captions", [" ".join(words) for words in train], strings["tokenized_train"])
    compare.equal("captions of the beams", [" ".join(words) for words in beams], strings["tokenized_hyps"])
    golden = [strings["eval_tokenized_refs"][image] for image in images]
    compare.equal("references", [[" ".join(words) for words in group] for group in references], golden)

    of_beams = [group for image, group in zip(images, references, strict=True) for _ in strings["hyps"][image]]
    reward = CiderD.from_captions([train], "caption")
    sample = case.get("document_frequency_sample", {})
    rarity = [case["ref_len"], *(case["ref_len"] - math.log(max(1.0, count)) for count in sample.values())]
    ours = [reward.rarity(("<never>",)), *(reward.rarity(tuple(ngram.split())) for ngram in sample)]
    _close(compare, "rarity of n-grams", ours, torch.tensor(rarity, dtype=torch.float64))
    for name, cider in (("scst_reward", reward), ("cider_df_per_image", CiderD.from_captions(references, "image"))):
        _, rewards = cider.score(beams, of_beams)
        _close(compare, name, rewards, tensors[f"out/{name}"])

    captions = {image: strings["eval_res"][image][0] for image in strings["eval_res"]}
    scores = score_captions(captions, strings["refs"], ("bleu", "meteor", "rouge", "cider"), meteor=meteor)
    bleu = [f"BLEU-{n}" for n in (1, 2, 3, 4)]
    _close(compare, "BLEU", _unit(scores.table[n] for n in bleu), tensors["out/BLEU"])
    _close(compare, "BLEU of each image", [_unit(scores.per_image[n]) for n in bleu], tensors["out/BLEU_per_image"])
    for metric, name in (("METEOR", "METEOR"), ("ROUGE-L", "ROUGE_L"), ("CIDEr-D", "CIDEr")):
        _close(compare, metric, scores.table[metric] / 100, tensors[f"out/{name}"])
        _close(compare, f"{metric} of each image", _unit(scores.per_image[metric]), tensors[f"out/{name}_per_image"])


def _unit(scores: Iterable[float]) -> list[float]:
    return [score / 100 for score in scores]


def _close(compare: Any, name: str, ours: Any, golden: Tensor) -> None:
    compare.close(name, torch.as_tensor(ours, dtype=torch.float64), golden, "metrics")


COMPUTATIONS = {
    "augmentation": _augmentation,
    "text_pipeline": _text_pipeline,
    "lr_schedule": _lr_schedule,
    "metrics": captions_scored,
}
