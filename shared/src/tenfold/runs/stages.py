"""A stage of a training as a run of transformers' Trainer: what is trained is kept, steps are logged, nothing is drawn
from the process's own random state.

Functions and one Trainer; which parameters a stage trains, and on what, is the package's. Imports torch and
transformers: take it by name.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import Sampler
from transformers import PreTrainedModel, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from tenfold.runs.context import Run
from tenfold.runs.finite import require_finite_loss
from tenfold.runs.plan import StagePlan
from tenfold.runs.progress import track
from tenfold.runs.trainer import AtomicCheckpointMixin

WEIGHTS = "trained.safetensors"


class AdamWNumbers(Protocol):
    """AdamW's settings. clip: the highest norm of the gradient; None: as it comes."""

    @property
    def betas(self) -> tuple[float, float]: ...
    @property
    def eps(self) -> float: ...
    @property
    def weight_decay(self) -> float: ...
    @property
    def clip(self) -> float | None: ...


class StageTrainer(AtomicCheckpointMixin, Trainer):
    """transformers' Trainer with an order of data of its own, and checkpoints of what is trained.

    Args:
        order: of the samples.
        mean: what the loss is the mean of. "batch": the tokens of the whole optimiser step, over all ranks, so that two
            ranks compute what one does, and so does accumulation. "micro_batch": those of one device's forward pass, of
            which the mean is taken, as LLaVA's code does.
        name: of the stage, for messages.
    """

    def __init__(self, *arguments: Any, order: Sampler[int], mean: str, name: str = "training", **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.order, self.name = order, name
        if mean == "micro_batch":
            # Then the Trainer counts no tokens, and the model takes the mean of each forward pass.
            self.model_accepts_loss_kwargs = False
        self.remove_callback(PrinterCallback)

    def training_step(self, *arguments: Any, **options: Any) -> Tensor:
        """One forward and backward pass; a loss that is not finite ends the training before the weights take it up.

        Raises:
            UserError: names stage and step.
        """
        loss = super().training_step(*arguments, **options)
        require_finite_loss(loss, self.name, self.state.global_step + 1)
        return loss

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
            model: Any = self.model
            state = model.state_dict()
        return dict(state) if self.args.should_save else None


class Curve(TrainerCallback):
    """Logs a stage's steps to the run, and shows how far it is.

    Args:
        plan: of the stage. current: where its steps are logged.
    """

    def __init__(self, plan: StagePlan[Any, Any], current: Run) -> None:
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


def stage_arguments(
    plan: StagePlan[Any, Any],
    folder: Path,
    *,
    seed: int,
    device: torch.device,
    optimizer: AdamWNumbers,
    precision: str,
    tf32: bool,
    deepspeed: dict[str, Any] | None,
    workers: int,
    checkpoint_steps: int,
    keep: int,
    log_steps: int,
) -> TrainingArguments:
    """The Trainer's arguments of a stage: AdamW, a cosine to zero after a linear rise, checkpoints in `folder`.

    Args:
        plan: of the stage.
        folder: of its checkpoints.
        seed: of the run.
        device: where it computes.
        optimizer: its numbers.
        precision: "bf16", or anything else for float32.
        tf32: whether CUDA may multiply float32 in it.
        deepspeed: the content of its json; None: DistributedDataParallel.
        workers: processes that read batches.
        checkpoint_steps, keep: how often a checkpoint is written, and how many stay.
        log_steps: how often a line is logged.
    """
    stage, cuda = plan.settings, device.type == "cuda"
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
        bf16=precision == "bf16",
        tf32=tf32 if cuda else None,
        use_cpu=not cuda,
        deepspeed=deepspeed,
        # Every trained parameter takes part in every step, so nobody has to look for those that do not.
        ddp_find_unused_parameters=False,
        **distributed,
        seed=seed,
        data_seed=seed,
        dataloader_num_workers=workers,
        dataloader_pin_memory=cuda,
        remove_unused_columns=False,
        save_strategy="steps",
        save_steps=checkpoint_steps,
        save_total_limit=keep,
        logging_strategy="steps",
        logging_steps=log_steps,
        # A loss that is not finite ends the training; a zero in its place would hide it.
        logging_nan_inf_filter=False,
        report_to=[],
        disable_tqdm=True,
        log_level="error",
    )


def prepare(model: nn.Module, gradient_checkpointing: bool) -> None:
    """Make a model ready for a stage: gradient checkpointing where it is wanted, and no cache of keys and values."""
    if gradient_checkpointing:
        # The newer of two names for one thing, where transformers has it.
        enable: Any = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
        enable({"use_reentrant": False})
    for module in model.modules():
        if isinstance(module, PreTrainedModel):
            module.config.use_cache = False


def train_to_end(trainer: StageTrainer, checkpoint: Path | None) -> dict[str, Tensor] | None:
    """Train a stage to its end.

    Args:
        trainer: made for the stage.
        checkpoint: a complete one to go on from, or None.

    Returns:
        All weights on the first rank, None on the others.
    """
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint is not None else None)
    weights = trainer.weights()
    if trainer.is_deepspeed_enabled:
        engine: Any = trainer.model_wrapped
        engine.destroy()
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
