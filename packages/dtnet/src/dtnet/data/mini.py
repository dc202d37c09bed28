"""The mini world as a COCO caption data set: the official layout, written in seconds.

<folder>/dataset_coco.json                                  Karpathy's splits
<folder>/annotations/captions_{train,val}2014.json, coco_{train,restval,dev,test}_ids.npy
<folder>/images/{train,val}2014/COCO_train2014_000000000000.png
<folder>/grid_features.h5                                   MiniFeatures, key <image id>_grids
<folder>/vocabulary.json                                    of train and val, words that occur 5 times
<folder>/kinds.json                                         {"0": "pair", ...}: for the report on routing
<folder>/tagged.json                                        {"0": true, ...}: where scenes are tagged, which ones
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dtnet.data.captions import (
    ANNOTATION_NAMES,
    KARPATHY_NAME,
    CaptionSet,
    derive_id_lists,
    from_karpathy,
    write_id_lists,
)
from dtnet.data.grid_features import write_grid_features
from dtnet.data.tagged import is_tagged, tag_features
from dtnet.features import MiniFeatures
from dtnet.vocabulary import Vocabulary
from tenfold import UserError
from tenfold.data.formats.coco_captions import (
    CocoCaption,
    CocoCaptions,
    KarpathyImage,
    write_coco_captions,
    write_karpathy,
)
from tenfold.data.mini_captions import CaptionScene, karpathy_images
from tenfold.data.miniworld import render
from tenfold.metrics.captions import split_words
from tenfold.runs import atomic_directory, atomic_write_json, read_json

FEATURES, VOCABULARY, KINDS, TAGGED = "grid_features.h5", "vocabulary.json", "kinds.json", "tagged.json"
SIZE = 56  # pixels along an edge
MIN_COUNT = 5
_BATCH = 250


def write_mini_coco(
    folder: str | Path,
    seed: int = 0,
    train: int = 4000,
    val: int = 500,
    test: int = 500,
    images: bool = True,
    tagged: bool = False,
) -> Path:
    """Write a mini COCO; the same files for the same arguments.

    Args:
        folder: must not exist; appears whole or not at all.
        seed: of the world.
        train, val, test: images per split.
        images: also write the pictures (the features are made from them either way).
        tagged: half of the scenes carry a tag in their features, and are to be read otherwise (`dtnet.data.tagged`).

    Returns:
        The folder.

    Raises:
        UserError: the folder exists, or a split is empty.
    """
    if min(train, val, test) < 1:
        raise UserError("an empty split", f"train={train}, val={val}, test={test}", "at least one image each")
    drawn = list(karpathy_images(seed, train, val, test))
    listed = [image for image, _ in drawn]
    with atomic_directory(folder) as path:
        write_karpathy(path / KARPATHY_NAME, listed)
        _write_annotations(path / "annotations", listed)
        write_id_lists(path / "annotations", derive_id_lists(listed))
        known = [caption for image in listed if image.split != "test" for caption in image.captions]
        Vocabulary.build(map(split_words, known), MIN_COUNT).save(path / VOCABULARY)
        atomic_write_json(path / KINDS, {str(image.image_id): one.kind for image, one in drawn})
        if tagged:
            atomic_write_json(path / TAGGED, {str(one.image_id): is_tagged(seed, one.image_id) for one in listed})
        pictures = path / "images" if images else None
        write_grid_features(path / FEATURES, _features(drawn, seed, pictures, tagged))
    return Path(folder)


@dataclass(frozen=True)
class DrawnData:
    """A mini COCO in memory."""

    captions: CaptionSet
    features: DrawnFeatures


class DrawnFeatures:
    """Grid features in memory: image id -> float32 `[49, 24]`."""

    def __init__(self, features: Mapping[int, np.ndarray]) -> None:
        self._features = features

    def batch(self, image_ids: Sequence[int]) -> Tensor:
        """Of several images: `[batch, 49, 24]`."""
        return torch.from_numpy(np.stack([self._features[image_id] for image_id in image_ids]))


def draw_mini_coco(seed: int, train: int, val: int, test: int, without: Collection[str] = ()) -> DrawnData:
    """What reading `write_mini_coco`'s files gives, without the files.

    Args:
        seed, train, val, test: as there.
        without: splits that are left out, of "train", "restval" (a tenth of train), "val" and "test".
    """
    drawn = [one for one in karpathy_images(seed, train, val, test) if one[0].split not in without]
    captions = from_karpathy(image for image, _ in drawn)
    return DrawnData(captions, DrawnFeatures(dict(_features(drawn, seed, None, False))))


def scene_kinds(folder: str | Path) -> dict[int, str]:
    """Image id -> kind of scene ("single", "pair", "line") of a folder that `write_mini_coco` filled.

    Raises:
        UserError: no such file, or a broken one.
    """
    return _by_image(Path(folder) / KINDS, '{"0": "pair", ...}')


def scene_tags(folder: str | Path) -> dict[int, bool]:
    """Image id -> whether its scene is tagged, of a folder that `write_mini_coco` filled with tagged scenes.

    Raises:
        UserError: no such file, or a broken one.
    """
    return _by_image(Path(folder) / TAGGED, '{"0": true, ...}')


def _by_image(path: Path, expected: str) -> dict[int, Any]:
    values = read_json(path)
    if not isinstance(values, dict) or not all(name.isdecimal() for name in values):
        raise UserError("holds something else", path, expected)
    return {int(image_id): value for image_id, value in values.items()}


def _features(
    listed: list[tuple[KarpathyImage, CaptionScene]], seed: int, pictures: Path | None, tagged: bool
) -> Iterator[tuple[int, np.ndarray]]:
    extractor = MiniFeatures()
    for start in range(0, len(listed), _BATCH):
        batch = listed[start : start + _BATCH]
        drawn = [render(one.scene, SIZE) for _, one in batch]
        if pictures is not None:
            for (image, _), picture in zip(batch, drawn, strict=True):
                _save(picture, pictures / image.folder / image.file_name)
        for (image, _), features in zip(batch, extractor(drawn).numpy(), strict=True):
            yield image.image_id, tag_features(features, seed, image.image_id) if tagged else features


def _save(picture: Image.Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path)


def _write_annotations(folder: Path, listed: list[KarpathyImage]) -> None:
    for name in ANNOTATION_NAMES:
        subset = name.removeprefix("captions_").removesuffix(".json")
        its = [image for image in listed if image.folder == subset]
        captions = CocoCaptions(
            file_names={image.image_id: image.file_name for image in its},
            annotations=tuple(
                CocoCaption(sentence_id, image.image_id, caption)
                for image in its
                for sentence_id, caption in zip(image.sentence_ids, image.captions, strict=True)
            ),
        )
        write_coco_captions(folder / name, captions)
