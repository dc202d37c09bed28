"""Golden case of the metrics: what `parity` hands over to the tokeniser, the reward and the scores."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from dtnet.cider import CiderD
from dtnet.ptb import PtbTokeniser
from dtnet.scoring import score_captions


def _metrics(case: Mapping[str, Any], tensors: Mapping[str, Tensor], compare: Any) -> None:
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
    scores = score_captions(captions, strings["refs"], ("bleu", "meteor", "rouge", "cider"))
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


COMPUTATIONS = {"metrics": _metrics}
