"""Train the mini diffusion model from nothing: predict the noise in pictures of two things, given a caption.

    inst-diff-edit train --output runs/mini --seed 0
    inst-diff-edit train --output runs/mini --seed 0 --resume      # after a kill

Captions, pictures, noises and times of a step come from ``sample_rng(seed, step, number)``, so a killed and resumed
run ends with the same bits as one that was left alone. ``FOLDER/model`` is then a model in diffusers' layout; its
weights are the running mean of the trained ones.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
import transformers
from diffusers import DDPMScheduler
from PIL import Image
from torch import Tensor, nn

from inst_diff_edit.attention import AttentionRecorder
from inst_diff_edit.data import scenes
from inst_diff_edit.inputs import to_tensor
from inst_diff_edit.miniature import model as mini
from inst_diff_edit.pipeline import InstDiffEditPipeline
from tenfold import UserError
from tenfold.data.miniworld import Draws
from tenfold.runs import (
    Run,
    checkpoint_step,
    fingerprint,
    last_complete_checkpoint,
    read_jsonl,
    run,
    sample_rng,
    track,
    write_checkpoint,
)
from tenfold.runs.context import require_unfinished
from tenfold.runs.finite import require_finite_loss
from tenfold.runs.record import METRICS_NAME
from tenfold.weights import require_finite

PARTS = ("unet", "text_encoder")
TIMES = 1000


@dataclass(frozen=True)
class TrainSettings:
    """What the weights depend on, besides the seed and the model in `mini.build`.

    Attributes:
        steps: optimiser steps.
        batch: pictures a step.
        scaling_factor: of the autoencoder: latents over pixels.
        early, early_share: this share of the pictures gets a time within ``early``, where edits take place; the rest
            gets any of the 1000.
        weights: a picture's error counts by sigma squared, within these bounds: about the error of the picture instead
            of the noise's.
        word_price, end_price: of attention to words, and to end and padding, in the loss: their share of attention,
            mean over the picture; the start token is free. It is the same at every pixel and knows no mask. Without it
            words are attended to all over the picture, as convolutions can undo what is not needed; with it, where
            they help.
        price_rises: between these shares of the steps the prices rise from nothing to all of them.
        peak: highest learning rate, after `warmup` steps; a cosine to zero follows.
        mean_decay: of the running mean of the weights.
        threads: of torch; sums over threads differ in their last bits.
    """

    steps: int = 6000
    batch: int = 8
    scaling_factor: float = 0.8
    early: tuple[int, int] = (80, 540)
    early_share: float = 0.85
    weights: tuple[float, float] = (0.05, 1.5)
    word_price: float = 1e-3
    end_price: float = 2e-4
    price_rises: tuple[float, float] = (0.15, 0.4)
    peak: float = 2e-3
    warmup: int = 100
    mean_decay: float = 0.995
    weight_decay: float = 0.01
    clip: float = 1.0
    threads: int = 1


@dataclass(frozen=True)
class Batch:
    """One step's data.

    Attributes:
        latents, noise: ``[pictures, 3, 32, 32]`` float32.
        times: ``[pictures]`` int64 in [0, TIMES).
        ids: ``[pictures, 16]`` int64, captions.
    """

    latents: Tensor
    noise: Tensor
    times: Tensor
    ids: Tensor


def batch_at(tokenizer: Any, settings: TrainSettings, seed: int, step: int) -> Batch:
    """The batch of a step, counted from 0: a pure function of its arguments."""
    images, captions, noises, times = [], [], [], []
    for number in range(settings.batch):
        rng = sample_rng(seed, step, number)
        noises.append(rng.standard_normal((3, scenes.EDGE, scenes.EDGE), dtype=np.float32))
        draws = Draws(rng.bit_generator)
        first, behind = settings.early if draws.below(100) < 100 * settings.early_share else (0, TIMES)
        times.append(draws.between(first, behind - 1))
        scene = scenes.draw(draws)
        images.append(Image.fromarray(scenes.render(scene)))
        captions.append(scenes.draw_caption(scene, draws))
    length = tokenizer.model_max_length
    ids = tokenizer(captions, padding="max_length", max_length=length, return_tensors="pt").input_ids
    latents = to_tensor(images, scenes.EDGE, scenes.EDGE) * settings.scaling_factor
    return Batch(latents, torch.from_numpy(np.stack(noises)), torch.tensor(times), ids)


def learning_rate(step: int, settings: TrainSettings) -> float:
    """The rate of a step, counted from 0: linear warm-up, then a cosine to zero."""
    if step < settings.warmup:
        return settings.peak * (step + 1) / settings.warmup
    progress = (step - settings.warmup) / max(settings.steps - settings.warmup, 1)
    return settings.peak * 0.5 * (1 + math.cos(math.pi * progress))


def price_share(step: int, settings: TrainSettings) -> float:
    """How much of the prices of attention is asked in a step, counted from 0."""
    first, last = settings.price_rises
    return min(max((step / settings.steps - first) / max(last - first, 1e-9), 0.0), 1.0)


class Training:
    """Model, optimiser and running mean; goes from checkpoint to checkpoint with the same bits."""

    def __init__(self, settings: TrainSettings, seed: int) -> None:
        self.settings, self.seed = settings, seed
        self.pipe = mini.build(seed, settings.scaling_factor)
        self.modules = nn.ModuleDict({part: getattr(self.pipe, part).train() for part in PARTS})
        self.mean = {name: value.detach().clone() for name, value in self.modules.state_dict().items()}
        parameters = [p for p in self.modules.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(parameters, lr=settings.peak, weight_decay=settings.weight_decay)
        self.noising = DDPMScheduler.from_config(self.pipe.scheduler.config)
        self.recorder = AttentionRecorder(self.pipe.unet, mini.STRIDE)
        kept = self.noising.alphas_cumprod
        self.variance = (1 - kept) / kept  # sigma squared of every time: of the noise beside the whole picture

    def step(self, number: int) -> dict[str, float]:
        """One optimiser step: weighted error of the predicted noise, and the prices of attention."""
        batch = batch_at(self.pipe.tokenizer, self.settings, self.seed, number)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(number, self.settings)
        noised = self.noising.add_noise(batch.latents, batch.noise, batch.times)
        embeddings = self.modules["text_encoder"](batch.ids)[0]
        self.recorder.expect(scenes.EDGE, scenes.EDGE)
        with self.recorder:
            predicted = self.modules["unet"](noised, batch.times, encoder_hidden_states=embeddings).sample
            self.recorder.finish_step()
        errors = (predicted - batch.noise).square().mean((1, 2, 3))  # [pictures]
        loss = (self.variance[batch.times].clamp(*self.settings.weights) * errors).mean()
        require_finite_loss(loss, "mini model", number + 1)
        maps = self.recorder.mean()  # [pictures, 16, 16, positions]
        is_end = batch.ids == self.pipe.tokenizer.eos_token_id
        is_word = ~is_end & (batch.ids != self.pipe.tokenizer.bos_token_id)
        to_words, to_end = ((maps * kind[:, None, None]).sum(-1).mean() for kind in (is_word, is_end))
        price = self.settings.word_price * to_words + self.settings.end_price * to_end
        self.optimizer.zero_grad()
        (loss + price_share(number, self.settings) * price).backward()
        nn.utils.clip_grad_norm_(self.modules.parameters(), self.settings.clip)
        self.optimizer.step()
        self._update_mean(number)
        rate = learning_rate(number, self.settings)
        spent = {"attention_to_words": to_words.item(), "attention_to_end": to_end.item()}
        return {"loss": loss.item(), **spent, "learning_rate": rate}

    def _update_mean(self, number: int) -> None:
        # Young means follow faster, so that little of the first weights is left in a short run.
        decay = min(self.settings.mean_decay, (1 + number) / (10 + number))
        for name, value in self.modules.state_dict().items():
            if value.is_floating_point():
                self.mean[name].lerp_(value, 1 - decay)
            else:
                self.mean[name].copy_(value)

    def save(self, folder: Path) -> None:
        """Everything that the next step depends on."""
        state = {
            "modules": self.modules.state_dict(),
            "mean": self.mean,
            "optimizer": self.optimizer.state_dict(),
            "identity": self.identity(),
        }
        torch.save(state, folder / "state.pt")

    def load(self, checkpoint: Path) -> int:
        """Go on from a checkpoint; returns the number of finished steps.

        Raises:
            UserError: it was made with other settings or another seed.
        """
        state = torch.load(checkpoint / "state.pt", weights_only=True)
        changed = [name for name, value in self.identity().items() if state["identity"].get(name) != value]
        if changed:
            raise UserError(
                f"checkpoint was made with another {' and '.join(changed)}", checkpoint, "the same settings"
            )
        self.modules.load_state_dict(state["modules"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.mean = state["mean"]
        return checkpoint_step(checkpoint)

    def identity(self) -> dict[str, Any]:
        """What a checkpoint must agree in, to be gone on from."""
        return {**asdict(self.settings), "seed": self.seed, "tokenizer": fingerprint(mini.TOKENIZER)}

    def finished(self) -> InstDiffEditPipeline:
        """The pipeline with the running mean for weights."""
        self.modules.load_state_dict(self.mean)
        self.modules.eval()
        return self.pipe


def train(settings: TrainSettings, seed: int, output: Path, *, every: int, resume: bool, project: str | None) -> Run:
    """Train, and write ``output/model``.

    Raises:
        UserError: checkpoints without ``resume``, or none with it; a checkpoint of other settings; a finished run.
    """
    require_unfinished(output)
    torch.set_num_threads(settings.threads)
    training = Training(settings, seed)
    checkpoint = last_complete_checkpoint(output) if output.is_dir() else None
    if checkpoint is not None and not resume:
        raise UserError("holds checkpoints of an unfinished run", output, "--resume, or a new folder")
    if checkpoint is None and resume:
        raise UserError("nothing to resume from", output, "a folder with a complete checkpoint")
    read = {"tokenizer": mini.TOKENIZER}
    with run(
        "inst_diff_edit", "train", config=asdict(settings), seed=seed, output=output, data=read, wandb_project=project
    ) as current:
        done = training.load(checkpoint) if checkpoint is not None else 0
        current.metrics["resumed_from"] = done
        for number in track(range(done, settings.steps), "training", settings.steps - done):
            current.log(number + 1, **training.step(number))
            if (number + 1) % every == 0 and number + 1 < settings.steps:
                write_checkpoint(output, number + 1, training.save)
        # From the log, where also the steps before a kill stand.
        losses = [row["loss"] for row in read_jsonl(output / METRICS_NAME)[-100:]]
        current.metrics["loss_of_the_last_100_steps"] = sum(losses) / len(losses)
        write_model(current.file("model/training.json").parent, training)
    return current


def write_model(folder: Path, training: Training) -> None:
    """The finished model in diffusers' layout, and `training.json`: how it was made."""
    pipe = training.finished()
    for part in PARTS:
        require_finite(getattr(pipe, part).state_dict(), "the trained weights")
    pipe.save_pretrained(folder)
    made = {
        "command": f"inst-diff-edit train --output FOLDER --seed {training.seed}",
        "seed": training.seed,
        "settings": asdict(training.settings),
        "tokenizer": fingerprint(mini.TOKENIZER),
        "parameters": {part: sum(p.numel() for p in training.modules[part].parameters()) for part in PARTS},
        "libraries": {
            "torch": torch.__version__,
            "diffusers": diffusers.__version__,
            "transformers": transformers.__version__,
        },
    }
    (folder / "training.json").write_text(json.dumps(made, indent=2) + "\n", encoding="utf-8")
