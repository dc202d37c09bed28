"""The instruction tuning in which the router learns, as a run of transformers' Trainer (section 5).

The loss is the language model's, the mean over the answers of an optimiser step, plus lambda times the sum of the
auxiliary losses (`gamma_mod.conversion`). It has to be finite at every step: where it is not, training ends there, with
the last good checkpoint kept.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainingArguments
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from gamma_mod.conversion import train_only
from gamma_mod.data.instruct import Collator, InstructData, order_of
from gamma_mod.report import Skips, measure_skips
from gamma_mod.training.plan import StagePlan, deepspeed_config, is_frozen
from gamma_mod.training.settings import StageSettings, TrainSettings
from tenfold.runs import Run
from tenfold.runs.stages import Curve, StageTrainer, prepare, stage_arguments, train_to_end


class SkipCurve(Curve):
    """Logs the steps to the run, with what training skips, and shows how far it is."""

    def __init__(self, plan: StagePlan, current: Run, skips: Skips) -> None:
        super().__init__(plan, current)
        self.skips = skips

    def on_log(
        self, args: TrainingArguments, state: Any, control: Any, logs: Mapping[str, float] | None = None, **_: Any
    ) -> None:
        if not logs or "loss" not in logs:
            return
        values = {name: logs[name] for name in ("loss", "learning_rate", "grad_norm") if name in logs}
        values = {name: float(value) for name, value in values.items() if math.isfinite(value)}
        if (skip := self.skips.ratio("training")) is not None:
            values["skip"] = skip
        self.skips.tokens.clear()
        self.skips.skipped.clear()
        if state.is_world_process_zero:
            self.current.log(state.global_step, **values)


def arguments(
    settings: TrainSettings, plan: StagePlan, folder: Path, seed: int, device: torch.device
) -> TrainingArguments:
    """The Trainer's arguments, with checkpoints in `folder`."""
    options = stage_arguments(
        plan,
        folder,
        seed=seed,
        device=device,
        optimizer=settings.optimizer,
        precision=settings.precision,
        tf32=settings.tf32,
        deepspeed=deepspeed_config(plan.settings),
        workers=settings.data.workers,
        checkpoint_steps=settings.checkpoint_steps,
        keep=settings.keep,
        log_steps=settings.log_steps,
    )
    # A batch of text alone leaves the vision tower out: its parameters are then looked for.
    options.ddp_find_unused_parameters = True
    return options


def freeze(model: nn.Module, stage: StageSettings) -> None:
    """Leave gradients to what is trained."""
    train_only(model, stage.trainable)
    if stage.trainable == "all":
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(not is_frozen(name, stage))


def train_stage(
    model: nn.Module,
    options: TrainingArguments,
    plan: StagePlan,
    settings: TrainSettings,
    data: InstructData,
    current: Run,
    checkpoint: Path | None,
) -> dict[str, Tensor] | None:
    """Train to the end.

    Args:
        model: converted, with the weights that it starts from.
        options: of `arguments`.
        plan, settings: what is to be done.
        data: the samples.
        current: where steps are logged.
        checkpoint: a complete one to go on from, or None.

    Returns:
        All weights on the first rank, None on the others.

    Raises:
        UserError: a loss that is not finite, a broken image, a row that cannot be encoded.
    """
    stage = plan.settings
    freeze(model, stage)
    prepare(model, settings.gradient_checkpointing)
    order = order_of(
        data,
        count=plan.epoch_samples,
        batch=stage.batch,
        per_device=stage.per_device,
        seed=options.seed,
        grouped=stage.sampler == "modality",
    )
    with measure_skips() as skips:
        trainer = StageTrainer(
            model,
            options,
            train_dataset=data,
            data_collator=Collator(data.processor.tokenizer.pad_token_id),
            callbacks=[SkipCurve(plan, current, skips)],
            order=order,
            mean="batch",
            name=plan.name,
        )
        weights = train_to_end(trainer, checkpoint)
    if trainer.is_deepspeed_enabled:
        # What the first rank loads from here on is whole, and the other ranks are not asked for a share of it.
        unset_hf_deepspeed_config()
    return weights
