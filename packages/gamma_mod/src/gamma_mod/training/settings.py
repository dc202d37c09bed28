"""What `gamma-mod train` can be told, by option, by config file, and from a run record (section 5).

No torch here: the command line reads settings before it loads a model.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from tenfold.cli.settings import DEVICE, MINI, Settings


class ModelSettings(Settings):
    """The host that is converted.

    Attributes:
        model: "mini", a folder in transformers' layout, or a hub id: a model after its alignment (stage 1).
        imports: modules that make further model types known to transformers, such as llava_hr.auto.
        attention: "sdpa" or "eager".
        shape: for `--dry-run` where no model is there: llava_hr_7b, llava_hr_13b, llava_hr_x_13b or llava_7b.
    """

    model: str | None = MINI
    imports: tuple[str, ...] = ()
    attention: Literal["sdpa", "eager"] = "sdpa"
    shape: Literal["llava_hr_7b", "llava_hr_13b", "llava_hr_x_13b", "llava_7b"] | None = None


class ConversionSettings(Settings):
    """How it is converted.

    Attributes:
        layers: a list, a placement by name (`gamma_mod.place`), or "arank": measured on the first samples of the data.
        num_dense: with "arank", layers of highest rank that stay dense. samples: how many are measured.
        routing_ratio, protect, aux_coefficient, shared_router, initialisation, decode_skip: as `GammaModConfig`.
        calibrate: after training, set the prompt's threshold so that this share of tokens is skipped; None keeps the
            released 0.005, which serves after a whole epoch only. calibration_samples: prompts that it is set on.
    """

    layers: tuple[int, ...] | str = "arank_mod"
    num_dense: int = Field(default=4, ge=0)
    samples: int = Field(default=50, ge=1)
    routing_ratio: float = Field(default=0.5, ge=0, lt=1)
    protect: Literal["none", "question", "question+answer"] = "question"
    aux_coefficient: float = Field(default=0.01, ge=0)
    shared_router: bool = True
    initialisation: Literal["linear", "xavier"] = "linear"
    decode_skip: bool = True
    calibrate: float | None = Field(default=None, ge=0, lt=1)
    calibration_samples: int = Field(default=32, ge=1)


class MiniSettings(Settings):
    """The miniature's data set: how many scenes, their seed (not that of the training), pixels along an edge."""

    train: int = Field(default=480, ge=1)
    seed: int = Field(default=0, ge=0)
    size: int = Field(default=96, ge=16)


class DataSettings(Settings):
    """Where the data lie.

    Attributes:
        folder: what ``conversations`` and ``images`` are relative to. None: only the miniature's can be had.
        conversations, images: LLaVA's json of conversations and the folder of its images.
        protocol: "template", the host's own, or "vicuna", the released models'.
        max_length: text tokens of a sample, its image counting as one; what is longer is cut.
        workers: processes that read batches; 0: the training process itself.
        mini: drawn where no folder is named; None: there must be one.
        expected: samples and GPUs that `--dry-run` counts with where there are none.
    """

    folder: str | None = None
    conversations: str = "llava_v1_5_mix665k.json"
    images: str = "."
    protocol: Literal["template", "vicuna"] = "template"
    max_length: int = Field(default=2048, ge=2)
    workers: int = Field(default=4, ge=0)
    mini: MiniSettings | None = None
    expected: tuple[int, int] = (665_298, 8)


class StageSettings(Settings):
    """The instruction tuning in which the router learns (stage 2; stage 1 is the host's own).

    Attributes:
        epochs, steps: at most so many optimiser steps an epoch; None: all of the data.
        batch: samples of an optimiser step, over all ranks. per_device: of those, how many a device takes at a time.
        learning_rate: the highest, for all that is trained.
        sampler: "random", or "modality": samples of like length, with images only or of text only, come together.
        trainable: "all" parameters (the paper), or the "router" alone, which is known to be unstable.
        freeze: parts of parameter names that stay as they are, e.g. "vision_tower" (Mini-Gemini).
        deepspeed: "zero2", "zero3", or a DeepSpeed json; None: DistributedDataParallel.
    """

    epochs: int = Field(default=1, ge=1)
    steps: int | None = Field(default=None, ge=1)
    batch: int = Field(default=128, ge=1)
    per_device: int = Field(default=8, ge=1)
    learning_rate: float = Field(default=2e-5, gt=0)
    sampler: Literal["random", "modality"] = "modality"
    trainable: Literal["all", "router"] = "all"
    freeze: tuple[str, ...] = ()
    deepspeed: str | None = None

    @model_validator(mode="after")
    def _batch_divides(self) -> StageSettings:
        if self.batch % self.per_device:
            raise ValueError(f"a batch of {self.batch} is no multiple of per_device, {self.per_device}")
        return self


class OptimizerSettings(Settings):
    """AdamW and its schedule, a cosine to zero after a linear rise.

    Attributes:
        warmup_ratio: the rise's share of the steps, rounded up.
        clip: the highest norm of the gradient; None: as it comes, as the authors' ZeRO-3 config has none.
    """

    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = Field(default=1e-8, gt=0)
    weight_decay: float = Field(default=0.0, ge=0)
    warmup_ratio: float = Field(default=0.03, ge=0, lt=1)
    clip: float | None = Field(default=None, gt=0)


class TrainSettings(Settings):
    """Settings of `gamma-mod train`.

    Attributes:
        precision: "bf16" computes in bfloat16 (under DeepSpeed with weights in it, else under autocast).
        tf32: on CUDA, float32 products in TensorFloat-32.
        gradient_checkpointing: recompute activations in the backward pass.
        device: "auto" takes CUDA where there is a device, else the CPU.
        threads: of torch on the CPU; None: as torch chooses. Sums over threads differ in their last bits.
        checkpoint_steps: steps between checkpoints. keep: how many stay.
        log_steps: steps between lines of metrics.jsonl.
        wandb: a project to log to, offline unless WANDB_MODE says otherwise; None: none.
    """

    model: ModelSettings = ModelSettings()
    conversion: ConversionSettings = ConversionSettings()
    data: DataSettings = DataSettings()
    stage: StageSettings = StageSettings()
    optimizer: OptimizerSettings = OptimizerSettings()
    precision: Literal["fp32", "bf16"] = "bf16"
    tf32: bool = True
    gradient_checkpointing: bool = True
    device: str = Field(default="auto", pattern=DEVICE)
    threads: int | None = Field(default=None, ge=1)
    checkpoint_steps: int = Field(default=500, ge=1)
    keep: int = Field(default=1, ge=1)
    log_steps: int = Field(default=1, ge=1)
    wandb: str | None = None
