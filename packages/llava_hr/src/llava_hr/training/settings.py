"""What `llava-hr train` can be told, by option, by config file, and from a run record (sheet section 5).

`checked` makes settings of what any verb is told. A setting that does not exist, or a value that does not fit, is a
`UserError` that names it. No torch here: the command line reads settings before it loads a model.
"""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from tenfold.cli.settings import Settings
from tenfold.cli.stages import InstructStage, TwoStages


class ModelSettings(Settings):
    """What the training starts from: folders, files, or names of the Hugging Face hub.

    Attributes:
        size: dimensions by name; "mini" is the miniature, whose encoders and language model ship with the package.
        language_model: Vicuna, with its tokenizer; of any dimensions that transformers' Llama can have.
        clip: the low-resolution encoder, CLIP ViT-L/14-336.
        convnext: weights of the high-resolution encoder: a timm or open_clip file or folder, or a timm tag. None: the
            timm tag that the official code loads, whatever its scripts say (section 4.3).
        projector: what stage 1 trained, `mm_projector.bin`; where the training begins with stage 2.
        start: a whole LLaVA-HR, official or this package's, to fine-tune instead of all of the above.
        config: further fields of `llava_hr.configuration.LlavaHrConfig`, for encoders of other dimensions.
    """

    size: Literal["7b", "13b", "x-13b", "mini"] = "7b"
    language_model: str | None = None
    clip: str | None = None
    convnext: str | None = None
    projector: str | None = None
    start: str | None = None
    config: dict[str, Any] = Field(default_factory=dict)


class StageSettings(InstructStage):
    """One stage of the training.

    Attributes:
        image_size: R in pixels. image_aspect_ratio: "square" resizes the short side and crops, "pad" keeps all of it.
    """

    image_size: int = Field(ge=32)
    image_aspect_ratio: Literal["square", "pad"]


class TrainSettings(TwoStages[StageSettings]):
    """Settings of `llava-hr train`: stage 1 is low-resolution pre-training (projector and final align are trained,
    there are no adapters), stage 2 high-resolution instruction tuning (everything is trained).

    Attributes:
        tf32: on CUDA, float32 products in TensorFloat-32.
    """

    model: ModelSettings = ModelSettings()
    tf32: bool = True

    @model_validator(mode="after")
    def _start_fits(self) -> Self:
        if self.model.start is not None and "pretrain" in self.stages:
            raise ValueError("a whole model (start) is fine-tuned: stages should be finetune")
        if self.model.projector is not None and "pretrain" in self.stages:
            raise ValueError("a trained projector begins stage 2: stages should be finetune")
        return self
