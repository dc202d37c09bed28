"""What a data set is: files, splits, words. No torch here."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from tenfold.cli.settings import Settings


class MiniSettings(Settings):
    """The mini world's data set.

    Attributes:
        train, val, test: images of each split.
        seed: of its scenes (not that of the training).
        tagged: half of the scenes carry a tag and are to be read otherwise (`dtnet.data.tagged`).
    """

    train: int = Field(default=4000, ge=1)
    val: int = Field(default=500, ge=1)
    test: int = Field(default=500, ge=1)
    seed: int = Field(default=0, ge=0)
    tagged: bool = False


class CountSettings(Settings):
    """What a data set holds, for `--dry-run` where its files are not there: of train, and the vocabulary's size."""

    images: int = 113_287
    captions: int = 566_747
    words: int = 10_201


class DataSettings(Settings):
    """Captions and grid features.

    Attributes:
        folder: where the files lie; None: only the mini world can be had.
        captions: Karpathy's ``dataset_coco.json``, or the folder of COCO's caption files with the four
            ``coco_*_ids.npy``; relative to ``folder``.
        features: the h5 file of grid features; relative to ``folder``.
        key: which array of an image holds its grid: "grids", "features", or "auto" (grids where there are some).
        tokens: how captions become words: "spacy" as the authors did, "whitespace" for captions that are words already.
        vocabulary: a ``vocabulary.json`` or the authors' pickle, relative to ``folder``; None: counted from the
            captions of train and val.
        min_count: a word that occurs less often becomes ``<unk>``, when the vocabulary is counted.
        in_memory: read all features once, instead of each batch from the file.
        workers: processes that read batches; 0: the training process itself.
        extractor: what made the features, as `dtnet.features.build_extractor` takes it; kept with the trained model,
            which can then caption images. None: it captions features.
        mini: drawn where no folder is named; None: there must be one.
        expected: the counts that ``--dry-run`` takes where there is no folder.
    """

    folder: str | None = None
    captions: str = "dataset_coco.json"
    features: str = "coco_grid_feats2.hdf5"
    key: Literal["auto", "grids", "features"] = "auto"
    tokens: Literal["spacy", "whitespace"] = "spacy"
    vocabulary: str | None = None
    min_count: int = Field(default=5, ge=1)
    in_memory: bool = False
    workers: int = Field(default=4, ge=0)
    extractor: dict[str, Any] | None = None
    mini: MiniSettings | None = None
    expected: CountSettings = CountSettings()
