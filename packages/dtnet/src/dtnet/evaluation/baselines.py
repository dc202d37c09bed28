"""What a captioner must beat: the captions of the most similar training image, and a copy of itself that saw no image.

    data = open_data(settings.data, folder, grid=7)
    captions = nearest_caption_baseline(data, split="test")
    score = split_cider(captions, data, split="test")               # CIDEr-D times 100

The blind copy is a training with `--set blind=true`: every training image has another one's features
(`dtnet.data.caption_data.SwappedFeatures`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from dtnet.data.caption_data import CaptionData
from dtnet.data.mini import DrawnData
from tenfold.metrics.captions import split_words
from tenfold.metrics.captions.cider import CiderD
from tenfold.metrics.captions.coco import score_captions

Data = CaptionData | DrawnData


def nearest_caption_baseline(data: Data, split: str = "test", neighbours: int = 1) -> dict[int, str]:
    """Caption every image of a split with a caption of the training images whose features are nearest.

    Of the neighbours' captions the one is taken that the others agree with most (mean CIDEr-D among themselves, as in
    Devlin et al. 2015, "Exploring nearest neighbor approaches for image captioning").

    Args:
        data: captions and features. All features of train lie in memory: for the mini world, not for COCO's grids.
        split: whose images are captioned.
        neighbours: training images whose captions compete.

    Returns:
        Image id -> caption.

    Raises:
        UserError: a split without images, or an image without features.
    """
    train, images = data.captions.images("train"), data.captions.images(split)
    references = data.captions.references("train")
    words = {text: split_words(text) for texts in references.values() for text in texts}
    cider = CiderD.from_captions([[words[text] for text in texts] for texts in references.values()], "image")
    distances = torch.cdist(_flat(data, images), _flat(data, train))  # [images, train]
    nearest = distances.topk(min(neighbours, len(train)), largest=False).indices.tolist()
    return {
        image_id: _consensus([text for number in row for text in references[train[number]]], words, cider)
        for image_id, row in zip(images, nearest, strict=True)
    }


def split_cider(captions: Mapping[int, str], data: Data, split: str, tokens: str = "whitespace") -> float:
    """CIDEr-D, times 100, of captions of a split's images.

    Raises:
        UserError: an image without a caption, or no Java where `tokens` is "ptb".
    """
    return score_captions(captions, data.captions.references(split), ("cider",), tokens=tokens).table["CIDEr-D"]


def _flat(data: Data, images: Sequence[int]) -> Tensor:
    """Features of images, a row each: `[images, grid * grid * d_in]`."""
    return data.features.batch(images).flatten(1)


def _consensus(texts: Sequence[str], words: Mapping[str, list[str]], cider: CiderD) -> str:
    """The caption that the others are most similar to; the first of equals."""
    if len(texts) == 1:
        return texts[0]
    candidates = [words[text] for text in texts]
    others = [candidates[:number] + candidates[number + 1 :] for number in range(len(texts))]
    _, scores = cider.score(candidates, others)
    return texts[int(scores.argmax())]
