"""Training and measuring the miniature's variants, as `claims --train` does it.

The data, stages, losses and optimiser are those of `llava-hr train --config mini`; the loop is a lean one: pictures are
drawn once and kept in memory, logits are made at labelled positions only. A run trains stage 1 (projector and final
align on captions, no adapters) and stage 2 (everything on conversations), both at 192 pixels: at 96, as the paper's
first stage would be here, the marks that captions name cannot be seen.

    data = Data.load(folder, plan)
    model = train("mra", seed=0, data=data, plan=plan)
    measure(model, "mra", held_out(TEST, 200))
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from llava_hr.data.mini_questions import KINDS, TRAIN, Asked
from llava_hr.data.mini_world import SIZE, render, render_array, scene
from llava_hr.evidence import variants
from llava_hr.miniature import model as mini
from llava_hr.miniature.encoders import normalise
from llava_hr.miniature.pretraining import padded, set_rate
from tenfold.data.conversation import IGNORE, IMAGE_MARKER, Encoded, encode, get_conversation
from tenfold.data.formats import Turn
from tenfold.data.formats.prompts import short_answer
from tenfold.runs import sample_generator, track
from tenfold.runs.finite import require_finite_loss

if TYPE_CHECKING:
    from llava_hr.modeling import LlavaHrForConditionalGeneration

_BATCH = 50  # of held-out questions
# Of the record's pictures, in grey levels: the most. What ships was pre-trained and trained on pictures without grain.
GRAIN = 16


@dataclass(frozen=True)
class Plan:
    """What a run trains on, and for how long: the same for every variant.

    Args:
        scenes: of the world TRAIN.
        captions, conversations: steps of stage 1 and stage 2.
        batch: captions or conversations a step.
        caption_rate, rate: highest learning rates of both stages.
        size: pixels of both stages.
        clip: largest gradient norm.
        grain: the most that a picture has, in grey levels.
    """

    scenes: int = 6400
    captions: int = 300
    conversations: int = 400
    batch: int = 16
    caption_rate: float = 2e-3
    rate: float = 5e-4
    size: int = SIZE
    clip: float = 1.0
    grain: int = GRAIN


class Data:
    """The training set in memory.

    Args:
        plan: its number of scenes and their grain are used.
    """

    def __init__(self, plan: Plan) -> None:
        tokenizer = mini.mini_tokenizer()
        images = np.empty((plan.scenes, SIZE, SIZE, 3), dtype=np.uint8)
        small = np.empty((plan.scenes, SIZE // 2, SIZE // 2, 3), dtype=np.uint8)
        for index in range(plan.scenes):
            images[index] = render_array(scene(TRAIN, index, plan.grain))
            small[index] = resized(images[index], SIZE // 2)
        self.images, self.small = torch.from_numpy(images), torch.from_numpy(small)
        plain, vicuna = get_conversation("plain"), get_conversation("vicuna_v1")
        said = [sample.turns for sample in mini.captions(TRAIN, plan.scenes, pictures=False)]
        self.captions = [encode(tokenizer, plain.render(turns, images=True)) for turns in said]
        self.conversations: list[Encoded] = []
        for record in mini.instruct(TRAIN, plan.scenes):
            turns = [Turn(turn["from"], turn["value"]) for turn in record["conversations"]]
            self.conversations.append(encode(tokenizer, vicuna.render(turns, images="image" in record)))


def resized(image: np.ndarray, size: int) -> np.ndarray:
    """A square uint8 picture at another size, as the processor resizes it."""
    return np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.BICUBIC))


@dataclass(frozen=True)
class Batch:
    """Token ids and labels `[rows, tokens]`, padded on the right, and pixels of the rows with an image."""

    input_ids: Tensor
    labels: Tensor
    pixel_values: Tensor | None


def collate(samples: Sequence[Encoded], images: Tensor, visual_tokens: int) -> Batch:
    """A batch of samples; `images` uint8 `[rows with an image, R, R, 3]`."""
    marker = mini.image_token_id()
    ids, labels = padded([sample.expanded(marker, visual_tokens) for sample in samples])
    return Batch(ids, labels, as_pixels(images) if len(images) else None)


def as_pixels(images: Tensor) -> Tensor:
    """Normalised and laid out for convolutions."""
    return normalise(images).contiguous(memory_format=torch.channels_last)


def loss_of(model: LlavaHrForConditionalGeneration, batch: Batch) -> Tensor:
    """The model's loss, the mean over labelled tokens; logits are made for those only."""
    # Padded on the right: a causal decoder needs no mask then.
    hidden = model.model(input_ids=batch.input_ids, pixel_values=batch.pixel_values, use_cache=False).last_hidden_state
    targets = batch.labels[:, 1:]
    learnt = targets != IGNORE
    return F.cross_entropy(model.lm_head(hidden[:, :-1][learnt]), targets[learnt])


def train(
    variant: str,
    seed: int,
    data: Data,
    plan: Plan,
    look: Callable[[int, float], None] | None = None,
) -> LlavaHrForConditionalGeneration:
    """Both stages of one variant.

    Args:
        look: told the number of finished steps and the loss.

    Returns:
        The model, in eval mode.
    """
    model = variants.build(variant, seed)
    model.model.vision_tower.to(memory_format=torch.channels_last)
    first = [*model.model.multi_modal_projector.parameters()]
    if hasattr(model.model.vision_tower, "align"):
        first += model.model.vision_tower.align.parameters()
    images = data.images if plan.size == SIZE else data.small
    with without_adapters(model):
        _stage(model, first, data.captions, images, seed, 0, plan.captions, plan.caption_rate, plan, look)
    _stage(model, [*model.parameters()], data.conversations, images, seed, 1, plan.conversations, plan.rate, plan, look)
    return model.eval()


class without_adapters:
    """Stage 1 has no adapters."""

    def __init__(self, model: LlavaHrForConditionalGeneration) -> None:
        self._tower = model.model.vision_tower
        self._adapters = getattr(self._tower, "adapters", None)

    def __enter__(self) -> None:
        if self._adapters is not None:
            self._tower.adapters = nn.ModuleList()

    def __exit__(self, *_: object) -> None:
        if self._adapters is not None:
            self._tower.adapters = self._adapters


def _stage(
    model: LlavaHrForConditionalGeneration,
    learnt: list[nn.Parameter],
    samples: Sequence[Encoded],
    images: Tensor,
    seed: int,
    stage: int,
    steps: int,
    rate: float,
    plan: Plan,
    look: Callable[[int, float], None] | None,
) -> None:
    model.train()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    for parameter in learnt:
        parameter.requires_grad_(True)
    optimizer = torch.optim.AdamW(learnt, lr=rate, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0)
    edge = images.shape[1]
    tower = model.model.vision_tower
    visual_tokens = (tower.config.low_size(edge) // tower.config.low_res_config.patch_size) ** 2
    for step in track(range(steps), f"stage {stage + 1}", steps):
        set_rate(optimizer, rate, step, steps)
        chosen = rows(len(samples), plan.batch, seed, stage, step)
        shown = [index for index in chosen if IMAGE_MARKER in samples[index].input_ids]
        batch = collate([samples[index] for index in chosen], images[shown], visual_tokens)
        loss = loss_of(model, batch)
        require_finite_loss(loss, f"stage {stage + 1}", step + 1)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(learnt, plan.clip)
        optimizer.step()
        if look is not None:
            look(step + 1, loss.item())


def rows(count: int, batch: int, seed: int, stage: int, step: int) -> list[int]:
    """Which samples a step takes: every epoch's order is drawn anew, what does not fill a batch is left out."""
    epoch, place = divmod(step, count // batch)
    order = torch.randperm(count, generator=sample_generator(seed, epoch, stage))
    return order[place * batch : (place + 1) * batch].tolist()


@torch.inference_mode()
def answers(
    model: LlavaHrForConditionalGeneration, asked: Sequence[Asked], size: int = SIZE, swap: bool = False
) -> list[str]:
    """The first word of the model's greedy answer to every question: all right answers are one word.

    Args:
        size: of the picture that goes in, in pixels.
        swap: show the picture of the next question instead: what can be guessed without seeing.
    """
    tokenizer, vicuna = mini.mini_tokenizer(), get_conversation("vicuna_v1")
    words = {number: word for word, number in mini.vocabulary().items()}
    tower = model.model.vision_tower
    visual_tokens = (tower.config.low_size(size) // tower.config.low_res_config.patch_size) ** 2
    said = []
    for start in range(0, len(asked), _BATCH):
        several = asked[start : start + _BATCH]
        shown = [asked[(start + number + swap) % len(asked)] for number in range(len(several))]
        images = np.stack([resized(np.asarray(render(scene(one.world, one.index, one.grain))), size) for one in shown])
        prompts = [vicuna.prompt([f"<image>\n{short_answer(one.question.text)}"]) for one in several]
        encoded = [encode(tokenizer, prompt) for prompt in prompts]
        batch = collate(encoded, torch.from_numpy(images), visual_tokens)
        hidden = model.model(input_ids=batch.input_ids, pixel_values=batch.pixel_values, use_cache=False)
        last = torch.tensor([len(one.input_ids) + visual_tokens - 2 for one in encoded])
        logits = model.lm_head(hidden.last_hidden_state[torch.arange(len(several)), last])
        said += [words[number] for number in logits.argmax(-1).tolist()]
    return said


def right_answers(asked: Sequence[Asked], said: Sequence[str]) -> dict[str, str]:
    """By kind, "1" for every question that was answered rightly and "0" for the others, in their order."""
    right: dict[str, str] = {}
    for one, word in zip(asked, said, strict=True):
        right[one.question.kind] = right.get(one.question.kind, "") + str(int(word == one.question.answer))
    return {kind: right[kind] for kind in KINDS if kind in right}


def accuracy(asked: Sequence[Asked], said: Sequence[str]) -> dict[str, float]:
    """Share of right answers by kind."""
    return {kind: signs.count("1") / len(signs) for kind, signs in right_answers(asked, said).items()}


def macs(model: LlavaHrForConditionalGeneration, asked: Asked) -> int:
    """Multiply-accumulates of one question's prefill, as torch's counter sees them in every module that runs."""
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    # Plain products: not every torch counts the CPU's fused attention.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        answers(model, [asked])
    return counter.get_total_flops() // 2


def milliseconds(model: LlavaHrForConditionalGeneration, asked: Sequence[Asked]) -> float:
    """Median time of one question alone, picture drawing included in none: tower, projector and prefill."""
    tokenizer, vicuna = mini.mini_tokenizer(), get_conversation("vicuna_v1")
    times = []
    for one in asked:
        prompt = encode(tokenizer, vicuna.prompt([f"<image>\n{short_answer(one.question.text)}"]))
        images = torch.from_numpy(render_array(scene(one.world, one.index, one.grain)))[None]
        batch = collate([prompt], images, model.model.vision_tower.num_tokens)
        start = time.perf_counter()
        with torch.inference_mode():
            model(input_ids=batch.input_ids, pixel_values=batch.pixel_values, logits_to_keep=1)
        times.append(1000 * (time.perf_counter() - start))
    return float(np.median(times))


@torch.inference_mode()
def mean_gate(model: LlavaHrForConditionalGeneration, asked: Sequence[Asked]) -> list[float]:
    """Mean |gate| of every adapter over the questions' pictures; empty without adapters."""
    images = np.stack([render_array(scene(one.world, one.index, one.grain)) for one in asked])
    _, gates = model.model.vision_tower(as_pixels(torch.from_numpy(images)), output_gates=True)
    return gates.abs().mean(0).tolist()


def measure(model: LlavaHrForConditionalGeneration, asked: Sequence[Asked], size: int = SIZE) -> dict[str, Any]:
    """Everything that is recorded of a trained variant.

    Args:
        size: of the pictures that it was trained on.

    Returns:
        "accuracy" by kind; "right", the same question by question; "swapped", accuracy with another question's
        picture; "half", with pictures of half the size; "tokens", "macs", "parameters", "milliseconds" of a question,
        and "gate", mean |gate| by adapter.
    """
    tower = model.model.vision_tower
    edge = tower.config.low_size(size) // tower.config.low_res_config.patch_size
    said = answers(model, asked, size)
    found: dict[str, Any] = {"accuracy": accuracy(asked, said), "right": right_answers(asked, said)}
    if size == SIZE:
        found["swapped"] = accuracy(asked, answers(model, asked, swap=True))
        found["half"] = accuracy(asked, answers(model, asked, size // 2))
        found["macs"] = macs(model, asked[0])
        found["milliseconds"] = milliseconds(model, asked[:30])
        found["gate"] = mean_gate(model, asked[:_BATCH])
    found["tokens"] = edge**2
    found["parameters"] = sum(parameter.numel() for parameter in model.parameters())
    return found


def step_zero_difference(seed: int, asked: Sequence[Asked]) -> float:
    """Largest difference between the logits of (d) and (c) before any training: adapters start as identities."""
    logits = []
    for variant in (variants.ALIGN, variants.MRA):
        model = variants.build(variant, seed).eval()
        images = np.stack([render_array(scene(one.world, one.index, one.grain)) for one in asked])
        with torch.inference_mode():
            logits.append(model.encode_images(as_pixels(torch.from_numpy(images))))
    return (logits[0] - logits[1]).abs().max().item()
