"""What `dyvte train` can be told."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from tenfold.cli.settings import HostSettings


class TrainSettings(HostSettings):
    """Settings of `dyvte train`; the defaults are the paper's for a 7B host, and where it leaves a choice the code's.

    Attributes:
        samples: LLaVA's instruction json; None: the mini world, for the mini host only.
        image_folder: what `image` is relative to; None: the folder of `samples`.
        rounds: which rounds of a record become samples.
        share: of the samples that is drawn, by the seed.
        limit: at most so many samples; None: all.
        protocol: how an image and a question become a prompt (`tenfold.hosts.answers.Protocol`); "auto": LLaVA-1.5's
            own for LLaVA-1.5, with its system sentence and images padded to squares.
        width, rank: of the gates; rank 0 is the paper's full W1.
        states: what a gate reads.
        start: a folder of gates to go on from; None: Xavier.
        layers_a_step: "one" exit layer is drawn for a step, as published, or "all" are trained in each.
        offline: mine all labels first, then train the gates on them: minutes, and as many steps as one likes.
        epochs: passes over the samples.
        steps: instead of `epochs`; None: as many as they hold.
        batch: samples a step, over all ranks.
        rate, warmup, weight_decay, clip: of AdamW with a cosine schedule; clip 0 is none.
        agreement, ratio, slack, drop_token_zero: of the label rule (`dyvte.LabelRule`).
        checkpoint_steps: steps between checkpoints.
        threads: of torch; None as it is. Sums over threads differ in their last bits.
        wandb: project that receives the curves; None: none.
    """

    samples: str | None = None
    image_folder: str | None = None
    rounds: Literal["single", "first", "split"] = "single"
    share: float = Field(default=1.0, gt=0, le=1)
    limit: int | None = Field(default=None, ge=1)
    protocol: Literal["auto", "processor", "llava"] = "auto"
    width: int = Field(default=2048, ge=1)
    rank: int = Field(default=0, ge=0)
    states: tuple[Literal["mean_visual", "last_visual", "mean_text", "last_text"], ...] = ("mean_text", "last_text")
    start: str | None = None
    layers_a_step: Literal["one", "all"] = "one"
    offline: bool = False
    epochs: int = Field(default=1, ge=1)
    steps: int | None = Field(default=None, ge=1)
    batch: int = Field(default=128, ge=1)
    rate: float = Field(default=4e-5, gt=0)
    warmup: float = Field(default=0.03, ge=0, lt=1)
    weight_decay: float = Field(default=0.0, ge=0)
    clip: float = Field(default=1.0, ge=0)
    agreement: float = Field(default=0.99, ge=0, le=1)
    ratio: float = Field(default=1.03, gt=0)
    slack: float = Field(default=0.0, ge=0)
    drop_token_zero: bool = False
    checkpoint_steps: int = Field(default=10, ge=1)
    threads: int | None = Field(default=None, ge=1)
    wandb: str | None = None

    @model_validator(mode="after")
    def _mini_has_its_own_samples(self) -> TrainSettings:
        if self.samples is None and self.model != "mini":
            raise ValueError("samples: the instruction json of a host other than the mini host")
        return self
