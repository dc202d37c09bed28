"""Flickr30k for retrieval: Karpathy's json of 31,014 photographs with five captions each, and their files.

<folder>/karpathy/dataset_flickr30k.json     {"images": [{"filename", "split", "imgid", "sentids", "sentences"}]}
<folder>/flickr30k-images/1000092795.jpg     (Young et al. 2014; split of Karpathy, Li 2015: 29,000 / 1,014 / 1,000)
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tenfold.data.formats.coco_captions import read_karpathy
from tenfold.data.formats.records import ImageFolder, Picture
from tenfold.errors import UserError

SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class RetrievalSample:
    """A photograph with its captions."""

    image_id: int
    captions: tuple[str, ...]
    picture: Picture


def karpathy_file(folder: str | Path) -> Path:
    """The official name of the captions."""
    return Path(folder) / "karpathy" / "dataset_flickr30k.json"


def read_flickr30k(folder: str | Path, split: str = "test") -> list[RetrievalSample]:
    """Read a split; photographs are looked up now and opened on access.

    Raises:
        UserError: as `read_karpathy`; no such split, a missing photograph, a split without records.
    """
    if split not in SPLITS:
        raise UserError(f"no split {split!r}", "Flickr30k", ", ".join(SPLITS))
    path, images = karpathy_file(folder), ImageFolder(Path(folder) / "flickr30k-images")
    found = [one for one in read_karpathy(path) if one.split == split]
    if not found:
        raise UserError(f"no photograph of split {split}", path, "at least one")
    return [
        RetrievalSample(one.image_id, one.captions, images.picture(one.file_name, f"{path}, image {one.image_id}"))
        for one in found
    ]
