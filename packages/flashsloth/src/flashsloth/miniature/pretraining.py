"""What the miniature starts from: a vision tower that tells signs apart, and a language model that knows their words.

    python -m flashsloth.miniature.pretraining --output runs/mini_start

They stand for SigLIP and Phi-2; every variant starts from the same ones. The tower learns, patch by patch, which colour
and shape is there, and where the patch lies. The language model sees no pictures: a scene is told in words, a visual
token being the mean of the embeddings of the words for what is in its block, and it learns captions and answers.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from flashsloth.data.mini_world import (
    BLOCK,
    COLOURS,
    COLUMNS,
    GRID,
    ROWS,
    SHAPES,
    SIGNS,
    Scene,
    caption,
    draw,
    render_array,
)
from flashsloth.data.mini_world import conversation as asked
from flashsloth.miniature import model as mini
from flashsloth.modeling import FlashSlothForConditionalGeneration
from flashsloth.prompts import SYSTEM
from tenfold import UserError
from tenfold.cli import main as run_app
from tenfold.runs import Run, atomic_write_json, run, track
from tenfold.runs.finite import require_finite_loss

PICTURES, WORDS = 1, 2  # worlds of the two pre-trainings
CLASSES = (tuple(COLOURS), tuple(SHAPES), ROWS, COLUMNS)


@dataclass(frozen=True)
class PretrainSettings:
    """Steps, batches and highest learning rates."""

    tower_steps: int = 400
    tower_batch: int = 32
    tower_rate: float = 3e-3
    language_steps: int = 250
    language_batch: int = 64
    language_rate: float = 4e-3


def pixels(scenes: list[Scene]) -> Tensor:
    """Normalised pictures `[scenes, 3, 54, 54]`."""
    pictures = torch.from_numpy(np.stack([render_array(one) for one in scenes]))
    return (pictures.permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.5


def patch_classes(scenes: list[Scene]) -> Tensor:
    """`[scenes, 81, 4]`: colour and shape at each patch, 0 for none; and its third of rows and columns."""
    found = np.zeros((len(scenes), GRID, GRID, 4), dtype=np.int64)
    found[..., 2], found[..., 3] = np.arange(GRID)[:, None] // BLOCK, np.arange(GRID) // BLOCK
    for number, scene in enumerate(scenes):
        for sign in scene.signs:
            looks = 1 + list(COLOURS).index(sign.colour), 1 + list(SHAPES).index(sign.shape)
            found[number, sign.row, sign.column, :2] = looks
    return torch.from_numpy(found.reshape(len(scenes), GRID * GRID, 4))


def train_tower(tower: nn.Module, settings: PretrainSettings, current: Run) -> dict[str, float]:
    """Teach the tower, and say which share of signs' patches it tells right."""
    sizes = (1 + len(COLOURS), 1 + len(SHAPES), len(ROWS), len(COLUMNS))
    tower.trained = True  # type: ignore[assignment]
    head = nn.Sequential(nn.LayerNorm(mini.VISION_WIDTH), nn.Linear(mini.VISION_WIDTH, sum(sizes)))
    optimizer = torch.optim.AdamW([*tower.parameters(), *head.parameters()], lr=settings.tower_rate, weight_decay=0.01)
    for step in track(range(settings.tower_steps), "tower", settings.tower_steps):
        set_rate(optimizer, settings.tower_rate, step, settings.tower_steps)
        scenes = [draw(PICTURES, step * settings.tower_batch + number) for number in range(settings.tower_batch)]
        told, targets = head(tower(pixels(scenes))).split(sizes, dim=-1), patch_classes(scenes)
        losses = [F.cross_entropy(t.flatten(0, 1), targets[..., n].flatten()) for n, t in enumerate(told)]
        loss = torch.stack(losses).sum()
        require_finite_loss(loss, "tower", step + 1)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        current.log(step + 1, part="tower", colour=losses[0].item(), shape=losses[1].item())
    tower.trained = False  # type: ignore[assignment]
    with torch.no_grad():
        scenes = [draw(PICTURES + 100, number) for number in range(200)]
        targets, told = patch_classes(scenes), head(tower(pixels(scenes))).split(sizes, dim=-1)
        there = targets[..., 0] > 0
        rights = [(told[n].argmax(-1) == targets[..., n])[there].float().mean().item() for n in range(2)]
    return {"colour": round(rights[0], 4), "shape": round(rights[1], 4)}


def told_in_words(embeddings: nn.Module, scenes: list[Scene]) -> Tensor:
    """`[scenes, 9, width]`: one token a block, the mean over its signs of their four words; 0 for none."""
    words = mini.vocabulary()
    ids = torch.zeros(len(scenes), SIGNS, 4, dtype=torch.long)
    blocks = torch.zeros(len(scenes), mini.VISUAL_TOKENS, SIGNS)
    for number, scene in enumerate(scenes):
        for at, sign in enumerate(scene.signs):
            names = (sign.colour, sign.shape, sign.answer("row"), sign.answer("column"))
            ids[number, at] = torch.tensor([words[name] for name in names])
            blocks[number, sign.row // BLOCK * BLOCK + sign.column // BLOCK, at] = 1
    blocks = blocks / blocks.sum(dim=-1, keepdim=True).clamp(min=1)
    return blocks @ embeddings(ids).sum(dim=2)


def told_text(scene: Scene, captioned: bool) -> tuple[list[int], list[int]]:
    """Ids and labels of a scene's text without queries, which the language model has not met yet."""
    words, image = mini.vocabulary(), mini.vocabulary()["<image>"]
    if captioned:
        said = [words[word] for word in caption(scene).replace(",", " ,").split()] + [words["\n"]]
        return [image] * mini.VISUAL_TOKENS + said, [-100] * mini.VISUAL_TOKENS + said
    ids = [words[SYSTEM], words["USER:"], *[image] * mini.VISUAL_TOKENS, words["\n"]]
    labels = [-100] * len(ids)
    for number, one in enumerate(asked(scene)):
        asking = [words[word] for word in one.text.replace("?", " ?").split()] + [words["ASSISTANT:"]]
        asking = ([words["USER:"]] if number else []) + asking
        answer = [words[one.answer], words["</s>"]]
        ids += asking + answer
        labels += [-100] * len(asking) + answer
    return ids, labels


def train_language_model(
    model: FlashSlothForConditionalGeneration, settings: PretrainSettings, current: Run
) -> dict[str, float]:
    """Teach the decoder and its output matrix; says how many answers are right in the last tenth of the steps."""
    decoder, head, image = model.model.language_model, model.lm_head, mini.vocabulary()["<image>"]
    parameters = [*decoder.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=settings.language_rate, weight_decay=0.01)
    steps, batch, rights = settings.language_steps, settings.language_batch, []
    for step in track(range(steps), "language model", steps):
        set_rate(optimizer, settings.language_rate, step, steps)
        scenes = [draw(WORDS, step * batch + number) for number in range(batch)]
        ids, labels = padded([told_text(scene, number % 8 == 0) for number, scene in enumerate(scenes)])
        embeds = decoder.embed_tokens(ids).masked_scatter(
            (ids == image).unsqueeze(-1), told_in_words(decoder.embed_tokens, scenes)
        )
        hidden = decoder(inputs_embeds=embeds, use_cache=False).last_hidden_state[:, :-1]
        learnt = labels[:, 1:] != -100
        logits, wanted = head(hidden[learnt]), labels[:, 1:][learnt]
        loss = F.cross_entropy(logits, wanted)
        require_finite_loss(loss, "language model", step + 1)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        shapes = torch.isin(wanted, torch.tensor([mini.vocabulary()[shape] for shape in SHAPES]))
        rights.append((logits.argmax(-1) == wanted)[shapes].float().mean().item())
        current.log(step + 1, part="language model", loss=loss.item(), shape=rights[-1])
    return {"shape": round(float(np.mean(rights[-max(1, steps // 10) :])), 4)}


def padded(samples: list[tuple[list[int], list[int]]]) -> tuple[Tensor, Tensor]:
    """Ids and labels `[samples, tokens]`, padded on the right: a causal decoder needs no mask then."""
    longest = max(len(ids) for ids, _ in samples)
    ids = [ids + [0] * (longest - len(ids)) for ids, _ in samples]
    labels = [labels + [-100] * (longest - len(labels)) for _, labels in samples]
    return torch.tensor(ids), torch.tensor(labels)


def set_rate(optimizer: torch.optim.Optimizer, rate: float, step: int, steps: int, warmup: float = 0.03) -> None:
    """A linear warm-up over 3 % of the steps, then a cosine to zero."""
    first = max(1, round(warmup * steps))
    share = (step + 1) / first if step < first else 0.5 * (1 + math.cos(math.pi * (step - first) / (steps - first)))
    for group in optimizer.param_groups:
        group["lr"] = share * rate


def pretrain(
    part: str, settings: PretrainSettings, seed: int, current: Run
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Train "tower" or "language" from nothing: its weights in bfloat16, and what it can do."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = FlashSlothForConditionalGeneration(mini.mini_config())
        if part == "tower":
            tower = model.model.vision_tower
            for module in tower.modules():
                if isinstance(module, nn.Linear):  # a start that suits matrices this narrow
                    nn.init.normal_(module.weight, std=0.09)
            nn.init.normal_(tower.embeddings.position_embedding.weight, std=0.3)
            can = train_tower(tower, settings, current)
        else:
            can = train_language_model(model, settings, current)
    state = {
        name: value.to(torch.bfloat16).contiguous()
        for name, value in model.state_dict().items()
        if name.startswith(mini.PRETRAINED[part])
    }
    return state, can


app = typer.Typer(add_completion=False, rich_markup_mode="rich")


@app.command(epilog="Example: python -m flashsloth.miniature.pretraining --output runs/mini_start")
def mini_pretraining(
    output: Annotated[Path, typer.Option(metavar="FOLDER", help="For metrics and the weights.")],
    part: Annotated[str, typer.Option(help="all, tower or language.")] = "all",
    seed: Annotated[int, typer.Option(min=0, help="Same seed and number of threads: same bits.")] = 0,
    share: Annotated[float, typer.Option(min=0.001, max=1, help="Of the usual number of steps.")] = 1.0,
) -> None:
    """Pre-train the miniature's vision tower and language model."""
    if part not in ("all", *mini.PRETRAINED):
        raise UserError("unknown part", part, f"all, {', '.join(mini.PRETRAINED)}")
    torch.set_num_threads(1)
    usual = PretrainSettings()
    steps = {name: max(2, round(share * value)) for name, value in asdict(usual).items() if name.endswith("_steps")}
    settings = PretrainSettings(**asdict(usual) | steps)
    with run("flashsloth", "mini_pretraining", config=asdict(settings), seed=seed, output=output) as current:
        for name in mini.PRETRAINED if part == "all" else (part,):
            state, can = pretrain(name, settings, seed, current)
            current.metrics[name] = can
            save_file(state, current.file(f"{name}.safetensors"))
        command = f"python -m flashsloth.miniature.pretraining --output FOLDER --seed {seed}"
        made = {"command": command, "seed": seed, "settings": asdict(settings), "held_out": current.metrics}
        atomic_write_json(current.file("training.json"), {**made, "libraries": {"torch": torch.__version__}})


if __name__ == "__main__":
    run_app(app)
