"""Settings of the verbs that open a model: generate, edit, turntable, mesh, demo, eval."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from e3_facenet.data.settings import DataSettings
from tenfold.cli.settings import DEVICE, MINI, Settings


class ModelSettings(Settings):
    """Which model.

    Attributes:
        model: a folder of this package, an official pickle, a hub repository, or "mini", which ships.
        clip: a CLIP instead of the one that the model names.
        device: "auto" takes CUDA where there is a device, else the CPU.
        dtype: of the upsampling blocks above the first.
    """

    model: str = MINI
    clip: str | None = None
    device: str = Field(default="auto", pattern=DEVICE)
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"


class FaceSettings(ModelSettings):
    """What is generated.

    Attributes:
        text: the caption. edit: a second sentence, or None. strength: of the edit. background: "same", or "official",
            which draws it anew.
        yaws: of the views, in radians. psi: truncation.
    """

    text: str = "a face with pale skin , black hair , small mouth and red hat"
    edit: str | None = None
    strength: float = Field(default=0.5, ge=0, le=1)
    background: Literal["same", "official"] = "same"
    yaws: tuple[float, ...] = (-0.45, -0.225, 0.0, 0.225, 0.45)
    psi: float = Field(default=0.7, ge=-2, le=2)


class EvalSettings(ModelSettings):
    """Settings of `e3-facenet eval`.

    Attributes:
        data: captions and real pictures. split: of them.
        count: faces made; None: as many as the split has pictures. limit: at most so many.
        multiview: of the first so many faces, five views are compared.
        psi, temperature: of the single pictures; cameras: "random" as in training, or "frontal".
        inception: TorchScript file of the Inception features that published FIDs use; None: the distance is taken on
            the model's CLIP features, and says so.
        face: TorchScript file that embeds aligned faces [B, 3, 112, 112] in [-1, 1]; None: no MVIC.
        batch: faces at a time.
    """

    data: DataSettings = DataSettings(flip=False)
    split: str = "test"
    count: int | None = Field(default=None, ge=2)
    limit: int | None = Field(default=None, ge=2)
    multiview: int = Field(default=100, ge=0)
    psi: float = Field(default=1.0, ge=-2, le=2)
    temperature: float = Field(default=1.0, ge=0)
    cameras: Literal["random", "frontal"] = "random"
    inception: str | None = None
    face: str | None = None
    batch: int = Field(default=4, ge=1)
