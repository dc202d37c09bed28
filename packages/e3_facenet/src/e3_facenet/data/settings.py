"""Settings of the data set."""

from __future__ import annotations

from pydantic import Field

from tenfold.cli.settings import Settings


class MiniSettings(Settings):
    """The mini world's data set: pictures of each split, captions of a picture, and the seed of its heads."""

    train: int = Field(default=2000, ge=1)
    test: int = Field(default=400, ge=1)
    captions: int = Field(default=3, ge=1)
    seed: int = Field(default=0, ge=0)


class DataSettings(Settings):
    """Pictures with captions. Camera poses are not needed: training draws its own.

    Attributes:
        folder: where they lie; None: only the mini world can be had.
        images: the folder of pictures, relative to `folder`; None: the only one whose name begins with "images".
        index: the file of captions, relative to `folder`; None: what is there of dataset.json, dataset2.json,
            captions.jsonl, metadata.jsonl.
        flip: show every picture mirrored as well, captions unchanged.
        in_memory: keep decoded pictures.
        mini: drawn where no folder is named; None: there must be one.
        expected: pictures and captions a picture that `--dry-run` takes where there is no folder.
    """

    folder: str | None = None
    images: str | None = None
    index: str | None = None
    flip: bool = True
    in_memory: bool = False
    mini: MiniSettings | None = None
    expected: tuple[int, int] = (24_000, 10)
