"""Which images there are, what people said of them, and which split they belong to.

captions = read_captions("dataset_coco.json")       # Karpathy's json: COCO, Flickr8k, Flickr30k
captions = read_captions("annotations/")            # the official annotations and the four lists of ids
len(captions.images("train"))                       # 113,287: train and restval
captions.references("test")[391895]                 # ("A man riding ...", ...)
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tenfold import UserError
from tenfold.arrays import read_array
from tenfold.data.formats.coco_captions import CocoCaption, KarpathyImage, read_coco_captions, read_karpathy
from tenfold.runs.files import TEMPORARY_PREFIX, fsync_path

SPLITS = ("train", "val", "test")
KARPATHY_NAME = "dataset_coco.json"
ANNOTATION_NAMES = ("captions_train2014.json", "captions_val2014.json")
# Lists of caption ids (not image ids) -> the split they belong to. The captions of restval lie in the val2014 file.
ID_LISTS = {"coco_train_ids": "train", "coco_restval_ids": "train", "coco_dev_ids": "val", "coco_test_ids": "test"}
_KARPATHY_LISTS = {"train": "coco_train_ids", "restval": "coco_restval_ids", "val": "coco_dev_ids"}
_KARPATHY_LISTS["test"] = "coco_test_ids"


@dataclass(frozen=True)
class CaptionSet:
    """Captions by image, and images by split.

    Args:
        captions: image id -> its captions in the file's order.
        splits: "train" (with restval), "val", "test" -> image ids in the file's order.
        files: image id -> file name (with the folder, where the annotations name one).
    """

    captions: Mapping[int, tuple[str, ...]]
    splits: Mapping[str, tuple[int, ...]]
    files: Mapping[int, str]

    def images(self, split: str) -> tuple[int, ...]:
        """The ids of a split's images.

        Raises:
            UserError: an unknown split, or one without images.
        """
        if split not in SPLITS:
            raise UserError("unknown split", split, ", ".join(SPLITS))
        if not self.splits.get(split):
            raise UserError("no images", f"split {split}", "at least one")
        return self.splits[split]

    def pairs(self, split: str) -> list[tuple[int, str]]:
        """Every caption of a split with its image: the unit of training with cross entropy."""
        return [(image_id, caption) for image_id in self.images(split) for caption in self.captions[image_id]]

    def references(self, split: str) -> dict[int, tuple[str, ...]]:
        """Image id -> all its captions: what a generated caption is compared with."""
        return {image_id: self.captions[image_id] for image_id in self.images(split)}

    def limit(self, split: str, count: int | None) -> CaptionSet:
        """The same set with only the first `count` images of a split (all with None)."""
        return CaptionSet(self.captions, {**self.splits, split: self.images(split)[:count]}, self.files)


def read_captions(path: str | Path) -> CaptionSet:
    """Read captions and splits.

    Args:
        path: a Karpathy json; or a folder with captions_train2014.json, captions_val2014.json and either
            coco_{train,restval,dev,test}_ids.npy or dataset_coco.json, which then gives the splits. A folder with
            nothing but dataset_coco.json is read as that file.

    Raises:
        UserError: a missing or broken file, or lists that name a caption the annotations do not have.
    """
    path = Path(path)
    if not path.is_dir():
        return from_karpathy(read_karpathy(path))
    if not all((path / name).is_file() for name in ANNOTATION_NAMES) and (path / KARPATHY_NAME).is_file():
        return from_karpathy(read_karpathy(path / KARPATHY_NAME))
    return _from_annotations(path)


def from_karpathy(images: Iterable[KarpathyImage]) -> CaptionSet:
    """The captions of a Karpathy json; restval counts as train, as everywhere in the literature."""
    captions: dict[int, tuple[str, ...]] = {}
    splits: dict[str, list[int]] = {split: [] for split in SPLITS}
    files = {}
    for image in images:
        captions[image.image_id] = image.captions
        splits["train" if image.split == "restval" else image.split].append(image.image_id)
        files[image.image_id] = f"{image.folder}/{image.file_name}" if image.folder else image.file_name
    return CaptionSet(captions, {split: tuple(ids) for split, ids in splits.items()}, files)


def _from_annotations(folder: Path) -> CaptionSet:
    annotations: dict[int, CocoCaption] = {}
    files: dict[int, str] = {}
    for name in ANNOTATION_NAMES:
        read = read_coco_captions(folder / name)
        subset = name.removeprefix("captions_").removesuffix(".json")
        files |= {image_id: f"{subset}/{file_name}" for image_id, file_name in read.file_names.items()}
        annotations |= {annotation.id: annotation for annotation in read.annotations}
    captions: dict[int, list[str]] = {}
    split_of: dict[int, str] = {}
    for name, ids in read_id_lists(folder).items():
        for caption_id in ids:
            if caption_id not in annotations:
                where = folder / f"{name}.npy"
                raise UserError(f"caption id {caption_id}", where, f"an id of {' or '.join(ANNOTATION_NAMES)}")
            annotation = annotations[caption_id]
            if split_of.setdefault(annotation.image_id, ID_LISTS[name]) != ID_LISTS[name]:
                raise UserError(f"image {annotation.image_id} in two splits", folder, "one split an image")
            captions.setdefault(annotation.image_id, []).append(annotation.caption)
    splits = {split: tuple(i for i, its in split_of.items() if its == split) for split in SPLITS}
    kept = {image_id: tuple(texts) for image_id, texts in captions.items()}
    return CaptionSet(kept, splits, {image_id: files[image_id] for image_id in kept})


def read_id_lists(folder: str | Path) -> dict[str, list[int]]:
    """The four lists of caption ids, by name; from dataset_coco.json where the folder has no .npy files.

    Raises:
        UserError: neither is there, or a file is broken or holds no integers.
    """
    folder = Path(folder)
    paths = {name: folder / f"{name}.npy" for name in ID_LISTS}
    there = [path for path in paths.values() if path.is_file()]
    if len(there) == len(paths):
        return {name: _read_ids(path) for name, path in paths.items()}
    if not there and (folder / KARPATHY_NAME).is_file():
        return derive_id_lists(read_karpathy(folder / KARPATHY_NAME))
    missing = next(path for path in paths.values() if not path.is_file())
    raise UserError("no such file", missing, f"{', '.join(f'{name}.npy' for name in ID_LISTS)}, or {KARPATHY_NAME}")


def derive_id_lists(images: Iterable[KarpathyImage]) -> dict[str, list[int]]:
    """The four lists from a Karpathy json: its sentence ids are the annotation ids of COCO."""
    lists: dict[str, list[int]] = {name: [] for name in ID_LISTS}
    for image in images:
        lists[_KARPATHY_LISTS[image.split]] += image.sentence_ids
    return lists


def write_id_lists(folder: str | Path, lists: Mapping[str, Iterable[int]]) -> None:
    """Write lists of caption ids as the official .npy files (`derive_id_lists` makes them for a data set of one's own).

    Raises:
        UserError: an unknown list, or a folder that cannot be written.
    """
    for name, ids in lists.items():
        if name not in ID_LISTS:
            raise UserError("unknown list of ids", name, ", ".join(ID_LISTS))
        path = Path(folder) / f"{name}.npy"
        temporary = path.with_name(f"{TEMPORARY_PREFIX}{path.name}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            np.save(temporary, np.array(list(ids), dtype=np.int64), allow_pickle=False)
            fsync_path(temporary)
            temporary.replace(path)
        except OSError as error:
            raise UserError(f"cannot write ({error.strerror})", path, "a writable folder") from error


def _read_ids(path: Path) -> list[int]:
    values = read_array(path, "a .npy file of integers")
    if values.ndim != 1 or not np.issubdtype(values.dtype, np.integer):
        raise UserError("holds something else", path, "a .npy file of integers [captions]")
    return values.tolist()
