"""How the miniature's encoders and language model were pre-trained, each part by itself.

    python -m llava_hr.miniature.pretraining --output runs/mini_encoders                 # all, ten minutes on one core
    python -m llava_hr.miniature.pretraining --output runs/mini_encoders --part convnext

The encoders see scenes with an object in every ninth, of a world of their own, each at its own resolution, and learn
to tell for every cell of their grid which size, colour, shape and mark the object there has; what the ViT cannot see at
84 pixels, it does not learn. `vit_double` is another ViT that sees 168 pixels, for the variant that uses it there. The
language model sees no pictures: its scenes are told in words, a visual token being the sum of the embeddings of the
words for what is in its cell, and it learns to caption them and to answer questions.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import torch
import typer
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from llava_hr.data.mini_questions import CLASSES, DEV, TEXT, caption, conversation
from llava_hr.data.mini_world import COLOURS, MARKS, RADIUS, SHAPES, SIZE, SIZES, VALUES, MiniScene, crowd, scene
from llava_hr.miniature import model as mini
from llava_hr.miniature.encoders import PARTS, pixels
from tenfold import UserError
from tenfold.cli import main as run_app
from tenfold.data.conversation import IGNORE, Encoded, encode, get_conversation
from tenfold.data.formats import Turn
from tenfold.runs import Run, atomic_write_json, run, track
from tenfold.runs.finite import require_finite_loss

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from llava_hr.modeling import LlavaHrForConditionalGeneration

TRAINING = "training.json"
MARK_VALUES = tuple((mark, value) for mark in MARKS for value in VALUES[mark])
# What a cell shows, 0 for nothing: size, colour, shape, mark.
CLASSES_OF = (SIZES, COLOURS, SHAPES, MARK_VALUES)
CLASS_COUNTS = tuple(1 + len(names) for names in CLASSES_OF)
GRID = SIZE // mini.STRIDE


@dataclass(frozen=True)
class PretrainSettings:
    """Steps, batches and highest learning rates of the four pre-trainings."""

    convnext_steps: int = 1200
    vit_steps: int = 800
    vit_double_steps: int = 4800
    language_model_steps: int = 600
    batch: int = 16
    convnext_rate: float = 4e-3
    vit_rate: float = 2e-3
    vit_double_rate: float = 3e-3
    language_model_rate: float = 6e-3


def classes(scenes: list[MiniScene]) -> Tensor:
    """`[scenes, 36, 4]`: size, colour, shape and mark of the object at each cell, 0 where there is none."""
    found = np.zeros((len(scenes), GRID, GRID, len(CLASS_COUNTS)), dtype=np.int64)
    centres = mini.STRIDE * np.arange(GRID) + mini.STRIDE // 2
    for number, one_scene in enumerate(scenes):
        for one in one_scene.objects:
            # A small object shows in the cells around its centre, a large one in those that it covers.
            rows, columns = (np.abs(centres - centre) <= max(24, RADIUS[one.size]) for centre in (one.y, one.x))
            mark = 1 + MARK_VALUES.index((one.mark, one.value)) if one.mark else 0
            shown = 1 + SIZES.index(one.size), 1 + COLOURS.index(one.colour), 1 + SHAPES.index(one.shape), mark
            found[number, rows[:, None] & columns] = shown
    return torch.from_numpy(found.reshape(len(scenes), GRID * GRID, len(CLASS_COUNTS)))


class Classifier(nn.Module):
    """An encoder and one linear layer for all classes of a cell."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder
        self.norm = nn.LayerNorm(mini.WIDTH)
        self.head = nn.Linear(mini.WIDTH, sum(CLASS_COUNTS))

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, ...]:
        """`[images, 36, classes]` for size, colour, shape and mark."""
        features = self.encoder(pixel_values)  # [images, tokens, width]
        edge = math.isqrt(features.shape[1])
        if edge != GRID:
            features = F.avg_pool2d(features.transpose(1, 2).unflatten(2, (edge, edge)), edge // GRID)
            features = features.flatten(2).transpose(1, 2)
        return self.head(self.norm(features)).split(CLASS_COUNTS, dim=-1)


def train_classifier(
    encoder: nn.Module, steps: int, rate: float, images: int, current: Run, name: str
) -> dict[str, Any]:
    """Teach an encoder, and say how much it can tell of crowded scenes of the world DEV."""
    model = Classifier(encoder).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, betas=(0.9, 0.99), weight_decay=0.0)
    for step in track(range(steps), name, steps):
        set_rate(optimizer, rate, step, steps)
        scenes = [crowd(CLASSES, step * images + number) for number in range(images)]
        targets = classes(scenes).unbind(-1)
        losses = [
            F.cross_entropy(p.flatten(0, 1), t.flatten()) for p, t in zip(model(pixels(scenes)), targets, strict=True)
        ]
        loss = torch.stack(losses).sum()
        require_finite_loss(loss, name, step + 1)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        size, colour, shape, mark = (loss.item() for loss in losses)
        current.log(step + 1, part=name, size=size, colour=colour, shape=shape, mark=mark)
    return classified(model.eval(), 4 * images)


@torch.inference_mode()
def classified(model: Classifier, count: int) -> dict[str, float]:
    """Shares of cells with an object whose size, colour, shape and mark (per kind) a classifier tells."""
    scenes = [crowd(DEV, number) for number in range(count)]
    targets = classes(scenes)
    told = torch.stack([logits.argmax(-1) for logits in model(pixels(scenes))], dim=-1)
    right, there = told == targets, targets[..., 0] > 0
    found = {
        name: right[..., place][there].float().mean().item() for place, name in enumerate(("size", "colour", "shape"))
    }
    for mark in MARKS:
        ids = torch.tensor([1 + number for number, (kind, _) in enumerate(MARK_VALUES) if kind == mark])
        found[mark] = right[..., -1][torch.isin(targets[..., -1], ids)].float().mean().item()
    return {name: round(value, 4) for name, value in found.items()}


def set_rate(optimizer: torch.optim.Optimizer, rate: float, step: int, steps: int, warmup: float = 0.03) -> None:
    """A linear warm-up over 3 % of the steps, then a cosine to zero."""
    first = max(1, round(warmup * steps))
    share = (step + 1) / first if step < first else 0.5 * (1 + math.cos(math.pi * (step - first) / (steps - first)))
    for group in optimizer.param_groups:
        group["lr"] = share * rate


def told_in_words(embeddings: nn.Module, scenes: list[MiniScene]) -> Tensor:
    """`[scenes, 36, width]`: for each cell the sum of the embeddings of size, colour, shape and value there."""
    words = mini.vocabulary()
    told: Tensor | float = 0.0
    for names, shown in zip(CLASSES_OF, classes(scenes).unbind(-1), strict=True):
        ids = [words[name if isinstance(name, str) else name[1]] for name in names]
        told = told + embeddings(torch.tensor([0, *ids])[shown]) * (shown > 0)[..., None]
    assert isinstance(told, Tensor)
    return told


def told_scene(index: int) -> tuple[MiniScene, Encoded]:
    """Scene and text number `index` of the language model's: every fourth is a caption, the others conversations."""
    drawn, tokenizer = scene(TEXT, index), mini.mini_tokenizer()
    template = "vicuna_v1" if index % 4 else "plain"
    turns = mini.turns(conversation(drawn, TEXT, index), mini.IMAGE_TOKEN)
    if template == "plain":
        turns = Turn("human", mini.IMAGE_TOKEN), Turn("gpt", caption(drawn))
    return drawn, encode(tokenizer, get_conversation(template).render(turns, images=True))


def train_language_model(
    model: LlavaHrForConditionalGeneration, steps: int, rate: float, batch: int, current: Run
) -> dict[str, float]:
    """Teach the decoder and its output matrix; says how many answers are right in the last tenth of the steps."""
    decoder, head, placeholder = model.model.language_model, model.lm_head, mini.image_token_id()
    parameters = [*decoder.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=rate, betas=(0.9, 0.99), weight_decay=0.0)
    rights = []
    for step in track(range(steps), "language_model", steps):
        set_rate(optimizer, rate, step, steps)
        scenes, texts = zip(*(told_scene(step * batch + number) for number in range(batch)), strict=True)
        ids, labels = padded([text.expanded(placeholder, mini.VISUAL_TOKENS) for text in texts])
        pictured = (ids == placeholder)[..., None].expand(-1, -1, mini.WIDTH)
        embeds = decoder.embed_tokens(ids.masked_fill(ids == placeholder, 0))
        embeds = embeds.masked_scatter(pictured, told_in_words(decoder.embed_tokens, list(scenes)))
        hidden = decoder(inputs_embeds=embeds, use_cache=False).last_hidden_state[:, :-1]
        targets = labels[:, 1:]
        is_caption = (torch.arange(batch) + step * batch).remainder(4).eq(0)[:, None]
        losses = []
        # Captions have more words; both weigh the same.
        for chosen in (is_caption & (targets != IGNORE), ~is_caption & (targets != IGNORE)):
            logits, wanted = head(hidden[chosen]), targets[chosen]
            losses.append(F.cross_entropy(logits, wanted) if len(wanted) else logits.sum())
        loss = torch.stack(losses).sum()
        require_finite_loss(loss, "language_model", step + 1)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        words = wanted != mini.vocabulary()["</s>"]
        rights.append((logits.argmax(-1) == wanted)[words].float().mean().item())
        current.log(
            step + 1, part="language_model", caption=losses[0].item(), answer=losses[1].item(), right=rights[-1]
        )
    return {"right": round(float(np.mean(rights[-max(1, steps // 10) :])), 4)}


def padded(samples: list[Encoded]) -> tuple[Tensor, Tensor]:
    """Ids and labels `[samples, tokens]`, padded on the right: a causal decoder needs no mask then."""
    longest = max(len(sample.input_ids) for sample in samples)
    ids = [sample.input_ids + [0] * (longest - len(sample.input_ids)) for sample in samples]
    labels = [sample.labels + [IGNORE] * (longest - len(sample.labels)) for sample in samples]
    return torch.tensor(ids), torch.tensor(labels)


class LowPathway(nn.Module):
    """The ViT of a tower on pictures of `size` pixels: `[images, tokens, width]`."""

    def __init__(self, vit: PreTrainedModel, size: int) -> None:
        super().__init__()
        self.vit, self.size = vit, size

    def forward(self, pixel_values: Tensor) -> Tensor:
        low = F.interpolate(pixel_values, (self.size, self.size), mode="bilinear", align_corners=True)
        tokens = self.vit.pre_layrnorm(self.vit.embeddings(low))
        for layer in self.vit.encoder.layers:
            tokens = layer(tokens, None)
        return tokens


class HighPathway(nn.Module):
    """The ConvNeXt of a tower: `[images, tokens, width]`."""

    def __init__(self, convnext: nn.Module) -> None:
        super().__init__()
        self.convnext = convnext

    def forward(self, pixel_values: Tensor) -> Tensor:
        return self.convnext.stages(self.convnext.stem(pixel_values)).flatten(2).transpose(1, 2)


@torch.no_grad()
def start_encoders(vit: nn.Module, convnext: nn.Module) -> None:
    """Starts that suit matrices this narrow; the usual ones are for encoders that train for weeks."""
    for module in vit.modules():
        if isinstance(module, nn.Linear):
            module.weight.normal_(std=0.09)
            module.bias.zero_()
    vit.embeddings.patch_embedding.weight.normal_(std=0.04)
    vit.embeddings.position_embedding.weight.normal_(std=0.3)
    for name, parameter in convnext.named_parameters():
        if name.endswith(".gamma"):
            parameter.fill_(1.0)
        elif parameter.ndim > 1:
            nn.init.trunc_normal_(parameter, std=0.02)


def pretrain(
    part: str, settings: PretrainSettings, seed: int, current: Run
) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Train one part from nothing.

    Returns:
        Its weights, bfloat16, and what it can do: `classified`, or the language model's share of right answers.
    """
    from llava_hr.modeling import LlavaHrForConditionalGeneration

    steps, rate = (getattr(settings, f"{part}_{name}") for name in ("steps", "rate"))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlavaHrForConditionalGeneration(mini.mini_config())
        tower = model.model.vision_tower
        start_encoders(tower.vit, tower.convnext)
        if part == "language_model":
            told = train_language_model(model, steps, rate, settings.batch, current)
            trained = {"language_model": model.model.language_model, "lm_head": model.lm_head}
        else:
            size = 2 * mini.LOW_SIZE if part == "vit_double" else mini.LOW_SIZE
            encoder = HighPathway(tower.convnext) if part == "convnext" else LowPathway(tower.vit, size)
            told = train_classifier(encoder, steps, rate, settings.batch, current, part)
            trained = {part: tower.convnext if part == "convnext" else tower.vit}
    state = {
        f"{name}.{key}": tensor.to(torch.bfloat16).contiguous()
        for name, module in trained.items()
        for key, tensor in module.state_dict().items()
    }
    return state, told


app = typer.Typer(add_completion=False, rich_markup_mode="rich")


@app.command(epilog="Example: python -m llava_hr.miniature.pretraining --output runs/mini_encoders")
def mini_pretraining(
    output: Annotated[Path, typer.Option(metavar="FOLDER", help="For metrics and the weights.")],
    part: Annotated[str, typer.Option(help=f"all, or one of {', '.join(PARTS)}.")] = "all",
    seed: Annotated[int, typer.Option(min=0, help="Same seed and number of threads: same bits.")] = 0,
    share: Annotated[float, typer.Option(min=0.001, max=1, help="Of the usual number of steps.")] = 1.0,
) -> None:
    """Pre-train the miniature's encoders and language model."""
    if part not in ("all", *PARTS):
        raise UserError("unknown part", part, f"all, {', '.join(PARTS)}")
    torch.set_num_threads(1)
    usual = PretrainSettings()
    steps = {name: max(2, round(share * value)) for name, value in asdict(usual).items() if name.endswith("_steps")}
    settings = PretrainSettings(**steps)
    with run("llava_hr", "mini_pretraining", config=asdict(settings), seed=seed, output=output) as current:
        for name in PARTS if part == "all" else (part,):
            state, told = pretrain(name, settings, seed, current)
            current.metrics[name] = told
            save_file(state, current.file(f"{name}.safetensors"))
        command = f"python -m llava_hr.miniature.pretraining --output FOLDER --seed {seed}"
        made = {"command": command, "seed": seed, "settings": asdict(settings), "held_out": current.metrics}
        libraries = {"torch": torch.__version__, "numpy": np.__version__}
        atomic_write_json(current.file(TRAINING), {**made, "libraries": libraries})


if __name__ == "__main__":
    run_app(app)
