"""Train the mini host from nothing.

    python -m tenfold.data.train_mini_host --output runs/mini_host --seed 0
    python -m tenfold.data.train_mini_host --output runs/mini_host --seed 0 --resume      # after a kill

FOLDER/model is then the folder that `tenfold.data.mini_host.load` reads; about half an hour on one core. First the
tower learns to say what its patches show, then it stays as it is and the decoder learns to answer. One sequence holds
one image and several questions that do not see each other: one picture feeds many gradients. A killed and resumed run
ends with the same bits as one that was left alone.

What is taught, and why with hints and looks, is in `tenfold.data.mini_lessons`.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from functools import cache, partial
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
from tenfold.data import mini_host
from tenfold.data.mini_lessons import (
    CHAIN,
    DRAWN,
    EARLY,
    FREE,
    HINTED,
    LATE,
    ONE_WORD,
    RAMP,
    STEPS,
    TOWER_END,
    TOWER_PICTURES,
    TOWER_STEPS,
    TRAINED_NOISE,
    TWO_WORDS,
    UNSAID,
    WARMUP,
    Batch,
    Batches,
    Hints,
    Settings,
    looking,
    schedule,
    tower_schedule,
)
from tenfold.data.mini_probes import embed, walk, words
from tenfold.errors import UserError
from tenfold.runs import Run, checkpoint_step, last_complete_checkpoint, run, track, write_checkpoint
from tenfold.runs.finite import require_finite_loss

LESSONS = {
    "kinds": DRAWN,
    "ramp": RAMP,
    "warmup": WARMUP,
    "horizon": STEPS,
    "hints_after_layers": {"one word": ONE_WORD, "two words": TWO_WORDS, "chain": CHAIN},
    "looks": {"words before layer": EARLY, "last token from layer": LATE},
    "noise": TRAINED_NOISE,
    "tower": {"pictures": TOWER_PICTURES, "end": TOWER_END},
}


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


def take_tower_step(
    model: LlavaForConditionalGeneration, optimizer: Optimiser, batches: Batches, settings: Settings, step: int
) -> dict[str, float]:
    """One step of the tower: every patch says what it shows, through the projector and the decoder's output matrix.

    Returns:
        The loss (patches of ground count half), and for each of HINTED the share of right objects before the update.
    """
    pixels, says = batches.pictures(step)
    logits = words(model, torch.stack(tuple(model.get_image_features(pixels).pooler_output)))
    objects = says[..., 2] > 0
    loss = logits.new_zeros(())
    right = {}
    for name, ids, said in zip(HINTED, hinted_ids(), says.unbind(-1), strict=True):
        of_field = logits[..., ids]
        for where, weight in ((objects, 1.0), (~objects, 0.5)):
            loss = loss + weight * functional.cross_entropy(of_field[where], said[where], ignore_index=UNSAID)
        right[f"tower_{name}"] = (of_field[objects].argmax(-1) == said[objects]).float().mean().item()
    require_finite_loss(loss, "tower", step + 1)
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), settings.clip)
    optimizer.step(tower_schedule(step, settings.tower_steps))
    return {"tower_loss": loss.item(), **right}


def take_step(
    model: LlavaForConditionalGeneration, optimizer: Optimiser, batches: Batches, settings: Settings, step: int
) -> dict[str, float]:
    """One step of the decoder: mean cross entropies over answers, over their ends and over hints, weighted.

    Returns:
        The three losses, and the share of right answers per kind before the update: scenes never come twice, so these
        are held out.
    """
    batch = batches.at(step)
    layers = len(model.model.language_model.layers)
    sees = batch.sees_in_looks(batches.first, layers) if looking(step, settings) else batch.sees()
    states = walk(model, embed(model, batch.input_ids, batch.pixel_values), batch.positions, sees)
    answers, ends = (_predicted(model, states[-1], batch, ahead) for ahead in (0, 1))
    hints = hint_loss(model, states, batch.hints)
    loss, end_loss = (functional.cross_entropy(*predicted) for predicted in (answers, ends))
    whole = settings.answers * loss + settings.ends * end_loss + settings.hints * hints
    require_finite_loss(whole, "decoder", step + 1)
    optimizer.zero_grad()
    whole.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), settings.clip)
    optimizer.step(schedule(step))
    logits, targets = answers
    right = (logits.argmax(-1) == targets).tolist()
    asked, hit = Counter(batch.kinds), Counter(kind for kind, ok in zip(batch.kinds, right, strict=True) if ok)
    shares = {f"accuracy_{kind}": hit[kind] / asked[kind] for kind in sorted(asked)}
    return {"loss": loss.item(), "end_loss": end_loss.item(), "hint_loss": hints.item(), **shares}


def _predicted(model: LlavaForConditionalGeneration, hidden: Tensor, batch: Batch, ahead: int) -> tuple[Tensor, Tensor]:
    """Logits `[answers, vocabulary]` and targets `[answers]` of the answers, or of what stands `ahead` of them."""
    columns = batch.columns + ahead
    return words(model, hidden[batch.rows, columns]), batch.input_ids[batch.rows, columns + 1]


def hint_loss(model: LlavaForConditionalGeneration, hidden: Sequence[Tensor], hints: Hints) -> Tensor:
    """Cross entropy of the words that hidden states should already say, through the model's last norm and output.

    Args:
        model: the mini host.
        hidden: `[scenes, tokens, width]` each: the decoder's input, then every layer's output.
        hints: what is said where.

    Returns:
        A sum over depths and over the fields of HINTED, each a mean over its hints.
    """
    total = hidden[0].new_zeros(())
    for depth in sorted(set(hints.depths.tolist())):
        here = hints.depths == depth
        logits = words(model, hidden[depth][hints.rows[here], hints.columns[here]])
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
    """Train from the last complete checkpoint in `folder`, or from nothing; steps count through tower and decoder.

    Raises:
        UserError: the checkpoint was made with other settings or another seed.
    """
    torch.set_num_threads(settings.threads)
    model = mini_host.build(seed).train()
    batches = Batches(mini_host.processor(), settings, seed)
    checkpoint = last_complete_checkpoint(folder)
    done, optimizer = (
        (0, Optimiser(model, settings)) if checkpoint is None else _load(checkpoint, model, settings, seed)
    )
    total, identity = settings.tower_steps + settings.steps, _identity(settings, seed)
    if done:
        typer.echo(f"resuming after step {done} of {total}")
    for step in track(range(done, total), "training", total - done):
        reading = step - settings.tower_steps
        if reading == 0:
            optimizer = second_optimiser(model, settings)
        if reading < 0:
            values = take_tower_step(model, optimizer, batches, settings, step)
        else:
            values = take_step(model, optimizer, batches, settings, reading)
        current.log(step + 1, **values)
        if (step + 1) % checkpoint_every == 0 and step + 1 < total:
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "settings": identity}
            write_checkpoint(folder, step + 1, partial(_save, state=state))
    return model.eval()


def second_optimiser(model: LlavaForConditionalGeneration, settings: Settings) -> Optimiser:
    """A fresh optimiser of everything but the tower, which stays as it is from now on."""
    model.model.vision_tower.requires_grad_(False)
    return Optimiser(model, settings)


def _identity(settings: Settings, seed: int) -> dict[str, str | int | float]:
    """What a checkpoint must agree in, to be gone on from."""
    return {**asdict(settings), "seed": seed, "lessons": repr(LESSONS)}


def _save(target: Path, *, state: dict[str, Any]) -> None:
    torch.save(state, target / "state.pt")


def _load(
    checkpoint: Path, model: LlavaForConditionalGeneration, settings: Settings, seed: int
) -> tuple[int, Optimiser]:
    """Fill a model from a checkpoint; returns the number of finished steps and the optimiser of the last one."""
    state = torch.load(checkpoint / "state.pt", weights_only=True)
    if state["settings"] != _identity(settings, seed):
        changed = [name for name, value in _identity(settings, seed).items() if state["settings"].get(name) != value]
        raise UserError(f"checkpoint was made with another {' and '.join(changed)}", checkpoint, "the same settings")
    done = checkpoint_step(checkpoint)
    model.load_state_dict(state["model"])
    optimizer = second_optimiser(model, settings) if done > settings.tower_steps else Optimiser(model, settings)
    optimizer.load_state_dict(state["optimizer"])
    return done, optimizer


def write_model(
    folder: Path, model: LlavaForConditionalGeneration, settings: Settings, seed: int, command: str
) -> None:
    """The finished host as transformers saves it, in bfloat16, and `training.json`: how it was made."""
    model.to(torch.bfloat16).save_pretrained(folder)  # type: ignore[arg-type]
    mini_host.processor().save_pretrained(folder)
    made = {
        "command": command,
        "seed": seed,
        "settings": {**asdict(settings), **LESSONS},
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "libraries": {"torch": torch.__version__, "transformers": transformers.__version__, "numpy": np.__version__},
        "date": datetime.now(UTC).date().isoformat(),
    }
    (folder / "training.json").write_text(json.dumps(made, indent=2) + "\n", encoding="utf-8")


app = typer.Typer(add_completion=False, rich_markup_mode="rich")


@app.command(epilog="Example: python -m tenfold.data.train_mini_host --output runs/mini_host --seed 0")
def train_mini_host(
    output: Annotated[Path, typer.Option(metavar="FOLDER", help="For checkpoints, metrics and the finished model.")],
    seed: Annotated[int, typer.Option(min=0, help="Same seed and number of threads: same bits.")] = 0,
    steps: Annotated[int, typer.Option(min=1, max=STEPS, help="Optimiser steps of the decoder.")] = STEPS,
    batch: Annotated[int, typer.Option(min=1, help="Scenes a step.")] = 8,
    questions: Annotated[int, typer.Option(min=1, max=20, help="Questions about each scene.")] = 12,
    tower_steps: Annotated[int, typer.Option(min=1, help="Optimiser steps of the tower, before.")] = TOWER_STEPS,
    free: Annotated[int, typer.Option(min=0, help="Step after which looks are free; 0: throughout.")] = FREE,
    threads: Annotated[int, typer.Option(min=1, help="Of torch.")] = 1,
    checkpoint_every: Annotated[int, typer.Option(min=1, help="Steps between checkpoints.")] = 100,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last complete checkpoint.")] = False,
) -> None:
    """Train the mini host from nothing; FOLDER/model is the result.

    What it can do, and how deep it looks, is measured by `python -m tenfold.data.mini_gate FOLDER/model`.
    """
    if not resume and last_complete_checkpoint(output) is not None:
        raise UserError("holds checkpoints of an earlier run", output, "--resume, or a new folder")
    settings = Settings(steps, batch, questions, threads, tower_steps, free)
    command = (
        f"python -m tenfold.data.train_mini_host --output FOLDER --seed {seed} --steps {steps} --batch {batch} "
        f"--questions {questions} --tower-steps {tower_steps} --free {free} --threads {threads}"
    )
    recorded = {**asdict(settings), **LESSONS}
    with run("tenfold", "train_mini_host", config=recorded, seed=seed, output=output) as current:
        model = train(settings, seed, output, checkpoint_every, current)
        write_model(current.file("model/config.json").parent, model, settings, seed, command)


if __name__ == "__main__":
    run_app(app)
