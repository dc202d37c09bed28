"""Train the mini host from nothing.

    python -m tenfold.data.train_mini_host --output runs/mini_host --seed 0
    python -m tenfold.data.train_mini_host --output runs/mini_host --seed 0 --resume      # after a kill

FOLDER/model is then the folder that `tenfold.data.mini_host.load` reads. One sequence holds one image and several
questions with their answers: one picture feeds many gradients, which is what lets a vision tower learn from nothing
within minutes. Every sample comes from `sample_rng(seed, step, number)`, so a killed and resumed run ends with the
same bits as one that was left alone.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import transformers
import typer
from torch import Tensor
from torch.nn import functional
from transformers import LlavaForConditionalGeneration, LlavaProcessor

from tenfold.cli import main as run_app
from tenfold.data import mini_host, miniworld
from tenfold.data.mini_sets import SHORT_ANSWER
from tenfold.errors import UserError
from tenfold.runs import Run, checkpoint_step, last_complete_checkpoint, run, sample_rng, track, write_checkpoint


@dataclass(frozen=True)
class Stage:
    """A stretch of the training with its own questions and its own descent of the learning rate.

    Args:
        until: the step at which it ends.
        peak: its highest learning rate.
        zero_at: the step at which its cosine would reach zero; after `until`: the descent is broken off.
        kinds: of questions, drawn uniformly.
        warmup: steps of a linear rise to the peak.
        ramp: steps over which scenes grow from two objects to nine. To tell one object from another is learnt within
            a few hundred steps on scenes of two, and hardly at all on scenes of nine.
    """

    until: int
    peak: float
    zero_at: int
    kinds: tuple[str, ...]
    warmup: int = 0
    ramp: int = 0


LOOKUPS = (*miniworld.ONE_HOP, "place")
# The low end of the first descent taught nothing more, while a second start at the peak did.
STAGES = (
    Stage(until=2300, peak=2e-3, zero_at=3000, kinds=LOOKUPS, warmup=50, ramp=1200),
    Stage(until=4000, peak=2e-3, zero_at=4000, kinds=LOOKUPS),
)


@dataclass(frozen=True)
class Settings:
    """What the weights depend on, besides the stages, the seed and the number of threads.

    Args:
        steps: optimiser steps; fewer than the stages have end the training early.
        batch: scenes a step.
        questions: questions about each scene.
        threads: of torch; sums over threads differ in their last bits.
        weight_decay: of matrices; vectors (norms, biases) have none.
        clip: largest gradient norm.
    """

    steps: int
    batch: int
    questions: int
    threads: int
    weight_decay: float = 0.02
    clip: float = 1.0


@dataclass(frozen=True)
class Batch:
    """One step's data.

    Args:
        pixel_values: `[scenes, 3, 48, 48]` float32, normalised.
        input_ids: `[scenes, tokens]` int64, padded on the right (a causal decoder needs no mask then).
        rows, columns: `[answers]` int64 each: where an answer is predicted, one position before it.
        kinds: the kind of question of each answer; "end" for its `</s>`.
    """

    pixel_values: Tensor
    input_ids: Tensor
    rows: Tensor
    columns: Tensor
    kinds: list[str]


class Batches:
    """Batches by step: a pure function of (seed, step).

    Args:
        processor: the mini host's.
        settings: sizes.
        seed: the run's seed.
    """

    def __init__(self, processor: LlavaProcessor, settings: Settings, seed: int) -> None:
        self._processor = processor
        self._settings = settings
        self._seed = seed
        self._ids: dict[str, list[int]] = {}

    def at(self, step: int) -> Batch:
        """The batch of a step, counted from 0."""
        images, rows, columns, kinds, sequences = [], [], [], [], []
        for number in range(self._settings.batch):
            draws = miniworld.Draws(sample_rng(self._seed, step, number).bit_generator)
            scene = miniworld.draw_scene(draws, scene_config(step))
            images.append(miniworld.render(scene, mini_host.IMAGE_SIZE))
            questions = miniworld.draw_questions(scene, draws, self._settings.questions, stage_of(step)[1].kinds)
            ids, answers = self._sequence(questions, draws)
            sequences.append(ids)
            for column, kind in answers:
                rows.append(number)
                columns.append(column)
                kinds.append(kind)
        padding = self._processor.tokenizer.pad_token_id
        longest = max(len(ids) for ids in sequences)
        padded = [ids + [padding] * (longest - len(ids)) for ids in sequences]
        pixels = self._processor.image_processor(images, return_tensors="pt")["pixel_values"]
        return Batch(pixels, torch.tensor(padded), torch.tensor(rows), torch.tensor(columns), kinds)

    def _sequence(
        self, questions: tuple[miniworld.Question, ...], draws: miniworld.Draws
    ) -> tuple[list[int], list[tuple[int, str]]]:
        """A conversation's ids, and (position, kind) of what predicts each answer and its end."""
        ids = self._encode("<s>")
        answers = []
        for number, question in enumerate(questions):
            text = question.text
            if draws.below(8) == 0:  # often enough to learn that this ending changes nothing
                text += f"\n{SHORT_ANSWER}"
            image = "<image>" * mini_host.VISUAL_TOKENS + "\n" if number == 0 else ""
            ids = ids + self._encode(f"USER: {image}") + self._encode(text) + self._encode("ASSISTANT:")
            answers += [(len(ids) - 1, question.kind), (len(ids), "end")]
            ids += self._encode(f"{question.answer}</s>")
        return ids, answers

    def _encode(self, text: str) -> list[int]:
        if text not in self._ids:
            self._ids[text] = self._processor.tokenizer(text, add_special_tokens=False)["input_ids"]
        return self._ids[text]


def stage_of(step: int) -> tuple[int, Stage]:
    """The first step of the stage that a step (counted from 0) lies in, and the stage."""
    start = 0
    for stage in STAGES:
        if step < stage.until:
            break
        start = stage.until
    return start, stage


def scene_config(step: int) -> miniworld.SceneConfig:
    """The scenes of a step: four to nine objects, fewer while the stage's ramp lasts."""
    start, stage = stage_of(step)
    most = min(9, 2 + 7 * (step - start) // stage.ramp) if stage.ramp else 9
    return miniworld.SceneConfig(min_objects=max(2, most // 2), max_objects=most)


def learning_rate(step: int) -> float:
    """The rate of a step, counted from 0: its stage's linear warm-up, then its cosine."""
    start, stage = stage_of(step)
    if step - start < stage.warmup:
        return stage.peak * (step - start + 1) / stage.warmup
    start += stage.warmup
    progress = (step - start) / (stage.zero_at - start)
    return stage.peak * 0.5 * (1 + math.cos(math.pi * progress))


def optimiser(model: LlavaForConditionalGeneration, settings: Settings) -> torch.optim.AdamW:
    """AdamW with weight decay on matrices only."""
    parameters = list(model.parameters())
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": settings.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=learning_rate(0), betas=(0.9, 0.98))


def take_step(
    model: LlavaForConditionalGeneration, optimizer: torch.optim.AdamW, batch: Batch, settings: Settings, step: int
) -> dict[str, float]:
    """One optimiser step; the loss is the mean cross entropy over answers and their ends.

    Returns:
        Loss, learning rate, and the share of right answers per kind before the update: scenes never come twice, so
        these are held out.
    """
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(step)
    hidden = model.model(
        input_ids=batch.input_ids, pixel_values=batch.pixel_values, use_cache=False
    ).last_hidden_state  # [scenes, tokens, width]
    logits = model.lm_head(hidden[batch.rows, batch.columns])  # [answers, vocabulary]
    targets = batch.input_ids[batch.rows, batch.columns + 1]
    loss = functional.cross_entropy(logits, targets)
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), settings.clip)
    optimizer.step()
    right = (logits.argmax(-1) == targets).tolist()
    asked, hit = Counter(batch.kinds), Counter(kind for kind, ok in zip(batch.kinds, right, strict=True) if ok)
    shares = {f"accuracy_{kind}": hit[kind] / asked[kind] for kind in miniworld.KINDS if asked[kind]}
    return {"loss": loss.item(), "learning_rate": learning_rate(step), **shares}


def train(
    settings: Settings, seed: int, folder: Path, checkpoint_every: int, current: Run
) -> LlavaForConditionalGeneration:
    """Train from the last complete checkpoint in `folder`, or from nothing.

    Raises:
        UserError: the checkpoint was made with other settings or another seed.
    """
    torch.set_num_threads(settings.threads)
    model = mini_host.build(seed).train()
    optimizer = optimiser(model, settings)
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
    return {**asdict(settings), "seed": seed, "stages": repr(STAGES)}


def _save(
    target: Path, model: LlavaForConditionalGeneration, optimizer: torch.optim.AdamW, settings: Settings, seed: int
) -> None:
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "settings": _identity(settings, seed)}
    torch.save(state, target / "state.pt")


def _load(
    checkpoint: Path,
    model: LlavaForConditionalGeneration,
    optimizer: torch.optim.AdamW,
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


@torch.inference_mode()
def evaluate(
    model: LlavaForConditionalGeneration,
    processor: LlavaProcessor,
    seed: int,
    count: int,
    *,
    size: int = mini_host.IMAGE_SIZE,
    ending: str = "",
    batch: int = 100,
) -> dict[str, dict[str, float]]:
    """Held-out accuracy per kind of question: one question an image, answered by `generate` and compared as text.

    Args:
        model, processor: the mini host.
        seed: of the scenes; `miniworld.scene` shares no stream with the trainer, whatever the seeds.
        count: questions of each kind.
        size: edge of the pictures before the processor resizes them.
        ending: added to every question after a newline.
        batch: questions at once; they differ in length, so the shorter ones are padded on the left.

    Returns:
        kind -> {"accuracy": share of right answers, "n": questions asked}.
    """
    table = {}
    for kind in miniworld.KINDS:
        asked: list[tuple[miniworld.Scene, miniworld.Question]] = []
        index = 0
        while len(asked) < count:
            scene = miniworld.scene(seed, index)
            asked += [(scene, question) for question in miniworld.questions(scene, seed, index, 1, (kind,))]
            index += 1
        hits = 0
        for start in range(0, count, batch):
            part = asked[start : start + batch]
            texts = [mini_host.prompt(question.text + (f"\n{ending}" if ending else "")) for _, question in part]
            images = [miniworld.render(scene, size) for scene, _ in part]
            answers = mini_host.answer(model, processor, images, texts)
            hits += sum(said == question.answer for said, (_, question) in zip(answers, part, strict=True))
        table[kind] = {"accuracy": hits / count, "n": count}
    return table


# What a user may do differently from the trainer: larger pictures (resized by Pillow), an ending to the question.
VARIANTS = {
    "as trained": {},
    "336 pixel pictures": {"size": 336},
    "short-answer ending": {"ending": SHORT_ANSWER},
}


def write_model(
    folder: Path,
    model: LlavaForConditionalGeneration,
    settings: Settings,
    seed: int,
    command: str,
    held_out: dict[str, dict[str, dict[str, float]]],
) -> None:
    """The finished host as transformers saves it, and `training.json`: how it was made and what it can do."""
    model.save_pretrained(folder)
    mini_host.processor().save_pretrained(folder)
    made = {
        "command": command,
        "seed": seed,
        "settings": {**asdict(settings), "stages": [asdict(stage) for stage in STAGES]},
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "held_out": held_out,
        "libraries": {"torch": torch.__version__, "transformers": transformers.__version__, "numpy": np.__version__},
        "date": datetime.now(UTC).date().isoformat(),
    }
    (folder / "training.json").write_text(json.dumps(made, indent=2) + "\n", encoding="utf-8")


app = typer.Typer(add_completion=False, rich_markup_mode="rich")


@app.command(epilog="Example: python -m tenfold.data.train_mini_host --output runs/mini_host --seed 0")
def train_mini_host(
    output: Annotated[Path, typer.Option(metavar="FOLDER", help="For checkpoints, metrics and the finished model.")],
    seed: Annotated[int, typer.Option(min=0, help="Same seed and number of threads: same bits.")] = 0,
    steps: Annotated[int, typer.Option(min=1, max=STAGES[-1].until, help="Optimiser steps.")] = STAGES[-1].until,
    batch: Annotated[int, typer.Option(min=1, help="Scenes a step.")] = 32,
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
    recorded = {**asdict(settings), "stages": [asdict(stage) for stage in STAGES]}
    with run("tenfold", "train_mini_host", config=recorded, seed=seed, output=output) as current:
        model = train(settings, seed, output, checkpoint_every, current)
        processor = mini_host.processor()
        held_out = {
            name: evaluate(model, processor, seed, evaluate_count, **variant) for name, variant in VARIANTS.items()
        }
        current.metrics.update(held_out)
        write_model(current.file("model/config.json").parent, model, settings, seed, command, held_out)


if __name__ == "__main__":
    run_app(app)
