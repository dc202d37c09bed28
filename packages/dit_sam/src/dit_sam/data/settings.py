"""What data sets can be told; no torch here, so that the command line can read settings first."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from tenfold.cli.settings import Settings

DataSet = Literal["refcoco", "refcoco+", "refcocog", "grefcoco", "own", "mini"]
DATA_TREE = """The folder of the data.
REFER: <set>/refs(<split>).p and <set>/instances.json, <set> one of refcoco, refcoco+, refcocog.
Converted: anns/<set>.json and masks/<set>/<mask_id>.npy.
gRefCOCO: grefcoco/grefs(unc).json and grefcoco/instances.json.
Pictures of all of them: COCO's train2014 (not train2017), as train2014/, images/train2014/, images/coco/ or
images/mscoco/images/train2014/.
Own: <part>.jsonl with {"image", "sentence" or "sentences", "mask"} a line, files relative to the folder."""


class MiniSettings(Settings):
    """The mini world's data set: scenes of each part, and the seed of its scenes (not that of the training)."""

    train: int = Field(default=3000, ge=1)
    val: int = Field(default=100, ge=1)
    test: int = Field(default=250, ge=1)
    size: int = Field(default=48, ge=16, le=2048)
    seed: int = Field(default=0, ge=0)


class CountSettings(Settings):
    """What a data set holds, for `--dry-run` where its files are not there."""

    train: int = Field(default=42_404, ge=1)


class DataSettings(Settings):
    """Pictures, sentences and masks.

    Attributes:
        folder: where the files lie, see `DATA_TREE`; None: only the mini world can be had.
        set: which data set. split: REFER's split file: unc or google (refcoco), unc (refcoco+), umd or google
            (refcocog).
        mini: drawn for the set `mini` where no folder is named.
        in_memory: keep what was decoded; for small sets and trainings without augmentation.
        expected: the counts that ``--dry-run`` takes where there is no folder.
    """

    folder: str | None = None
    set: DataSet = "refcoco"
    split: str | None = None
    mini: MiniSettings = MiniSettings()
    in_memory: bool = False
    expected: CountSettings = CountSettings()
