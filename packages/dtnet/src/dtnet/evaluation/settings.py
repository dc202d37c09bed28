"""What `dtnet eval` can be told. No torch here, as in `dtnet.training.settings`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from tenfold.cli.settings import DEVICE, Settings

# The folder that --data names.
DATA_TREE = """dataset_coco.json (Karpathy's captions and splits), or annotations/ with
captions_{train,val}2014.json and coco_{train,restval,dev,test}_ids.npy; and one .h5 or .hdf5 file of grid features, an
array <image id>_grids or <image id>_features of 49 rows for each image (else --features). For --online:
annotations/image_info_test2014.json or captions_val2014.json, else all images of the features."""


class EvalSettings(Settings):
    """Settings of `dtnet eval`.

    Attributes:
        model: folders of models; several are an ensemble that averages log-probabilities.
        data: the folder of the data set; None: the one that a mini training drew beside its model.
        captions: a Karpathy json or a folder of annotations; None: what `data` has.
        features: the h5 file of grid features; None: the only one in `data`.
        key: which array of an image holds its grid: "grids", "features", or "auto" (grids where there are some).
        split: whose images are captioned and scored.
        online: caption this set for COCO's server instead; nothing is scored here.
        other_results: the results file of the other set, to go into the same zip.
        beams, max_len: of the beam search.
        batch: images at a time.
        limit: only the first so many images.
        metrics: of `tenfold.metrics.captions.METRICS`.
        tokens: how captions become words: "ptb" as COCO's evaluation does, or "whitespace".
        spice: the folder with SPICE's models; None: no SPICE.
        device: "auto" takes CUDA where there is a device, else the CPU.
    """

    model: tuple[str, ...] = Field(min_length=1)
    data: str | None = None
    captions: str | None = None
    features: str | None = None
    key: Literal["auto", "grids", "features"] = "auto"
    split: Literal["train", "val", "test"] = "test"
    online: Literal["test2014", "val2014"] | None = None
    other_results: str | None = None
    beams: int = Field(default=5, ge=1)
    max_len: int = Field(default=20, ge=1)
    batch: int = Field(default=50, ge=1)
    limit: int | None = Field(default=None, ge=1)
    metrics: tuple[str, ...] = ("bleu", "meteor", "rouge", "cider", "spice")
    tokens: Literal["ptb", "whitespace"] = "ptb"
    spice: str | None = None
    device: str = Field(default="auto", pattern=DEVICE)

    @model_validator(mode="after")
    def _online_is_whole(self) -> EvalSettings:
        if self.online is not None and self.limit is not None:
            raise ValueError("--online needs every image of the set, so no --limit")
        if self.other_results is not None and self.online is None:
            raise ValueError("--other-results goes with --online")
        return self


class ScoreSettings(Settings):
    """Settings of `dtnet score`.

    Attributes:
        results: captions in the layout of COCO's results: `[{"image_id": 42, "caption": "..."}]`.
        data, captions, split, metrics, tokens, spice: as for `dtnet eval`.
    """

    results: str
    data: str | None = None
    captions: str | None = None
    split: Literal["train", "val", "test"] = "test"
    metrics: tuple[str, ...] = ("bleu", "meteor", "rouge", "cider", "spice")
    tokens: Literal["ptb", "whitespace"] = "ptb"
    spice: str | None = None


class CaptionSettings(Settings):
    """Settings of `dtnet caption`.

    Attributes:
        beams, max_len: of the beam search.
        device: "auto" takes CUDA where there is a device, else the CPU.
    """

    beams: int = Field(default=5, ge=1)
    max_len: int = Field(default=20, ge=1)
    device: str = Field(default="auto", pattern=DEVICE)
