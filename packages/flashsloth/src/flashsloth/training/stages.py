"""The two stages of the training (sheet section 5), each a run of transformers' Trainer.

    pretrain   SAP and projector learn from captions, all else is frozen; queries and EmbQ run with their first weights
    finetune   everything but the vision tower learns from conversations

The loss is the mean over the tokens that are answers: of the whole optimiser step over all ranks ("batch"), so that two
ranks compute what one does, or of each forward pass ("micro_batch"), as the official code has it. A loss that is not
finite ends the training. A batch without an image sends a zero image through all that reads images and adds nothing of
it: all ranks run the same modules.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import Sampler
from transformers import TrainingArguments

from flashsloth.data.instruct import InstructData
from flashsloth.data.order import modality_order
from flashsloth.training.plan import StagePlan, deepspeed_of, is_trained
from flashsloth.training.settings import TrainSettings
from tenfold.data.instruct import Collator
from tenfold.runs import Run, sample_generator
from tenfold.runs.stages import Curve, StageTrainer, prepare, stage_arguments, train_to_end

_ORDER = 2**64 - 1  # the stream of an epoch's order, apart from those of its samples


class Order(Sampler[int]):
    """The samples of each epoch, in an order that depends on (seed, epoch) alone.

    Args:
        data: of the stage.
        plan: how many samples an epoch has, and which of them come together.
        seed: of the run.
    """

    def __init__(self, data: InstructData, plan: StagePlan, seed: int) -> None:
        self.seed, self.epoch = seed, 0
        self.lengths, self.plan = data.lengths, plan

    def set_epoch(self, epoch: int) -> None:
        """Which epoch comes next; accelerate says it."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.plan.epoch_samples

    def __iter__(self) -> Iterator[int]:
        generator = sample_generator(self.seed, self.epoch, _ORDER)
        settings = self.plan.settings
        if settings.sampler == "modality":
            together = (settings.group or settings.batch) // settings.per_device
            order = modality_order(self.lengths, settings.per_device, together, generator)
        else:
            order = torch.randperm(len(self.lengths), generator=generator).tolist()
        return islice(iter(order), len(self))


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
        tf32=False,  # the authors' setting
        deepspeed=deepspeed_of(plan.settings),
        workers=settings.data.workers,
        checkpoint_steps=settings.checkpoint_steps,
        keep=settings.keep,
        log_steps=settings.log_steps,
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
        data: of the stage.
        current: where steps are logged.
        checkpoint: a complete one to go on from, or None.

    Returns:
        All weights on the first rank, None on the others.

    Raises:
        UserError: a loss that is not finite; what is wrong with a sample.
    """
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(is_trained(name, plan.name, settings))
    # One process keeps in step with nobody: its readers need a gradient of zero, not a pass; DeepSpeed needs one.
    model.dummy_image = "image" if options.world_size > 1 or options.deepspeed else "weights"  # type: ignore[assignment]
    prepare(model, settings.gradient_checkpointing)
    trainer = StageTrainer(
        model,
        options,
        train_dataset=data,
        data_collator=Collator(data.processor),  # type: ignore[arg-type]
        callbacks=[Curve(plan, current)],
        order=Order(data, plan, options.seed),
        mean=settings.loss,
        name=plan.name,
    )
    return train_to_end(trainer, checkpoint)
