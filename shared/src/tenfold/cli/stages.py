"""What a training in LLaVA's two stages can be told: captions first, then instructions.

    class StageSettings(InstructStage):          # a package's own fields beside these
        skip: tuple[int, ...] = ()

    class TrainSettings(TwoStages[StageSettings]):
        train_vision: bool = False

No torch here: the command line reads settings before it loads a model.
"""

from __future__ import annotations

from typing import Generic, Literal, Self, TypeVar

from pydantic import Field, model_validator

from tenfold.cli.settings import DEVICE, Settings

StageName = Literal["pretrain", "finetune"]
STAGES: tuple[StageName, ...] = ("pretrain", "finetune")


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


class InstructStage(Settings):
    """One stage of the training.

    Attributes:
        data, images: LLaVA's json of conversations and the folder of its images; relative to the data folder.
        conversation: the prompt template.
        epochs: 0 leaves the stage out. steps: at most so many optimiser steps an epoch; None: all of the data.
        batch: samples of an optimiser step, over all ranks. per_device: of those, how many a device takes at a time;
            what is left is accumulated.
        learning_rate: the highest, for all that is trained.
        max_length: text tokens of a sample, its image counting as one; what is longer is cut.
        sampler: "random", or "modality": samples of like length, with images only or of text only, come together.
        group: so many of them; None: a batch. The authors' were what their GPUs took at a time, so that the order did
            depend on the number of GPUs; here it does not.
        deepspeed: "zero2", "zero3", or a DeepSpeed json; None: DistributedDataParallel.
    """

    data: str
    images: str = "."
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
    def _batch_divides(self) -> Self:
        if self.batch % self.per_device:
            raise ValueError(f"a batch of {self.batch} is no multiple of per_device, {self.per_device}")
        if (self.group or self.batch) % self.per_device:
            raise ValueError(f"a group of {self.group} is no multiple of per_device, {self.per_device}")
        return self


class OptimizerSettings(Settings):
    """AdamW and its schedule, a cosine to zero after a linear rise: the same in both stages.

    Attributes:
        warmup_ratio: the rise's share of the stage's steps, rounded up.
        clip: the highest norm of the gradient; None: as it comes, as in the authors' DeepSpeed files.
    """

    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = Field(default=1e-8, gt=0)
    weight_decay: float = Field(default=0.0, ge=0)
    warmup_ratio: float = Field(default=0.03, ge=0, lt=1)
    clip: float | None = Field(default=None, gt=0)


Stage = TypeVar("Stage", bound=InstructStage)


class TwoStages(Settings, Generic[Stage]):
    """Settings of a training.

    Attributes:
        pretrain, finetune: stage 1, from captions, and stage 2, from conversations.
        stages: which of them run, in this order.
        loss: what the mean of the cross entropy is taken over: "batch", the tokens of the whole batch, so that the
            number of devices does not matter; or "micro_batch", those of one device's forward pass, of which the mean
            is taken, as the official code does.
        precision: "bf16" computes in bfloat16 (under DeepSpeed with weights in it, else under autocast) and writes a
            bfloat16 model.
        gradient_checkpointing: recompute activations in the backward pass.
        device: "auto" takes CUDA where there is a device, else the CPU.
        threads: of torch on the CPU; None: as torch chooses. Sums over threads differ in their last bits.
        checkpoint_steps: steps between checkpoints; there is one at the end of each stage too. keep: how many stay.
        log_steps: steps between lines of metrics.jsonl.
        wandb: a project to log to, offline unless WANDB_MODE says otherwise; None: none.
    """

    data: DataSettings = DataSettings()
    pretrain: Stage
    finetune: Stage
    optimizer: OptimizerSettings = OptimizerSettings()
    stages: tuple[StageName, ...] = STAGES
    loss: Literal["batch", "micro_batch"] = "batch"
    precision: Literal["fp32", "bf16"] = "bf16"
    gradient_checkpointing: bool = True
    device: str = Field(default="auto", pattern=DEVICE)
    threads: int | None = Field(default=None, ge=1)
    checkpoint_steps: int = Field(default=500, ge=1)
    keep: int = Field(default=1, ge=1)
    log_steps: int = Field(default=1, ge=1)
    wandb: str | None = None

    @model_validator(mode="after")
    def _stages_in_order(self) -> Self:
        if self.stages not in (("pretrain",), ("finetune",), STAGES):
            raise ValueError("stages should be pretrain, finetune, or pretrain,finetune")
        if not self.running:
            raise ValueError("nothing to train: a stage needs one epoch or more")
        return self

    @property
    def running(self) -> tuple[StageName, ...]:
        """The stages that have an epoch."""
        return tuple(name for name in self.stages if self.stage(name).epochs)

    def stage(self, name: StageName) -> Stage:
        """The settings of a stage."""
        return self.pretrain if name == "pretrain" else self.finetune
