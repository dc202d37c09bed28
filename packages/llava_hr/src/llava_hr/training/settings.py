"""What `llava-hr train` can be told, by option, by config file, and from a run record (sheet section 5).

`checked` makes settings of what any verb is told. A setting that does not exist, or a value that does not fit, is a
`UserError` that names it. No torch here: the command line reads settings before it loads a model.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from tenfold.cli.settings import DEVICE, Settings

StageName = Literal["pretrain", "finetune"]
STAGES: tuple[StageName, ...] = ("pretrain", "finetune")


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


class MiniSettings(Settings):
    """The miniature's data set: its scenes, and their seed (not that of the training)."""

    train: int = Field(default=6400, ge=1)
    seed: int = Field(default=0, ge=0)


class ExpectedSettings(Settings):
    """What `--dry-run` counts with where the data are not there, and for how many GPUs outside of `torchrun`."""

    pretrain: int = Field(default=558_128, ge=1)
    finetune: int = Field(default=665_298, ge=1)
    gpus: int = Field(default=8, ge=1)


class DataSettings(Settings):
    """Where the data lie.

    Attributes:
        folder: what the stages' `data` and `images` are relative to. None: only the miniature's can be had.
        workers: processes that read batches; 0: the training process itself.
        mini: drawn where no folder is named; None: there must be one.
        expected: for `--dry-run`.
    """

    folder: str | None = None
    workers: int = Field(default=4, ge=0)
    mini: MiniSettings | None = None
    expected: ExpectedSettings = ExpectedSettings()


class StageSettings(Settings):
    """One stage of the training.

    Attributes:
        data, images: LLaVA's json of conversations and the folder of its images; relative to the data folder.
        image_size: R in pixels. image_aspect_ratio: "square" resizes the short side and crops, "pad" keeps all of it.
        conversation: the prompt template.
        epochs: 0 leaves the stage out. steps: at most so many optimiser steps an epoch; None: all of the data.
        batch: samples of an optimiser step, over all ranks. per_device: of those, how many a device takes at a time;
            what is left is accumulated.
        learning_rate: the highest, for all that is trained.
        max_length: text tokens of a sample, its image counting as one; what is longer is cut.
        sampler: "random", or "modality": samples of like length, with images only or of text only, come together
            (section 6). group: so many of them; None: a batch. The authors' were what their GPUs took at a time, so
            that the order did depend on the number of GPUs; here it does not.
        deepspeed: "zero2", "zero3", or a DeepSpeed json; None: DistributedDataParallel.
    """

    data: str
    images: str = "."
    image_size: int = Field(ge=32)
    image_aspect_ratio: Literal["square", "pad"]
    conversation: str
    epochs: int = Field(default=1, ge=0)
    steps: int | None = Field(default=None, ge=1)
    batch: int = Field(ge=1)
    per_device: int = Field(ge=1)
    learning_rate: float = Field(gt=0)
    max_length: int = Field(ge=2)
    sampler: Literal["random", "modality"]
    group: int | None = Field(default=None, ge=1)
    deepspeed: str | None = None

    @model_validator(mode="after")
    def _batch_divides(self) -> StageSettings:
        if self.batch % self.per_device:
            raise ValueError(f"a batch of {self.batch} is no multiple of per_device, {self.per_device}")
        if (self.group or self.batch) % self.per_device:
            raise ValueError(f"a group of {self.group} is no multiple of per_device, {self.per_device}")
        return self


class OptimizerSettings(Settings):
    """AdamW and its schedule, a cosine to zero after a linear rise: the same in both stages.

    Attributes:
        warmup_ratio: the rise's share of the stage's steps, rounded up.
        clip: the highest norm of the gradient; None: as it comes.
    """

    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = Field(default=1e-8, gt=0)
    weight_decay: float = Field(default=0.0, ge=0)
    warmup_ratio: float = Field(default=0.03, ge=0, lt=1)
    clip: float | None = Field(default=None, gt=0)


class TrainSettings(Settings):
    """Settings of `llava-hr train`.

    Attributes:
        pretrain: stage 1, low-resolution pre-training: projector and final align are trained; there are no adapters.
        finetune: stage 2, high-resolution instruction tuning: everything is trained.
        stages: which of them run, in this order.
        loss: what the mean of the cross entropy is taken over: "batch", the tokens of the whole batch, so that the
            number of devices does not matter; or "micro_batch", those of one device's forward pass, of which the mean
            is taken, as the official code does.
        precision: "bf16" computes in bfloat16 (under DeepSpeed with weights in it, else under autocast) and writes a
            bfloat16 model.
        tf32: on CUDA, float32 products in TensorFloat-32.
        gradient_checkpointing: recompute activations in the backward pass.
        device: "auto" takes CUDA where there is a device, else the CPU.
        threads: of torch on the CPU; None: as torch chooses. Sums over threads differ in their last bits.
        checkpoint_steps: steps between checkpoints; there is one at the end of each stage too. keep: how many stay.
        log_steps: steps between lines of metrics.jsonl.
        wandb: a project to log to, offline unless WANDB_MODE says otherwise; None: none.
    """

    model: ModelSettings = ModelSettings()
    data: DataSettings = DataSettings()
    pretrain: StageSettings
    finetune: StageSettings
    optimizer: OptimizerSettings = OptimizerSettings()
    stages: tuple[StageName, ...] = STAGES
    loss: Literal["batch", "micro_batch"] = "batch"
    precision: Literal["fp32", "bf16"] = "bf16"
    tf32: bool = True
    gradient_checkpointing: bool = True
    device: str = Field(default="auto", pattern=DEVICE)
    threads: int | None = Field(default=None, ge=1)
    checkpoint_steps: int = Field(default=500, ge=1)
    keep: int = Field(default=1, ge=1)
    log_steps: int = Field(default=1, ge=1)
    wandb: str | None = None

    @model_validator(mode="after")
    def _stages_in_order(self) -> TrainSettings:
        if self.stages not in (("pretrain",), ("finetune",), STAGES):
            raise ValueError("stages should be pretrain, finetune, or pretrain,finetune")
        if not self.running:
            raise ValueError("nothing to train: a stage needs one epoch or more")
        return self

    @model_validator(mode="after")
    def _start_fits(self) -> TrainSettings:
        if self.model.start is not None and "pretrain" in self.stages:
            raise ValueError("a whole model (start) is fine-tuned: stages should be finetune")
        if self.model.projector is not None and "pretrain" in self.stages:
            raise ValueError("a trained projector begins stage 2: stages should be finetune")
        return self

    @property
    def running(self) -> tuple[StageName, ...]:
        """The stages that have an epoch."""
        return tuple(name for name in self.stages if self.stage(name).epochs)

    def stage(self, name: StageName) -> StageSettings:
        """The settings of a stage."""
        return self.pretrain if name == "pretrain" else self.finetune
