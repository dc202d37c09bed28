"""What `flashsloth train` can be told, by option, by config file, and from a run record (sheet section 5).

No torch here: the command line reads settings before it loads a model.
"""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from tenfold.cli.settings import Settings
from tenfold.cli.stages import InstructStage, TwoStages


class ModelSettings(Settings):
    """What the training starts from: folders, or names of the Hugging Face hub.

    Attributes:
        size: "3.2b", "hd-3.2b", or "mini", the miniature, whose pre-trained parts ship with the package.
        language_model: Phi-2, with its vocab.json and merges.txt.
        siglip: the vision tower, SigLIP-SO400M/14-384.
        stage1: what stage 1 trained, `stage1.safetensors`; where the training begins with stage 2.
        start: a whole FlashSloth, a release or this package's, to fine-tune instead of all of the above.
        config: further fields of `FlashSlothConfig`.
    """

    size: Literal["3.2b", "hd-3.2b", "mini"] = "3.2b"
    language_model: str | None = None
    siglip: str | None = None
    stage1: str | None = None
    start: str | None = None
    config: dict[str, Any] = Field(default_factory=dict)


class StageSettings(InstructStage):
    """One stage of the training.

    Attributes:
        skip: numbers of records that are left out.
    """

    skip: tuple[int, ...] = ()
    conversation: Literal["plain", "phi2"]


class TrainSettings(TwoStages[StageSettings]):
    """Settings of `flashsloth train`: in stage 1 SAP and projector learn from captions, in stage 2 everything but the
    vision tower learns from conversations. Of `precision`: the authors used fp16 with a dynamic loss scale.

    Attributes:
        train_vision: stage 2 trains the vision tower too, as the paper says of HD; the released code does not.
        reinit_sap_in_stage2: stage 2 begins with a new SAP, as the released code does, which loses what stage 1 taught.
    """

    model: ModelSettings = ModelSettings()
    train_vision: bool = False
    reinit_sap_in_stage2: bool = False

    @model_validator(mode="after")
    def _start_fits(self) -> Self:
        if "pretrain" in self.stages and (self.model.start is not None or self.model.stage1 is not None):
            raise ValueError("a whole model (start) or what stage 1 trained begins stage 2: stages should be finetune")
        return self
