"""What the two stages of training and the evaluation read: captions with their images' features.

train = PairDataset(features, captions, vocabulary)                       # cross entropy: one item a caption
DataLoader(train, batch_size=50, shuffle=True, drop_last=True, collate_fn=collate_pairs)
images = ImageDataset(features, captions, split="train")                  # self-critical, evaluation: one an image
DataLoader(images, batch_size=20, collate_fn=collate_images)
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from torch.utils.data import Dataset

from dtnet.data.captions import CaptionSet
from dtnet.vocabulary import PAD, Vocabulary, tokenise


class Features(Protocol):
    """Grid features by image id: a `GridFeatures`, or what stands in for one."""

    def __getitem__(self, image_id: int) -> Tensor:
        """float32 `[rows, d_in]`."""
        ...

    def require(self, image_ids: Iterable[int]) -> None:
        """Raises UserError when an image has none."""
        ...


class Pairs(NamedTuple):
    """A batch of images with one caption each.

    features: float32 `[batch, rows, d_in]`; ids: int64 `[batch, length]`, `<bos>` words `<eos>`, then `<pad>`.
    """

    features: Tensor
    ids: Tensor


class Images(NamedTuple):
    """A batch of images with all their captions.

    image_ids: one int each; features: float32 `[batch, rows, d_in]`; references: the raw captions of each image.
    """

    image_ids: list[int]
    features: Tensor
    references: list[tuple[str, ...]]


class PairDataset(Dataset[tuple[Tensor, list[int]]]):
    """One item per caption: the image's features and the caption's ids (566,747 items in COCO's training split).

    Args:
        features: the grid features of the split's images.
        captions: the captions.
        vocabulary: words to ids.
        split: "train", "val" or "test".
        tokenise: `dtnet.vocabulary.tokenise` (spaCy), or `split_words` for the mini world.

    Raises:
        UserError: an image of the split has no features (found now, not in the middle of an epoch); an empty split.
    """

    def __init__(
        self,
        features: Features,
        captions: CaptionSet,
        vocabulary: Vocabulary,
        split: str = "train",
        tokenise: Callable[[str], list[str]] = tokenise,
    ) -> None:
        features.require(captions.images(split))
        self.features = features
        pairs = captions.pairs(split)
        self.image_ids = torch.tensor([image_id for image_id, _ in pairs])
        # Two tensors instead of a million Python lists: loader workers share them with their parent after a fork.
        words, ends = array("i"), array("q", [0])
        for _, caption in pairs:
            words.extend(vocabulary.encode(tokenise(caption)))
            ends.append(len(words))
        self.words, self.ends = torch.tensor(words, dtype=torch.int32), torch.tensor(ends)

    def __len__(self) -> int:
        return len(self.image_ids)

    def __getitem__(self, index: int) -> tuple[Tensor, list[int]]:
        """Features `[rows, d_in]` and the ids `<bos>` words `<eos>` of caption number `index`."""
        start, end = self.ends[index], self.ends[index + 1]
        return self.features[int(self.image_ids[index])], self.words[start:end].tolist()


class ImageDataset(Dataset[tuple[int, Tensor, tuple[str, ...]]]):
    """One item per image: its id, its features, all its captions (113,287 items in COCO's training split).

    Raises:
        UserError: an image of the split has no features; an empty split.
    """

    def __init__(self, features: Features, captions: CaptionSet, split: str = "train") -> None:
        features.require(captions.images(split))
        self.features = features
        self.image_ids = captions.images(split)
        self.references = captions.references(split)

    def __len__(self) -> int:
        return len(self.image_ids)

    def __getitem__(self, index: int) -> tuple[int, Tensor, tuple[str, ...]]:
        """Id, features `[rows, d_in]` and captions of image number `index`."""
        image_id = self.image_ids[index]
        return image_id, self.features[image_id], self.references[image_id]


def pad_ids(rows: Sequence[Iterable[int]]) -> Tensor:
    """Lists of ids as int64 `[batch, longest]`, filled with `<pad>` on the right."""
    tensors = [torch.as_tensor(list(row), dtype=torch.long) for row in rows]
    return torch.nn.utils.rnn.pad_sequence(tensors, batch_first=True, padding_value=PAD)


def collate_pairs(items: Sequence[tuple[Tensor, list[int]]]) -> Pairs:
    """Items of a `PairDataset` as a batch."""
    return Pairs(torch.stack([features for features, _ in items]), pad_ids([ids for _, ids in items]))


def collate_images(items: Sequence[tuple[int, Tensor, tuple[str, ...]]]) -> Images:
    """Items of an `ImageDataset` as a batch."""
    ids, features, references = zip(*items, strict=True)
    return Images(list(ids), torch.stack(features), list(references))
