"""What `dtnet`'s verbs can be told, by option, by config file, and from a run record.

No torch here: the command line reads settings before it loads a model. A setting that does not exist, or a value that
does not fit, is a `UserError` that names it.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from dtnet.data.settings import DataSettings
from dtnet.training.schedule import SCST_RATE, XE_RATE, Stage
from tenfold.cli.settings import DEVICE, Settings


class ModelSettings(Settings):
    """The model's dimensions; the paper's by default. What a name means stands in `dtnet.config.DTNetConfig`.

    Attributes:
        d_in: channels of a grid cell; grid: cells along an edge.
        heads: of every attention, each d_model / heads wide.
        cells, routing: which cells a layer has and what weighs them, for ablations.
    """

    d_in: int = Field(default=2048, ge=1)
    grid: int = Field(default=7, ge=3)
    d_model: int = Field(default=512, ge=1)
    heads: int = Field(default=8, ge=1)
    d_ff: int = Field(default=2048, ge=1)
    encoder_layers: int = Field(default=3, ge=1)
    decoder_layers: int = Field(default=3, ge=1)
    max_len: int = Field(default=54, ge=1)
    dropout: float = Field(default=0.1, ge=0, lt=1)
    attention_dropout: float = Field(default=0.1, ge=0, lt=1)
    init: Literal["official", "sinusoid"] = "official"
    cells: tuple[Literal["lmc", "amc", "gmc", "cac", "cpc"], ...] = ("lmc", "amc", "gmc", "cac", "cpc")
    routing: Literal["joint", "uniform", "spatial", "channel"] = "joint"


class StageSettings(Settings):
    """What both stages of the training have.

    Attributes:
        epochs: 0 leaves the stage out.
        steps: at most so many optimiser steps an epoch; None: all of its batches.
        schedule: "paper" (one rate an epoch, section 5) or "cosine" (over the stage's steps).
        rate: the highest rate of "cosine". warmup: its steps of linear rise.
        betas: of Adam.
    """

    epochs: int = Field(ge=0)
    steps: int | None = Field(default=None, ge=1)
    schedule: Literal["paper", "cosine"] = "paper"
    rate: float = Field(gt=0)
    warmup: int = Field(default=0, ge=0)
    betas: tuple[float, float] = (0.9, 0.999)


class XeSettings(StageSettings):
    """Cross entropy on captions.

    Attributes:
        batch: (image, caption) pairs a step, over all ranks.
    """

    epochs: int = Field(default=26, ge=0)
    rate: float = Field(default=XE_RATE, gt=0)
    betas: tuple[float, float] = (0.9, 0.98)
    batch: int = Field(default=50, ge=1)


class ScstSettings(StageSettings):
    """Self-critical sequence training.

    Attributes:
        images: a step, over all ranks. beams: captions of each image. max_len: words of a caption.
        frequencies: a word's document frequency counts captions ("caption", as the authors did) or images ("image").
        log_probs: "beam" takes them from the beam search itself, which is differentiated; "second_pass" searches
            without gradients and scores the captions in one pass with a teacher: the same loss when dropout is off, a
            variant when it is on.
        tokens: how captions become the words of the reward: "ptb" as the metrics do, or "whitespace".
        eos: the end of a caption is a word of the reward, in captions and references. The authors have none: nothing
            then rewards ending where people end, and captions come out cut short.
    """

    epochs: int = Field(default=35, ge=0)
    rate: float = Field(default=SCST_RATE, gt=0)
    images: int = Field(default=20, ge=1)
    beams: int = Field(default=5, ge=2)
    max_len: int = Field(default=20, ge=1)
    frequencies: Literal["caption", "image"] = "caption"
    log_probs: Literal["beam", "second_pass"] = "beam"
    tokens: Literal["ptb", "whitespace"] = "ptb"
    eos: bool = False


class ValidationSettings(Settings):
    """The validation after every epoch, by which the best weights are kept.

    Attributes:
        beams, max_len: of the beam search. batch: images at a time. limit: only the first so many images of val.
        tokens: how captions become words: "ptb" (needs a Java, which `dtnet[train]` brings) or "whitespace".
    """

    beams: int = Field(default=5, ge=1)
    max_len: int = Field(default=20, ge=1)
    batch: int = Field(default=50, ge=1)
    limit: int | None = Field(default=None, ge=1)
    tokens: Literal["ptb", "whitespace"] = "ptb"


class TrainSettings(Settings):
    """Settings of `dtnet train`.

    Attributes:
        stages: which stages run, in this order.
        start: a model's folder whose weights the first stage starts from; None: new ones, drawn by the seed.
        augment: change features at random, one transform a batch, in both stages.
        blind: give every image of train another image's features (a control: what captions alone teach).
        freeze_bn: keep BatchNorm's running statistics as they are and normalise with them.
        sync_bn: BatchNorm over the batches of all ranks; needs CUDA. Without it every rank normalises by its own.
        precision: "bf16" computes under autocast; weights and optimiser stay in float32.
        device: "auto" takes CUDA where there is a device, else the CPU.
        threads: of torch on the CPU; None: as torch chooses. Sums over threads differ in their last bits.
        checkpoint_steps: steps between checkpoints; there is one at the end of every epoch too.
        log_steps: steps between lines of metrics.jsonl.
        wandb: a project to log to, offline unless WANDB_MODE says otherwise; None: none.
    """

    data: DataSettings = DataSettings()
    model: ModelSettings = ModelSettings()
    xe: XeSettings = XeSettings()
    scst: ScstSettings = ScstSettings()
    validation: ValidationSettings = ValidationSettings()
    stages: tuple[Stage, ...] = Field(default=("xe", "scst"), min_length=1)
    start: str | None = None
    augment: bool = True
    blind: bool = False
    freeze_bn: bool = False
    sync_bn: bool = False
    precision: Literal["fp32", "bf16"] = "fp32"
    device: str = Field(default="auto", pattern=DEVICE)
    threads: int | None = Field(default=None, ge=1)
    checkpoint_steps: int = Field(default=2000, ge=1)
    log_steps: int = Field(default=50, ge=1)
    wandb: str | None = None

    @model_validator(mode="after")
    def _stages_in_order(self) -> TrainSettings:
        if self.stages not in (("xe",), ("scst",), ("xe", "scst")):
            raise ValueError("stages should be xe, scst, or xe,scst")
        return self

    @model_validator(mode="after")
    def _captions_fit(self) -> TrainSettings:
        longest = max(self.scst.max_len, self.validation.max_len)
        if longest > self.model.max_len:
            raise ValueError(f"model.max_len should be {longest} or more, as captions are searched up to that length")
        return self

    def stage(self, name: Stage) -> XeSettings | ScstSettings:
        return self.xe if name == "xe" else self.scst
