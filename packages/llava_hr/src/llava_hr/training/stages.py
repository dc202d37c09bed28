"""The two stages of the training (sheet section 5), each a run of transformers' Trainer.

    pretrain   low resolution: projector and final align learn from captions, all else is frozen
    finetune   high resolution: everything learns from conversations, the adapters from their identity on

The loss is the mean over the tokens that are answers. "batch" takes it over the tokens of the whole optimiser step,
over all ranks: then two ranks compute what one does, and so does accumulation. "micro_batch" is the official code's:
each forward pass of a device has a mean of its own, and the mean of these is taken, so that an answer weighs more
where there are few of them beside it.

A batch without an image sends a zero image through the tower and adds nothing of it: all ranks run the same modules,
and the tower has a gradient of zero, as in the official code, which does so for every row without an image.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import Sampler
from transformers import PreTrainedModel, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from llava_hr.data.instruct import Collator, InstructData, ModalityLengthSampler
from llava_hr.training.plan import StagePlan, deepspeed_config, is_trained
from llava_hr.training.settings import StageSettings, TrainSettings
from tenfold.runs import AtomicCheckpointMixin, Run, sample_generator, track

if TYPE_CHECKING:
    from llava_hr.processing import LlavaHrProcessor

WEIGHTS = "trained.safetensors"
_ORDER = 2**64 - 1  # the stream of an epoch's order, apart from those of its samples


class Order(Sampler[int]):
    """The samples of each epoch, in an order that depends on (seed, epoch) alone.

    Args:
        data: of the stage.
        plan: how many samples an epoch has, and which of them come together.
        seed: of the run.
    """

    def __init__(self, data: InstructData, plan: StagePlan, seed: int) -> None:
        self.name, self.seed, self.epoch = plan.name, seed, 0
        self.samples, self.count = len(data), plan.epoch_samples
        self.grouped: ModalityLengthSampler | None = None
        settings = plan.settings
        if settings.sampler == "modality":
            together = (settings.group or settings.batch) // settings.per_device
            self.grouped = ModalityLengthSampler(data.modality_lengths, settings.per_device, together, seed=seed)

    def set_epoch(self, epoch: int) -> None:
        """Which epoch comes next; accelerate says it."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[int]:
        if self.grouped is not None:
            self.grouped.set_epoch(self.epoch)
            return islice(iter(self.grouped), self.count)
        generator = sample_generator(self.seed, self.epoch, _ORDER)
        return iter(torch.randperm(self.samples, generator=generator)[: self.count].tolist())


class StageTrainer(AtomicCheckpointMixin, Trainer):
    """transformers' Trainer with this package's order of data, and checkpoints of what is trained.

    Args:
        order: of the samples.
        name: of the stage.
        mean: "batch" or "micro_batch", what the loss is the mean of.
    """

    def __init__(self, *arguments: Any, order: Order, mean: str, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.order = order
        if mean == "micro_batch":
            # Then the Trainer counts no tokens, and the model takes the mean of each forward pass.
            self.model_accepts_loss_kwargs = False
        self.remove_callback(PrinterCallback)

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int]:
        return self.order

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Into a checkpoint: what is trained. DeepSpeed writes its own weights beside its optimiser's state."""
        if self.is_deepspeed_enabled or not self.args.should_save:
            return
        folder = Path(output_dir or str(self.args.output_dir))
        folder.mkdir(parents=True, exist_ok=True)
        trained = {name: value.detach().cpu().contiguous() for name, value in _trained(self.model)}
        save_file(trained, folder / WEIGHTS)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        stored = load_file(Path(resume_from_checkpoint) / WEIGHTS)
        with torch.no_grad():
            for name, value in _trained(self.model):
                value.copy_(stored[name])

    def weights(self) -> dict[str, Tensor] | None:
        """All weights of the model on the first rank, gathered from the others; None on these, which must call it."""
        if self.is_deepspeed_enabled:
            state = self.accelerator.get_state_dict(self.model_wrapped)
        else:
            state = self.model.state_dict()
        return dict(state) if self.args.should_save else None


class Curve(TrainerCallback):
    """Logs a stage's steps to the run, and shows how far it is.

    Args:
        plan: of the stage. current: where its steps are logged.
    """

    def __init__(self, plan: StagePlan, current: Run) -> None:
        self.plan, self.current = plan, current
        self.bar: Iterator[int] = iter(())

    def on_train_begin(self, args: TrainingArguments, state: Any, control: Any, **_: Any) -> None:
        if state.is_world_process_zero:
            self.bar = track(range(state.global_step, state.max_steps), self.plan.name)
            next(self.bar, None)

    def on_step_end(self, args: TrainingArguments, state: Any, control: Any, **_: Any) -> None:
        next(self.bar, None)
        if state.global_step % args.save_steps == 0:
            # A line of the curve ends where a checkpoint does: a resumed run writes the same lines.
            control.should_log = True

    def on_log(
        self, args: TrainingArguments, state: Any, control: Any, logs: Mapping[str, float] | None = None, **_: Any
    ) -> None:
        if logs and "loss" in logs and state.is_world_process_zero:
            values = {name: logs[name] for name in ("loss", "learning_rate", "grad_norm") if name in logs}
            self.current.log(self.plan.first + state.global_step, stage=self.plan.name, **values)


class ModelFactory(Protocol):
    """Makes the model that a stage starts from, on the CPU, with all of its weights."""

    def __call__(self, stage: str, seed: int) -> nn.Module: ...


def arguments(
    settings: TrainSettings, plan: StagePlan, folder: Path, seed: int, device: torch.device
) -> TrainingArguments:
    """The Trainer's arguments of a stage, with its checkpoints in `folder`."""
    stage, optimizer, cuda = plan.settings, settings.optimizer, device.type == "cuda"
    distributed: dict[str, Any] = {"ddp_backend": "nccl" if cuda else "gloo"} if plan.gpus > 1 else {}
    return TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=stage.per_device,
        gradient_accumulation_steps=plan.accumulation,
        num_train_epochs=stage.epochs,
        learning_rate=stage.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=plan.warmup,
        optim="adamw_torch",
        adam_beta1=optimizer.betas[0],
        adam_beta2=optimizer.betas[1],
        adam_epsilon=optimizer.eps,
        weight_decay=optimizer.weight_decay,
        max_grad_norm=optimizer.clip or 0.0,
        bf16=settings.precision == "bf16",
        tf32=settings.tf32 if cuda else None,
        use_cpu=not cuda,
        deepspeed=deepspeed_config(stage),
        # Every trained parameter takes part in every step, so nobody has to look for those that do not.
        ddp_find_unused_parameters=False,
        **distributed,
        seed=seed,
        data_seed=seed,
        dataloader_num_workers=settings.data.workers,
        dataloader_pin_memory=cuda,
        remove_unused_columns=False,
        save_strategy="steps",
        save_steps=settings.checkpoint_steps,
        save_total_limit=settings.keep,
        logging_strategy="steps",
        logging_steps=settings.log_steps,
        report_to=[],
        disable_tqdm=True,
        log_level="error",
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
    model.dummy_image = True
    if settings.gradient_checkpointing:
        # The newer of two names for one thing, where transformers has it.
        enable: Callable[..., None] = getattr(model, "activation_checkpointing_enable", None) or (
            model.gradient_checkpointing_enable
        )
        enable({"use_reentrant": False})
    for module in model.modules():
        if isinstance(module, PreTrainedModel):
            module.config.use_cache = False
    order = Order(data, plan, options.seed)
    trainer = StageTrainer(
        model,
        options,
        train_dataset=data,
        data_collator=Collator(data.processor),
        callbacks=[Curve(plan, current)],
        order=order,
        mean=settings.loss,
    )
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint is not None else None)
    weights = trainer.weights()
    if trainer.is_deepspeed_enabled:
        trainer.model_wrapped.destroy()
    return weights


def reset() -> None:
    """Forget a stage that is done: its memory, and what accelerate and transformers keep of it for the process."""
    from accelerate.state import AcceleratorState, GradientState
    from transformers.integrations.deepspeed import unset_hf_deepspeed_config

    unset_hf_deepspeed_config()
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _trained(model: Any) -> Iterator[tuple[str, nn.Parameter]]:
    return ((name, value) for name, value in model.named_parameters() if value.requires_grad)
