"""What `dit-sam train` can be told; no torch here, so that the command line reads settings before it loads a model."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from dit_sam.data.settings import DataSettings
from tenfold.cli.settings import DEVICE, Settings

Freeze = Literal["none", "encoder", "encoder_as_flag"]


class StartSettings(Settings):
    """What a training starts from: a DIT model, or SAM's and BERT's weights with a new way of the text.

    Attributes:
        model: a folder of `dit-sam train` or `convert`; then the other two are not read.
        sam: SAM's checkpoint, sam_vit_b_01ec64.pth or sam_vit_h_4b8939.pth.
        bert: the folder of bert-base-uncased: vocab.txt and weights.
        point_steps: of the mini model's own pre-training on points, where it starts from no model.
    """

    model: str | None = None
    sam: str | None = None
    bert: str | None = None
    point_steps: int = Field(default=1000, ge=1)


class ModelSettings(Settings):
    """The model.

    Attributes:
        size: of SAM's encoder; "mini" is the laptop's.
        variant: how text enters it. decoder_depth: of the mask decoder (the baselines have 4 and 6).
        reproject: False: E-DIT as its text reads. text_layer: BERT's layer, counted from 1.
        dropout: None: the size's own (0.1; mini: 0).
    """

    size: Literal["vit_b", "vit_l", "vit_h", "mini"] = "vit_b"
    variant: str = "layer_wise"
    input_size: int | None = Field(default=None, ge=16)
    decoder_depth: int = Field(default=2, ge=1)
    reproject: bool = True
    text_layer: int = Field(default=1, ge=1)
    dropout: float | None = Field(default=None, ge=0, lt=1)

    def changes(self) -> dict[str, Any]:
        """What differs from the size's own config, for `DITConfig`."""
        return self.model_dump(exclude={"size", "variant"}, exclude_none=True)


class AugmentSettings(Settings):
    """What a training does to pictures and sentences (section 6).

    Attributes:
        scales: the long side becomes the input's edge minus 32 times 0 to this many less one, at random.
        jitter: the probability of other brightness, contrast and saturation, each by a factor of 0.6 to 1.4.
        flip: the probability of a mirrored picture, with left and right exchanged in the sentence.
        flip_text: "letters" exchanges them wherever they stand, as published; "words" at the beginning of words alone.
    """

    scales: int = Field(default=7, ge=1)
    jitter: float = Field(default=0.8, ge=0, le=1)
    flip: float = Field(default=0.5, ge=0, le=1)
    flip_text: Literal["letters", "words"] = "letters"


class ValidationSettings(Settings):
    """The validation after every epoch, by which the best weights are kept: mIoU by the official protocol.

    Attributes:
        part: of the data. limit: only the first so many sentences. batch: sentences at a time; None: the training's.
    """

    part: str = "val"
    limit: int | None = Field(default=None, ge=1)
    batch: int | None = Field(default=None, ge=1)


class TrainSettings(Settings):
    """Settings of `dit-sam train`; the paper's by default (section 5).

    Attributes:
        freeze: "none"; "encoder": SAM's encoder stays as it is and the text's way into it learns (what the paper's
            frozen results were made with); "encoder_as_flag": all of the encoder, that way included, as the released
            code's own flag does.
        freeze_text: BERT stays as it is.
        epochs: of the data. steps: at most so many an epoch; None: all batches. An incomplete last batch is dropped.
        batch: sentences a step, over all ranks.
        schedule, rate, floor, start_rate, warmup_epochs: see `dit_sam.training.schedule`.
        clip: largest norm of all gradients together; None: none.
        average: the decay of the weights' average, which is validated and saved; None: the weights themselves are.
        swap_sentences: a control: every sentence is another sample's.
        precision: "bf16" or "fp16" compute under autocast; weights and optimiser stay in float32.
        threads: of torch on the CPU; None: as torch chooses. Sums over threads differ in their last bits.
        workers: processes that read samples; 0: the training process itself.
        checkpoint_steps: steps between checkpoints; there is one at the end of every epoch too.
        log_steps: steps between lines of metrics.jsonl.
        wandb: a project to log to, offline unless WANDB_MODE says otherwise; None: none.
    """

    data: DataSettings = DataSettings()
    model: ModelSettings = ModelSettings()
    start: StartSettings = StartSettings()
    augment: AugmentSettings = AugmentSettings()
    validation: ValidationSettings = ValidationSettings()
    freeze: Freeze = "none"
    freeze_text: bool = False
    epochs: int = Field(default=40, ge=1)
    steps: int | None = Field(default=None, ge=1)
    batch: int = Field(default=64, ge=1)
    schedule: Literal["wcosine", "cosine"] = "wcosine"
    rate: float = Field(default=1e-4, gt=0)
    floor: float = Field(default=1e-6, ge=0)
    start_rate: float = Field(default=1e-7, ge=0)
    warmup_epochs: float = Field(default=3, ge=0)
    betas: tuple[float, float] = (0.9, 0.98)
    epsilon: float = Field(default=1e-9, gt=0)
    clip: float | None = Field(default=0.15, gt=0)
    average: float | None = Field(default=0.9997, gt=0, lt=1)
    swap_sentences: bool = False
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    device: str = Field(default="auto", pattern=DEVICE)
    threads: int | None = Field(default=None, ge=1)
    workers: int = Field(default=0, ge=0)
    checkpoint_steps: int = Field(default=2000, ge=1)
    log_steps: int = Field(default=50, ge=1)
    wandb: str | None = None

    @model_validator(mode="after")
    def _goes_together(self) -> TrainSettings:
        if self.warmup_epochs >= self.epochs and self.schedule == "wcosine":
            raise ValueError("warmup_epochs should be fewer than epochs")
        if self.data.in_memory and (self.augment.jitter or self.augment.scales > 1 or self.augment.flip):
            raise ValueError("data.in_memory should be false where pictures are augmented")
        return self
