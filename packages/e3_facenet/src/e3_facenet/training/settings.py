"""Settings of `e3-facenet train`; the paper's recipe by default (sections 4.1 and 5)."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from e3_facenet.config import DiscriminatorConfig, GeneratorConfig
from e3_facenet.data.settings import DataSettings
from e3_facenet.losses import REGULARISERS
from e3_facenet.training.phases import DREG_EVERY, GREG_EVERY
from tenfold.cli.settings import DEVICE, Settings


class LossSettings(Settings):
    """What is trained for.

    Attributes:
        regulariser: "paper" (L_loc + 0.5 L_normal), "released" (1.5 L_loc, what the released code computes),
            "location", "normal" or "none".
        contrast: weight of the CLIP loss; 0 leaves it out.
        contrast_rescale: contrast pictures in [0, 1] instead of the released [-1, 1].
        text: False trains without captions (a zero vector, no enhancer, no contrast): the stand-in for a StyleNeRF to
            start from.
        offset: the enhancer's tokens: "own", "shuffled" (another caption's: a control), or "none" (dw = 0).
        r1: gamma of the R1 penalty. path_length: whether Greg runs. mixing: probability of style mixing.
    """

    regulariser: str = "paper"
    contrast: float = Field(default=1.0, ge=0)
    contrast_rescale: bool = False
    text: bool = True
    offset: Literal["own", "shuffled", "none"] = "own"
    r1: float = Field(default=0.5, ge=0)
    path_length: bool = True
    mixing: float = Field(default=0.9, ge=0, le=1)

    @model_validator(mode="after")
    def _known(self) -> LossSettings:
        if self.regulariser not in REGULARISERS:
            raise ValueError(f"regulariser should be one of {', '.join(REGULARISERS)}")
        return self


class TrainSettings(Settings):
    """Settings of a training.

    Attributes:
        generator, discriminator: dimensions that differ from the paper's.
        clip: a CLIP in transformers' format (a folder, or a name on the hub); "mini": the mini world's, trained first.
        start: weights to start from: a StyleNeRF or E3-FaceNet pickle, or a folder of this package; None: new ones.
        iterations: of all phases. batch: pictures an iteration, over all ranks. micro: pictures at a time, the group
            of the minibatch deviation and of the contrastive loss.
        rate: before the lazy regularisation's correction; beta2: likewise.
        ema: half-life of the averaged generator in thousands of pictures.
        start_kimg: what the counter of pictures starts at; only printed, the released schedule does nothing with it.
        device: "auto" takes CUDA where there is a device, else the CPU.
        threads: of torch on the CPU; None: as torch chooses.
        checkpoint_steps: iterations between checkpoints. log_steps: between lines of metrics.jsonl.
        wandb: a project to log to, offline unless WANDB_MODE says otherwise; None: none.
    """

    data: DataSettings = DataSettings()
    generator: dict[str, Any] = Field(default_factory=dict)
    discriminator: dict[str, Any] = Field(default_factory=dict)
    clip: str = "openai/clip-vit-base-patch32"
    start: str | None = None
    loss: LossSettings = LossSettings()
    iterations: int = Field(default=62_500, ge=1)
    batch: int = Field(default=64, ge=1)
    micro: int = Field(default=4, ge=1)
    rate: float = Field(default=2.5e-4, gt=0)
    discriminator_rate: float | None = Field(default=None, gt=0)
    beta2: float = Field(default=0.99, gt=0, lt=1)
    ema: float = Field(default=20.0, gt=0)
    start_kimg: int = Field(default=24_000, ge=0)
    device: str = Field(default="auto", pattern=DEVICE)
    threads: int | None = Field(default=None, ge=1)
    checkpoint_steps: int = Field(default=500, ge=1)
    log_steps: int = Field(default=20, ge=1)
    wandb: str | None = None

    @model_validator(mode="after")
    def _batches(self) -> TrainSettings:
        if self.batch % self.micro:
            raise ValueError(f"batch should be a multiple of micro, {self.micro}")
        return self

    def generator_config(self) -> GeneratorConfig:
        """The generator's dimensions. Raises UserError for one that does not fit."""
        return GeneratorConfig.from_json(self.generator, "generator")

    def discriminator_config(self) -> DiscriminatorConfig:
        """The discriminator's. Raises UserError for one that does not fit."""
        return DiscriminatorConfig.from_json(self.discriminator, "discriminator")

    def generator_adam(self) -> tuple[float, tuple[float, float]]:
        """Rate and betas of the generator's Adam: lazy regularisation every 4th iteration scales both."""
        ratio = GREG_EVERY / (GREG_EVERY + 1)
        return self.rate * ratio, (0.0, self.beta2**ratio)

    def discriminator_adam(self) -> tuple[float, tuple[float, float]]:
        """The same of the discriminator, whose R1 runs every 16th iteration."""
        ratio = DREG_EVERY / (DREG_EVERY + 1)
        return (self.discriminator_rate or self.rate) * ratio, (0.0, self.beta2**ratio)

    def ema_decay(self) -> float:
        """What is kept of the averaged generator an iteration: 0.5^(batch / half-life)."""
        return 0.5 ** (self.batch / (self.ema * 1000))
