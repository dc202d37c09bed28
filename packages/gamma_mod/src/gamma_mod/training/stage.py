"""The instruction tuning in which the router learns, as a run of transformers' Trainer (section 5).

The loss is the language model's, the mean over the answers of an optimiser step, plus lambda times the sum of the
auxiliary losses (`gamma_mod.conversion`). It has to be finite at every step: where it is not, training ends there, with
the last good checkpoint kept.
"""

from __future__ import annotations

import gc
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import Sampler
from transformers import PreTrainedModel, Trainer, TrainerCallback, TrainingArguments
from transformers.integrations.deepspeed import unset_hf_deepspeed_config
from transformers.trainer_callback import PrinterCallback

from gamma_mod.conversion import train_only
from gamma_mod.data.instruct import Collator, InstructData, Order
from gamma_mod.report import measure_skips
from gamma_mod.training.plan import StagePlan, deepspeed_config, is_frozen
from gamma_mod.training.settings import StageSettings, TrainSettings
from tenfold import UserError
from tenfold.runs import AtomicCheckpointMixin, Run, track

WEIGHTS = "trained.safetensors"


class StageTrainer(AtomicCheckpointMixin, Trainer):
    """transformers' Trainer with this package's order of data, and checkpoints of what is trained."""

    def __init__(self, *arguments: Any, order: Order, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.order = order
        self.auxiliary: list[Tensor] = []
        self.remove_callback(PrinterCallback)

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int]:
        return self.order

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        loss = super().training_step(*args, **kwargs)
        if not bool(torch.isfinite(loss).all()):
            raise UserError(
                "the loss is not finite",
                f"step {self.state.global_step + 1}",
                "a lower stage.learning_rate, or optimizer.clip=1.0; the last checkpoint is kept",
            )
        return loss

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Into a checkpoint: what is trained. DeepSpeed writes its own weights beside its optimiser's state."""
        if self.is_deepspeed_enabled or not self.args.should_save:
            return
        folder = Path(output_dir or str(self.args.output_dir))
        folder.mkdir(parents=True, exist_ok=True)
        save_file({name: value.detach().cpu().contiguous() for name, value in _trained(self.model)}, folder / WEIGHTS)

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
    """Logs the steps to the run, with what training skips, and shows how far it is."""

    def __init__(self, current: Run, skips: Any) -> None:
        self.current, self.skips = current, skips
        self.bar: Iterator[int] = iter(())

    def on_train_begin(self, args: TrainingArguments, state: Any, control: Any, **_: Any) -> None:
        if state.is_world_process_zero:
            self.bar = track(range(state.global_step, state.max_steps), "training")
            next(self.bar, None)

    def on_step_end(self, args: TrainingArguments, state: Any, control: Any, **_: Any) -> None:
        next(self.bar, None)
        if state.global_step % args.save_steps == 0:
            # A line of the curve ends where a checkpoint does: a resumed run writes the same lines.
            control.should_log = True

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
        # A batch of text alone leaves the vision tower out: its parameters are then looked for.
        ddp_find_unused_parameters=True,
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
    freeze(model, plan.settings)
    if settings.gradient_checkpointing:
        # The newer of two names for one thing, where transformers has it.
        enable: Callable[..., None] = getattr(model, "activation_checkpointing_enable", None) or (
            model.gradient_checkpointing_enable
        )
        enable({"use_reentrant": False})
    for module in model.modules():
        if isinstance(module, PreTrainedModel):
            module.config.use_cache = False
    order = Order(
        data.lengths, plan.settings.batch, plan.epoch_samples, options.seed, grouped=plan.settings.sampler == "modality"
    )
    with measure_skips() as skips:
        trainer = StageTrainer(
            model,
            options,
            train_dataset=data,
            data_collator=Collator(data.processor.tokenizer.pad_token_id),
            callbacks=[Curve(current, skips)],
            order=order,
        )
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint is not None else None)
    weights = trainer.weights()
    if trainer.is_deepspeed_enabled:
        trainer.model_wrapped.destroy()
        # What the first rank loads from here on is whole, and the other ranks are not asked for a share of it.
        unset_hf_deepspeed_config()
    return weights


def reset() -> None:
    """Forget a training that is done: its memory, and what accelerate and transformers keep of it for the process."""
    from accelerate.state import AcceleratorState, GradientState

    unset_hf_deepspeed_config()
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _trained(model: Any) -> Iterator[tuple[str, nn.Parameter]]:
    return ((name, value) for name, value in model.named_parameters() if value.requires_grad)
