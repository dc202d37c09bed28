"""The two stages of the training (sheet section 5), each a run of transformers' Trainer.

    pretrain   low resolution: projector and final align learn from captions, all else is frozen
    finetune   high resolution: everything learns from conversations, the adapters from their identity on

The loss is the mean over the tokens that are answers. "batch" takes it over the tokens of the whole optimiser step,
over all ranks: then two ranks compute what one does, and so does accumulation. "micro_batch" is the official code's:
each forward pass of a device has a mean of its own, and the mean of these is taken, so that an answer weighs more
where there are few of them beside it.

A batch without an image sends a zero image through the tower and adds nothing of it: all ranks run the same modules,
and the tower has a gradient of zero, as in the official code, which does so for every row without an image. One process
alone gets that gradient without the pass.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor, nn
from transformers import TrainingArguments

from llava_hr.training.plan import StagePlan, deepspeed_config, is_trained
from llava_hr.training.settings import StageSettings, TrainSettings
from tenfold.data.instruct import Collator, InstructData
from tenfold.data.sampler import EpochOrder, ModalityLengthSampler
from tenfold.runs import Run
from tenfold.runs.stages import WEIGHTS as WEIGHTS
from tenfold.runs.stages import Curve, StageTrainer, prepare, stage_arguments, train_to_end
from tenfold.runs.stages import reset as reset

if TYPE_CHECKING:
    from llava_hr.processing import LlavaHrProcessor


def order_of(data: InstructData, plan: StagePlan, seed: int) -> EpochOrder:
    """The samples of each epoch of a stage, in an order that depends on (seed, epoch) alone.

    Args:
        data: of the stage.
        plan: how many samples an epoch has, and which of them come together.
        seed: of the run.
    """
    settings, grouped = plan.settings, None
    if settings.sampler == "modality":
        together = (settings.group or settings.batch) // settings.per_device
        grouped = ModalityLengthSampler(data.modality_lengths, settings.per_device, together, seed=seed)
    return EpochOrder(len(data), plan.epoch_samples, seed, grouped, plan.name)


class ModelFactory(Protocol):
    """Makes the model that a stage starts from, on the CPU, with all of its weights."""

    def __call__(self, stage: str, seed: int) -> nn.Module: ...


def arguments(
    settings: TrainSettings, plan: StagePlan, folder: Path, seed: int, device: torch.device
) -> TrainingArguments:
    """The Trainer's arguments of a stage, with its checkpoints in `folder`."""
    return stage_arguments(
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


def freeze(model: nn.Module, plan: StagePlan) -> None:
    """Leave gradients to what the stage trains."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(is_trained(name, plan.name))


def data_of(stage: StageSettings, folder: Path, processor: LlavaHrProcessor) -> InstructData:
    """The samples of a stage.

    Raises:
        UserError: what is wrong with the json, a record or an image's name.
    """
    return InstructData(
        folder / stage.data,
        folder / stage.images,
        processor,
        conversation=stage.conversation,
        max_length=stage.max_length,
    )


def train_stage(
    model: nn.Module,
    options: TrainingArguments,
    plan: StagePlan,
    settings: TrainSettings,
    data: InstructData,
    current: Run,
    checkpoint: Path | None,
) -> dict[str, Tensor] | None:
    """Train a stage to its end.

    Args:
        model: with the weights that it starts from.
        options: of `arguments`.
        plan, settings: what is to be done.
        data: of `data_of`.
        current: where steps are logged.
        checkpoint: a complete one to go on from, or None.

    Returns:
        All weights on the first rank, None on the others.
    """
    freeze(model, plan)
    # One process keeps in step with nobody: its towers need a gradient of zero, not a pass; DeepSpeed needs one.
    model.dummy_image = "image" if options.world_size > 1 or options.deepspeed else "weights"
    prepare(model, settings.gradient_checkpointing)
    trainer = StageTrainer(
        model,
        options,
        train_dataset=data,
        data_collator=Collator(data.processor),
        callbacks=[Curve(plan, current)],
        order=order_of(data, plan, options.seed),
        mean=settings.loss,
        name=plan.name,
    )
    return train_to_end(trainer, checkpoint)
