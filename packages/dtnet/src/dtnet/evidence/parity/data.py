"""Golden cases of the data: what `parity` hands over to the augmentation and to the way from captions to ids."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dtnet.data.datasets import pad_ids
from dtnet.training.augment import TRANSFORMS
from dtnet.vocabulary import Vocabulary, tokenise_all
from tenfold import UserError

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


COMPUTATIONS = {"augmentation": _augmentation, "text_pipeline": _text_pipeline}
