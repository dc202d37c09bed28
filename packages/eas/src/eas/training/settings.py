"""What `eas train`, `eas search` and `eas tune` can be told, by option, by config file, and from a run record.

No torch here: the command line reads settings before it loads a model.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from tenfold.cli.settings import DEVICE, MINI, Settings

StageName = Literal["search", "tune"]
HostName = Literal["llava", "meter", "lavin"]
STAGES: tuple[StageName, ...] = ("search", "tune")


class DataSettings(Settings):
    """What is learnt from.

    Attributes:
        folder: what the other names are relative to; None: the miniature's task, drawn into the run's folder.
        train, images: LLaVA: its json of conversations, and the folder of its pictures.
        pad: LLaVA: pad pictures to a square (LLaVA-1.5) instead of the processor's own resize and crop.
        splits: METER, LaVIN: splits of the official files that are trained on.
        held_out: METER, LaVIN: the split that subnets are scored on in a search, none of those. LLaVA scores on the
            batch of the step.
        max_length: tokens of a sample, the visual ones included.
        false_texts: METER's retrieval: wrong captions beside each right one.
        samples: for `--dry-run` where the data are not there; the miniature's number of questions.
    """

    folder: str | None = None
    train: str = "train.json"
    images: str = "images"
    pad: bool = True
    splits: tuple[str, ...] = ()
    held_out: str | None = None
    max_length: int = Field(default=2048, ge=8)
    false_texts: int = Field(default=15, ge=1)
    samples: int = Field(default=1600, ge=1)


class AdapterSettings(Settings):
    """Sizes of what is trained, and the skip list.

    Attributes:
        skip: layers (METER: sites), or the name of a list of the authors (`eas.plan.released`); None: what the search
            finds.
        removed: K, for the search.
        adapter, pia: ranks. groups, scale, temperature, dropout: as in `eas.plan.Plan`. METER's folder has its own.
        use_global: PIA adds its global vector.
        means: what router and global vector average over in a training: the "prompt", or "all" positions with padding
            and answers, as LaVIN's authors do.
        projector: the host's projector is trained too (LaVIN's always is).
        as_released: METER: sites by the authors' map, in which 18-23 skip an image self-attention again.
    """

    skip: tuple[int, ...] | str | None = None
    removed: int = Field(default=12, ge=1)
    adapter: int = Field(default=128, ge=0)
    pia: int = Field(default=128, ge=2)
    groups: int = Field(default=2, ge=1)
    scale: float = 1.0
    temperature: float = Field(default=10.0, gt=0)
    dropout: float = Field(default=0.1, ge=0, lt=1)
    use_global: bool = True
    means: Literal["prompt", "all"] = "prompt"
    projector: bool = True
    as_released: bool = False


class StageSettings(Settings):
    """One stage.

    Attributes:
        epochs: over the data. steps: at most so many in all; None: as the epochs say.
        batch: samples of a step, over all ranks. per_device: of those, how many a device takes at a time.
        learning_rate: the highest. schedule: behind the rise, "cosine" or "linear" to zero.
        cross, head: METER: factors of that rate, for what is named cross_modal (adapters among it) and the task's head.
        warmup: steps of the rise of the learning rate; a share of all steps below 1.
        betas: of AdamW. weight_decay: of matrices; vectors do not decay.
        clip: highest norm of the gradient; None: as it comes.
    """

    epochs: int = Field(default=20, ge=1)
    steps: int | None = Field(default=None, ge=1)
    batch: int = Field(default=64, ge=1)
    per_device: int = Field(default=16, ge=1)
    learning_rate: float = Field(default=4e-4, gt=0)
    schedule: Literal["cosine", "linear"] = "cosine"
    cross: float = Field(default=1.0, gt=0)
    head: float = Field(default=1.0, gt=0)
    warmup: float = Field(default=0.03, ge=0)
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = Field(default=0.0, ge=0)
    clip: float | None = Field(default=1.0, gt=0)

    @model_validator(mode="after")
    def _batch_divides(self) -> StageSettings:
        if self.batch % self.per_device:
            raise ValueError(f"a batch of {self.batch} is no multiple of per_device, {self.per_device}")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas {list(self.betas)} are not from 0 to 1")
        return self


class SearchSettings(StageSettings):
    """The search.

    Attributes:
        rule: of `eas.search.RULES`.
        idle: steps before the first update of the preferences, and of the ramp. The authors' code takes the rise of the
            learning rate for it and counts micro-batches; here both are said, and optimiser steps counted.
        ramp: skip fewer attentions during the first half of the idle steps.
        scored: what subnets are scored with: means over the "prompt", or over "all" positions with padding and answers,
            as released.
        scored_samples: of the held-out split, that an update scores on; None: as many as a batch.
    """

    schedule: Literal["cosine", "linear"] = "linear"
    rule: Literal["llava", "lavin", "meter"] = "llava"
    idle: int = Field(default=0, ge=0)
    ramp: bool = True
    scored: Literal["prompt", "all"] = "prompt"
    scored_samples: int | None = Field(default=None, ge=1)


class TrainSettings(Settings):
    """Settings of `eas train`.

    Attributes:
        host: "llava", "meter" or "lavin", where the model's folder does not tell; None: LLaVA's.
        model: the frozen host: "mini", a folder, or a hub id; METER's and LaVIN's: a folder that `eas convert` wrote.
        size: of LLaVA's or LaVIN's decoder, task: METER's, for `--dry-run` where the host is not there.
        stages: "search", "tune", or both in this order.
        from_search: a search result whose list is tuned, for the stage "tune" alone.
        prompt_format: of ScienceQA's records; kept with the weights, and refused where they meet another.
        precision: "bf16" computes with a bfloat16 host; adapters and their optimiser stay float32.
        gradient_checkpointing: recompute activations in the backward pass.
        threads: of torch on the CPU; None: as torch chooses.
        checkpoint_steps: steps between checkpoints. keep: how many stay. log_steps: between lines of metrics.jsonl.
        wandb: a project to log to, offline unless WANDB_MODE says otherwise; None: none.
    """

    host: HostName | None = None
    model: str = MINI
    size: Literal["7b", "13b"] = "7b"
    task: Literal["vqa", "nlvr2", "irtr"] = "vqa"
    data: DataSettings = DataSettings()
    adapters: AdapterSettings = AdapterSettings()
    search: SearchSettings = SearchSettings()
    tune: StageSettings = StageSettings()
    stages: tuple[StageName, ...] = STAGES
    from_search: str | None = None
    prompt_format: str | None = None
    precision: Literal["fp32", "bf16"] = "bf16"
    gradient_checkpointing: bool = True
    device: str = Field(default="auto", pattern=DEVICE)
    threads: int | None = Field(default=None, ge=1)
    checkpoint_steps: int = Field(default=200, ge=1)
    keep: int = Field(default=1, ge=1)
    log_steps: int = Field(default=1, ge=1)
    wandb: str | None = None

    @model_validator(mode="after")
    def _stages_have_a_list(self) -> TrainSettings:
        if self.stages not in (("search",), ("tune",), STAGES):
            raise ValueError("stages should be search, tune, or search,tune")
        given = (self.adapters.skip is not None) + (self.from_search is not None)
        if "search" in self.stages and given:
            raise ValueError("a skip list is there already (adapters.skip or --from): stages should be tune")
        if self.stages == ("tune",) and given != 1:
            raise ValueError("tune needs one skip list: --from search.json, or adapters.skip")
        return self

    def stage(self, name: StageName) -> StageSettings:
        """The settings of a stage."""
        return self.search if name == "search" else self.tune
