"""What the verbs of `inst-diff-edit` can be told, by option, by config file, and from a run record.

No torch here: the command line reads settings before it loads a model.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from inst_diff_edit.checkpoints.settings import ModelSettings

# Of the demonstration with it: the paper's own, which scenes of world 101 want, too.
DEMO = {"threshold": 0.2, "num_masks": 3}


class MethodSettings(ModelSettings):
    """The method's knobs; defaults are the paper's (`InstDiffEditPipeline.__call__` tells more).

    Attributes:
        final: "auto": inpainting where a model for it is given, else direct decoding.
        num_masks: noises per picture; None: 3 with inpainting, 1 with direct decoding.
        size: edge in pixels to which pictures are squashed; None: what the model was trained for.
    """

    strength: float = Field(default=0.5, gt=0, le=1)
    steps: int = Field(default=50, ge=1)
    guidance_scale: float = 7.5
    num_masks: int | None = Field(default=None, ge=1)
    threshold: float = Field(default=0.2, ge=0, lt=1)
    object_threshold: float = 0.9
    background_threshold: float = 0.6
    roles: Literal["first", "every"] = "first"
    final: Literal["auto", "inpaint", "latents"] = "auto"
    negative_prompt: str | None = None
    size: int | None = Field(default=None, ge=8)

    def stage(self) -> str:
        """ "inpaint" or "latents"."""
        if self.final != "auto":
            return self.final
        return "inpaint" if self.inpaint else "latents"

    def noises(self) -> int:
        """Noises per picture."""
        if self.num_masks is not None:
            return self.num_masks
        return 3 if self.stage() == "inpaint" else 1


class EditSettings(MethodSettings):
    """Settings of `inst-diff-edit edit` and `demo`.

    Attributes:
        image: a file; None: a scene of the mini world. prompt: what it shall show; None: the scene's own edit.
    """

    image: str | None = None
    prompt: str | None = None


EDITING_SETS = ("Editing-Mask", "ImageNet", "Imagen")
METHODS = ("inst-diff-edit", "diffedit", "sdedit")


class EvalSettings(MethodSettings):
    """Settings of `inst-diff-edit eval`.

    Attributes:
        data: the folder of lists and pictures; None: scenes of the mini world, in Editing-Mask's layout.
        sets: which of `EDITING_SETS`.
        method: how pictures are edited: the paper's way, by the repository's DiffEdit (its mask, then inpainting), or
            by SDEdit, which has no mask.
        diffedit_threshold, diffedit_noises: of the repository's DiffEdit.
        limit: only the first so many records of each set.
        batch: pictures at a time.
        lpips: folder of LPIPS' weights. inception: file of the FID network's. clip: folder of a CLIP model.
        real: folder with a folder of real pictures for every target class of ImageNet, for CSFID.
    """

    data: str | None = None
    sets: tuple[Literal["Editing-Mask", "ImageNet", "Imagen"], ...] = Field(default=("Editing-Mask",), min_length=1)
    method: Literal["inst-diff-edit", "diffedit", "sdedit"] = "inst-diff-edit"
    diffedit_threshold: float = Field(default=0.3, ge=0, lt=1)
    diffedit_noises: int = Field(default=10, ge=1)
    limit: int | None = Field(default=None, ge=1)
    batch: int = Field(default=4, ge=1)
    lpips: str | None = None
    inception: str | None = None
    real: str | None = None
    clip: str | None = None
