"""The miniature's variants, trained and measured (part two, C); `findings` judges them.

    average          a block's mean                    average+embq     and EmbQ
    sap              SAP                               sap+embq         FlashSloth
    shuffle          pixel-shuffle                     none             all 81 patches, uncompressed
    pick             one patch a block

Every variant of a seed starts from the same pre-trained parts, sees the same scenes in the same order, and has the same
sequence but for its visual tokens: those without EmbQ keep the query tokens. Two stages as in the paper: captions for
SAP and projector, then conversations for everything but the vision tower, which is run once for all.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from flashsloth.data import mini_world as world
from flashsloth.evaluation.baselines import CONTROLS, control, replace_pooling, without_embq
from flashsloth.looking import ImageFeatures
from flashsloth.miniature.model import mini_processor, new_model, vocabulary
from flashsloth.miniature.pretraining import padded, pixels, set_rate
from flashsloth.modeling import FlashSlothForConditionalGeneration
from tenfold.data.formats import Turn
from tenfold.runs import sample_generator
from tenfold.runs.finite import require_finite_loss

# Variant -> pooling, and whether EmbQ is there.
VARIANTS: dict[str, tuple[str, bool]] = {
    "average": ("average", False),
    "sap": ("sap", False),
    "average+embq": ("average", True),
    "sap+embq": ("sap", True),
    "shuffle": ("shuffle", False),
    "pick": ("pick", False),
    "none": ("none", False),
}
TRAIN = 0  # the world of the training; those of the pre-training are 1 and 2
EVAL_BATCH = 100


@dataclass(frozen=True)
class Plan:
    """How a variant is trained: scenes, batches, steps and highest learning rates of both stages."""

    scenes: int = 2560
    batch: int = 32
    captions: int = 60
    captions_rate: float = 3e-3
    answers: int = 250
    answers_rate: float = 3e-3


@dataclass(frozen=True)
class Data:
    """Scenes as the tower sees them, and their texts before placeholders: drawn once a process."""

    patches: Tensor
    texts: tuple[list[Any], list[Any]]

    @classmethod
    def of(cls, plan: Plan) -> Data:
        """The training's, from the pre-trained tower."""
        processor, scenes = mini_processor(), [world.draw(TRAIN, index) for index in range(plan.scenes)]
        captions = [
            processor.encode_turns([Turn("human", "<image>"), Turn("gpt", world.caption(one))], 1, conversation="plain")
            for one in scenes
        ]
        return cls(
            patches_of(new_model(0), scenes), (captions, [processor.encode_turns(turns(one), 1) for one in scenes])
        )


def turns(scene: world.Scene) -> list[Turn]:
    """A scene's training conversation."""
    said = []
    for number, one in enumerate(world.conversation(scene)):
        said += [Turn("human", f"<image>\n{one.text}" if number == 0 else one.text), Turn("gpt", one.answer)]
    return said


@torch.no_grad()
def patches_of(model: FlashSlothForConditionalGeneration, scenes: Sequence[world.Scene]) -> Tensor:
    """``[scenes, 81, 48]``."""
    parts = [scenes[at : at + 256] for at in range(0, len(scenes), 256)]
    return torch.cat([model.model.vision_tower(pixels(list(part))) for part in parts])


def build(variant: str, seed: int) -> FlashSlothForConditionalGeneration:
    """A variant before its two stages."""
    pooling, embq = VARIANTS[variant]
    model = new_model(seed, pool=1 if pooling == "none" else 3)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed + 1)
        replace_pooling(model, pooling)
    if not embq:
        without_embq(model)
    return model


def train(
    variant: str, seed: int, data: Data, plan: Plan, look: Callable[[int, float], None] | None = None
) -> FlashSlothForConditionalGeneration:
    """Both stages of a variant; ``look`` gets every step of the second and its loss."""
    model = build(variant, seed).train()
    for parameter in model.model.vision_tower.parameters():
        parameter.requires_grad_(False)
    compressing = [model.model.pooling, model.model.multi_modal_projector]
    first = [parameter for module in compressing for parameter in module.parameters()]
    _stage(model, first, data, 0, seed, plan.batch, plan.captions, plan.captions_rate, None)
    second = [parameter for parameter in model.parameters() if parameter.requires_grad]
    _stage(model, second, data, 1, seed, plan.batch, plan.answers, plan.answers_rate, look)
    return model.eval()


def _stage(
    model: FlashSlothForConditionalGeneration,
    learnt: list[nn.Parameter],
    data: Data,
    stage: int,
    seed: int,
    batch: int,
    steps: int,
    rate: float,
    look: Callable[[int, float], None] | None,
) -> None:
    processor, texts = mini_processor(model.config.num_image_tokens), data.texts[stage]
    optimizer = torch.optim.AdamW(learnt, lr=rate, weight_decay=0.0)
    for step in range(steps):
        set_rate(optimizer, rate, step, steps)
        rows = _rows(len(texts), batch, seed, stage, step)
        ids, labels = padded([processor.expanded(texts[row]) for row in rows])
        loss = model(input_ids=ids, labels=labels, image_features=features(model, data.patches[rows])).loss
        require_finite_loss(loss, f"stage {stage + 1}", step + 1)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(learnt, 1.0)
        optimizer.step()
        if look is not None:
            look(step + 1, loss.item())


def features(model: FlashSlothForConditionalGeneration, patches: Tensor) -> ImageFeatures:
    """What `encode_images` gives, from patches that the tower made before."""
    return ImageFeatures(patches, model.model.multi_modal_projector(model.model.pooling(patches)))


def _rows(count: int, batch: int, seed: int, stage: int, step: int) -> list[int]:
    """Which scenes a step takes: every epoch's order is drawn anew, what does not fill a batch is left out."""
    epoch, place = divmod(step, count // batch)
    order = torch.randperm(count, generator=sample_generator(seed, epoch, stage))
    return order[place * batch : (place + 1) * batch].tolist()


@dataclass(frozen=True)
class Asked:
    """Held-out questions of one level and kind, one a scene."""

    level: str
    kind: str
    scenes: tuple[world.Scene, ...]
    questions: tuple[world.Question, ...]


def held_out(seed: int, count: int) -> list[Asked]:
    """`count` questions of each level and kind, about the first scenes of a world."""
    found = []
    for odd, level in enumerate((world.SPARSE, world.CROWDED)):
        scenes = [world.draw(seed, 2 * index + odd) for index in range(count)]
        for number, kind in enumerate(world.KINDS):
            asked = [world.question(one, kind, (one.index + number) % world.SIGNS) for one in scenes]
            found.append(Asked(level, kind, tuple(scenes), tuple(asked)))
    return found


@torch.inference_mode()
def rights(model: FlashSlothForConditionalGeneration, asked: Asked, changed: str | None = None) -> list[bool]:
    """Whether the first word of each answer is right; ``changed``: under a control of `baselines`."""
    processor, words = mini_processor(model.config.num_image_tokens), vocabulary()
    patches = patches_of(model, asked.scenes)
    found = []
    for at in range(0, len(asked.scenes), EVAL_BATCH):
        several = slice(at, at + EVAL_BATCH)
        ids = torch.tensor([processor.ids(processor.prompt(one.text)) for one in asked.questions[several]])
        with control(model, changed) if changed else nullcontext():
            out = model(input_ids=ids, image_features=features(model, patches[several]), logits_to_keep=1)
        told = out.logits[:, -1].argmax(dim=-1).tolist()
        found += [word == words[one.answer] for word, one in zip(told, asked.questions[several], strict=True)]
    return found


def measure(model: FlashSlothForConditionalGeneration, asked: Sequence[Asked], embq: bool) -> dict[str, Any]:
    """Everything that is recorded of a trained variant: accuracy by level and kind, in per cent; with EmbQ also its
    controls; how sharply SAP weighs a sign's patch; milliseconds of a question, visual tokens, parameters."""
    found: dict[str, Any] = {f"{one.level} {one.kind}": _percent(rights(model, one)) for one in asked}
    crowded = next(one for one in asked if (one.level, one.kind) == (world.CROWDED, "shape"))
    if embq:
        found["controls"] = {name: _percent(rights(model, crowded, name)) for name in CONTROLS}
    if hasattr(model.model.pooling, "weights"):
        found["sharpness"] = sharpness(model, asked[0].scenes)
    found["milliseconds"] = milliseconds(model, crowded)
    found["tokens"] = model.config.num_image_tokens
    found["parameters"] = sum(parameter.numel() for parameter in model.parameters())
    return found


@torch.inference_mode()
def sharpness(model: FlashSlothForConditionalGeneration, scenes: Sequence[world.Scene]) -> float:
    """Mean weight that SAP gives to a sign's patch, in sparse scenes, where it is alone in its block; evenly 1/9."""
    weights = model.model.pooling.weights(patches_of(model, scenes))  # [scenes, 9, 9]
    side = world.BLOCK
    found = []
    for number, scene in enumerate(scenes):
        for sign in scene.signs:
            block = sign.row // side * side + sign.column // side
            found.append(weights[number, block, sign.row % side * side + sign.column % side].item())
    return float(np.mean(found))


def milliseconds(model: FlashSlothForConditionalGeneration, asked: Asked, count: int = 20) -> float:
    """Median time of one question alone: tower, pooling, projector and prefill."""
    processor, times = mini_processor(model.config.num_image_tokens), []
    for scene, one in list(zip(asked.scenes, asked.questions, strict=True))[:count]:
        ids, picture = torch.tensor([processor.ids(processor.prompt(one.text))]), pixels([scene])
        start = time.perf_counter()
        with torch.inference_mode():
            model(input_ids=ids, pixel_values=picture, logits_to_keep=1)
        times.append(1000 * (time.perf_counter() - start))
    return float(np.median(times))


def _percent(rights: list[bool]) -> float:
    return round(100 * float(np.mean(rights)), 2)
