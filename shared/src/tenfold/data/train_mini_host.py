"""Train the mini host from nothing.

    python -m tenfold.data.train_mini_host --output runs/mini_host --seed 0
    python -m tenfold.data.train_mini_host --output runs/mini_host --seed 0 --resume      # after a kill

FOLDER/model is then the folder that `tenfold.data.mini_host.load` reads. One sequence holds one image and several
questions with their answers: one picture feeds many gradients, which is what lets a vision tower learn from nothing
within minutes. A killed and resumed run ends with the same bits as one that was left alone.

What is taught, and why with hints, is in `tenfold.data.mini_lessons`.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import transformers
import typer
from torch import Tensor
from torch.nn import functional
from transformers import LlavaForConditionalGeneration

from tenfold.cli import main as run_app
from tenfold.data import mini_host, miniworld
from tenfold.data.mini_gate import VARIANTS, evaluate, gate_curve
from tenfold.data.mini_lessons import (
    HINTED,
    KINDS,
    LAST,
    NAMED,
    RAMP,
    STEPS,
    UNSAID,
    WARMUP,
    Batch,
    Batches,
    Hints,
    Settings,
    schedule,
)
from tenfold.errors import UserError
from tenfold.runs import Run, checkpoint_step, last_complete_checkpoint, run, track, write_checkpoint

LESSONS = {
    "kinds": KINDS,
    "ramp": RAMP,
    "warmup": WARMUP,
    "horizon": STEPS,
    "hints_after_layers": {**{kind: depth for kind, (_, depth) in NAMED.items()}, "last": LAST},
}
GATE_KINDS = (*miniworld.ONE_HOP, "place", "two_hop")


class Optimiser:
    """Muon for the layers' matrices, AdamW for embeddings, vectors, the picture's patches and the projector.

    Side by side, before there were hints at references and pictures: 43 % of the answers right after 250 steps (scenes
    of two to four objects), with AdamW alone 19 %.

    Args:
        model: whose parameters are moved.
        settings: rates and decay.
    """

    def __init__(self, model: LlavaForConditionalGeneration, settings: Settings) -> None:
        named = list(model.named_parameters())
        matrices = [parameter for name, parameter in named if ".layers." in name and parameter.ndim == 2]
        others = [parameter for name, parameter in named if not (".layers." in name and parameter.ndim == 2)]
        self._parts = (
            (torch.optim.Muon(matrices, weight_decay=settings.weight_decay), settings.matrix_rate),
            (torch.optim.AdamW(others, betas=(0.9, 0.98), weight_decay=0.0), settings.rate),
        )

    def zero_grad(self) -> None:
        for part, _ in self._parts:
            part.zero_grad()

    def step(self, share: float) -> None:
        """Move the parameters at a share of their highest rates."""
        for part, rate in self._parts:
            for group in part.param_groups:
                group["lr"] = share * rate
            part.step()

    def state_dict(self) -> list[dict[str, Any]]:
        return [part.state_dict() for part, _ in self._parts]

    def load_state_dict(self, states: list[dict[str, Any]]) -> None:
        for (part, _), state in zip(self._parts, states, strict=True):
            part.load_state_dict(state)


def take_step(
    model: LlavaForConditionalGeneration, optimizer: Optimiser, batch: Batch, settings: Settings, step: int
) -> dict[str, float]:
    """One optimiser step; the loss is the mean cross entropy over answers and their ends, plus the hints' share.

    Returns:
        Loss of the answers, loss of the hints, and the share of right answers per kind before the update: scenes
        never come twice, so these are held out.
    """
    outputs = model.model(
        input_ids=batch.input_ids, pixel_values=batch.pixel_values, use_cache=False, output_hidden_states=True
    )
    logits = model.lm_head(outputs.last_hidden_state[batch.rows, batch.columns])  # [answers, vocabulary]
    targets = batch.input_ids[batch.rows, batch.columns + 1]
    loss = functional.cross_entropy(logits, targets)
    hints = hint_loss(model, outputs.hidden_states, batch.hints)
    optimizer.zero_grad()
    (loss + settings.hints * hints).backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), settings.clip)
    optimizer.step(schedule(step))
    right = (logits.argmax(-1) == targets).tolist()
    asked, hit = Counter(batch.kinds), Counter(kind for kind, ok in zip(batch.kinds, right, strict=True) if ok)
    shares = {f"accuracy_{kind}": hit[kind] / asked[kind] for kind in miniworld.KINDS if asked[kind]}
    return {"loss": loss.item(), "hint_loss": hints.item(), **shares}


def hint_loss(model: LlavaForConditionalGeneration, hidden: Sequence[Tensor], hints: Hints) -> Tensor:
    """Cross entropy of the words that hidden states should already say, through the model's last norm and output.

    Args:
        model: the mini host.
        hidden: `[scenes, tokens, width]` each: the decoder's input, then every layer's output.
        hints: what is said where.

    Returns:
        A sum over depths and over row, column, colour and shape, each a mean over its hints.
    """
    total = hidden[0].new_zeros(())
    for depth in sorted(set(hints.depths.tolist())):
        here = hints.depths == depth
        states = hidden[depth][hints.rows[here], hints.columns[here]]
        logits = model.lm_head(model.model.language_model.norm(states))
        for ids, says in zip(hinted_ids(), hints.says[here].unbind(1), strict=True):
            if (says != UNSAID).any():
                total = total + functional.cross_entropy(logits[:, ids], says, ignore_index=UNSAID)
    return total


@cache
def hinted_ids() -> tuple[list[int], ...]:
    """The vocabulary's ids of the words of HINTED."""
    vocabulary = mini_host.tokenizer().get_vocab()
    return tuple([vocabulary[word] for word in words] for words in HINTED.values())


def train(
    settings: Settings, seed: int, folder: Path, checkpoint_every: int, current: Run
) -> LlavaForConditionalGeneration:
    """Train from the last complete checkpoint in `folder`, or from nothing.

    Raises:
        UserError: the checkpoint was made with other settings or another seed.
    """
    torch.set_num_threads(settings.threads)
    model = mini_host.build(seed).train()
    optimizer = Optimiser(model, settings)
    batches = Batches(mini_host.processor(), settings, seed)
    checkpoint = last_complete_checkpoint(folder)
    done = 0 if checkpoint is None else _load(checkpoint, model, optimizer, settings, seed)
    if done:
        typer.echo(f"resuming after step {done} of {settings.steps}")
    for step in track(range(done, settings.steps), "training", settings.steps - done):
        current.log(step + 1, **take_step(model, optimizer, batches.at(step), settings, step))
        if (step + 1) % checkpoint_every == 0 and step + 1 < settings.steps:
            write_checkpoint(folder, step + 1, lambda target: _save(target, model, optimizer, settings, seed))
    return model.eval()


def _identity(settings: Settings, seed: int) -> dict[str, str | int | float]:
    """What a checkpoint must agree in, to be gone on from."""
    return {**asdict(settings), "seed": seed, "lessons": repr(LESSONS)}


def _save(
    target: Path, model: LlavaForConditionalGeneration, optimizer: Optimiser, settings: Settings, seed: int
) -> None:
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "settings": _identity(settings, seed)}
    torch.save(state, target / "state.pt")


def _load(
    checkpoint: Path,
    model: LlavaForConditionalGeneration,
    optimizer: Optimiser,
    settings: Settings,
    seed: int,
) -> int:
    """Fill model and optimiser from a checkpoint; returns the number of finished steps."""
    state = torch.load(checkpoint / "state.pt", weights_only=True)
    if state["settings"] != _identity(settings, seed):
        changed = [name for name, value in _identity(settings, seed).items() if state["settings"].get(name) != value]
        raise UserError(f"checkpoint was made with another {' and '.join(changed)}", checkpoint, "the same settings")
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    return checkpoint_step(checkpoint)


def write_model(
    folder: Path,
    model: LlavaForConditionalGeneration,
    settings: Settings,
    seed: int,
    command: str,
    held_out: dict[str, dict[str, dict[str, float]]],
    gate: dict[str, list[float]],
) -> None:
    """The finished host as transformers saves it, and `training.json`: how it was made and what it can do."""
    model.save_pretrained(folder)
    mini_host.processor().save_pretrained(folder)
    made = {
        "command": command,
        "seed": seed,
        "settings": {**asdict(settings), **LESSONS},
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "held_out": held_out,
        "gate": gate,
        "libraries": {"torch": torch.__version__, "transformers": transformers.__version__, "numpy": np.__version__},
        "date": datetime.now(UTC).date().isoformat(),
    }
    (folder / "training.json").write_text(json.dumps(made, indent=2) + "\n", encoding="utf-8")


app = typer.Typer(add_completion=False, rich_markup_mode="rich")


@app.command(epilog="Example: python -m tenfold.data.train_mini_host --output runs/mini_host --seed 0")
def train_mini_host(
    output: Annotated[Path, typer.Option(metavar="FOLDER", help="For checkpoints, metrics and the finished model.")],
    seed: Annotated[int, typer.Option(min=0, help="Same seed and number of threads: same bits.")] = 0,
    steps: Annotated[int, typer.Option(min=1, max=STEPS, help="Optimiser steps.")] = STEPS,
    batch: Annotated[int, typer.Option(min=1, help="Scenes a step.")] = 16,
    questions: Annotated[int, typer.Option(min=1, max=20, help="Questions about each scene.")] = 8,
    threads: Annotated[int, typer.Option(min=1, help="Of torch.")] = 1,
    checkpoint_every: Annotated[int, typer.Option(min=1, help="Steps between checkpoints.")] = 100,
    evaluate_count: Annotated[int, typer.Option(min=1, help="Held-out questions of each kind at the end.")] = 500,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last complete checkpoint.")] = False,
) -> None:
    """Train the mini host from nothing; FOLDER/model is the result."""
    if not resume and last_complete_checkpoint(output) is not None:
        raise UserError("holds checkpoints of an earlier run", output, "--resume, or a new folder")
    settings = Settings(steps, batch, questions, threads)
    command = (
        f"python -m tenfold.data.train_mini_host --output FOLDER --seed {seed} --steps {steps} --batch {batch} "
        f"--questions {questions} --threads {threads}"
    )
    recorded = {**asdict(settings), **LESSONS}
    with run("tenfold", "train_mini_host", config=recorded, seed=seed, output=output) as current:
        model = train(settings, seed, output, checkpoint_every, current)
        processor = mini_host.processor()
        held_out = {
            name: evaluate(model, processor, seed, evaluate_count, **variant) for name, variant in VARIANTS.items()
        }
        gate = {kind: gate_curve(model, processor, seed, evaluate_count, kind) for kind in GATE_KINDS}
        current.metrics.update(held_out, gate=gate)
        write_model(current.file("model/config.json").parent, model, settings, seed, command, held_out, gate)


if __name__ == "__main__":
    run_app(app)
