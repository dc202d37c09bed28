"""The miniature: masks and edits of the mini model against their controls, on scenes whose true masks are known.

Every rule sees the same pictures, prompts, noises and attention; each one's threshold is chosen on scenes that are not
tested. An edit counts as done when the thing at its place looks most like what was asked for, among all 48 looks that
a thing of the mini world can have.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from inst_diff_edit.data import scenes
from inst_diff_edit.data.scenes import EDGE, Edit
from inst_diff_edit.evaluation import baselines
from inst_diff_edit.inputs import to_tensor
from inst_diff_edit.masks import BACKGROUND, OBJECT, blur, decide_roles, refine, stretch, word_pictures
from inst_diff_edit.pipeline import SEED, InstDiffEditPipeline
from inst_diff_edit.resize import resize
from inst_diff_edit.sampling import NoiseLevels, guided_noise, noise_seeds, noises, start_index
from inst_diff_edit.words import split_words, stack_weights
from tenfold.data import miniworld

STEPS, STRENGTH, GUIDANCE = 20, 0.5, 7.5
PAPER_THRESHOLD = 0.2
THRESHOLDS = tuple(round(0.05 * step, 2) for step in range(1, 20))
DIFFEDIT_NOISES = 3
CHUNK = 25


@dataclass(frozen=True)
class Scores:
    """One rule on the tested scenes.

    Attributes:
        threshold: the one used.
        iou: ``[scenes]``, of its masks with the true ones.
    """

    threshold: float
    iou: np.ndarray


def collect(
    pipe: InstDiffEditPipeline, edits: Sequence[Edit], num_masks: int = 3, roles: str = "first"
) -> dict[str, Any]:
    """Run the mask stage on edits.

    Returns:
        "attention" of the first and the last step ``[2, edits, 16, 16, words]``, "soft" masks of the last step in
        [0, 1] ``[edits, 64, 64]``, and the pictures' "latents" after the last step, of the first noise.
    """
    first, last, soft, latents = [], [], [], []
    for start in range(0, len(edits), CHUNK):
        part = edits[start : start + CHUNK]
        seen: dict[int, Tensor] = {}

        def keep(pipe: Any, step: int, timestep: Tensor, tensors: dict[str, Tensor], seen: Any = seen) -> None:
            seen[step] = tensors["attention"]

        found = pipe(
            [edit.picture() for edit in part],
            [edit.prompt for edit in part],
            STRENGTH,
            STEPS,
            GUIDANCE,
            num_masks,
            PAPER_THRESHOLD,
            roles=roles,
            matched_noise=True,
            output_type="latent",
            callback_on_step_end=keep,
            callback_on_step_end_tensor_inputs=("attention",),
        )
        first.append(seen[0])
        last.append(seen[max(seen)])
        soft.append(found.soft_masks.float() / 255)
        latents.append(found.images[::num_masks])
    attention = torch.stack([torch.cat(first), torch.cat(last)])
    return {"attention": attention, "soft": torch.cat(soft), "latents": torch.cat(latents)}


def rules_of_attention(pipe: InstDiffEditPipeline, edits: Sequence[Edit], attention: Tensor) -> dict[str, Tensor]:
    """Soft masks ``[edits, 64, 64]`` in [0, 1] by rules that use part of what the method uses.

    Args:
        attention: of `collect`.
    """
    words = [split_words(pipe.tokenizer, edit.prompt) for edit in edits]
    weights, is_word = stack_weights(words, attention.shape[-1])
    first, last = (word_pictures(maps, weights) for maps in attention)
    roles, likeness, _ = decide_roles(first, is_word, 0.9, 0.6)
    reference = likeness.masked_fill(~is_word, -1).argmax(1)
    rows = torch.arange(len(edits))
    values = last.float() / 255
    final_word = is_word.sum(1)
    rng = np.random.default_rng(SEED)
    drawn = torch.tensor([1 + int(rng.integers(count)) for count in final_word.tolist()])
    refined = {
        "start token only": values[:, 0],
        "reference word only": values[rows, reference],
        "last word only": values[rows, final_word],
        "random word": values[rows, drawn],
        "mean of words": (values * is_word[..., None, None]).sum(1) / final_word[:, None, None],
        "no background subtraction": refine(last, torch.where(roles == BACKGROUND, 0, roles)),
        "every word an object": refine(last, (is_word * OBJECT).to(torch.int8)),
    }
    return {name: stretch(blur(blur(picture))) for name, picture in refined.items()}


def diffedit_maps(pipe: InstDiffEditPipeline, edits: Sequence[Edit]) -> dict[str, Tensor]:
    """Soft masks of two DiffEdits, ``[edits, 32, 32]`` in [0, 1]: the repository's, and the paper's as in diffusers."""
    found: dict[str, list[Tensor]] = {"repository's DiffEdit": [], "DiffEdit as in diffusers": []}
    begin = start_index(STEPS, STRENGTH)
    seeds = noise_seeds(torch.Generator().manual_seed(SEED), DIFFEDIT_NOISES)
    with torch.no_grad():
        for edit in edits:
            latents = to_tensor([edit.picture()], EDGE, EDGE) * pipe.vae.config.scaling_factor
            noise = noises(seeds, latents)
            embeddings = pipe._encode_prompts([edit.source_prompt, edit.prompt], None, guided=True)
            unconditional, source, target = embeddings[:1], embeddings[2:3], embeddings[3:4]
            distances, _, _ = baselines.diffedit_distances(
                pipe.unet, pipe.scheduler, latents, noise, source, target, unconditional, STEPS, begin, GUIDANCE,
                batch=DIFFEDIT_NOISES,
            )  # fmt: skip
            soft = stretch(distances.mean(0))
            found["repository's DiffEdit"].append(blur(soft[None], baselines.GAUSSIAN)[0])
            pipe.scheduler.set_timesteps(STEPS)
            noised = NoiseLevels(pipe.scheduler).noised(latents, noise, begin)
            predictions = [
                guided_noise(
                    pipe.unet,
                    pipe.scheduler,
                    noised,
                    pipe.scheduler.timesteps[begin],
                    torch.cat([unconditional, phrase]).repeat_interleave(DIFFEDIT_NOISES, 0),
                    GUIDANCE,
                )
                for phrase in (source, target)
            ]
            difference = (predictions[0] - predictions[1]).abs().mean((0, 1))
            # Clamped at three times the mean, as diffusers does; a threshold of 0.5 is its own.
            found["DiffEdit as in diffusers"].append((difference / (3 * difference.mean())).clamp(max=1))
    return {name: torch.stack(maps) for name, maps in found.items()}


def centre_boxes(count: int) -> Callable[[float], np.ndarray]:
    """The control that looks at no picture: a box in the middle, of a share of the edge."""

    def boxes(share: float) -> np.ndarray:
        half = round(share * EDGE / 2)
        box = np.zeros((EDGE, EDGE), dtype=bool)
        box[EDGE // 2 - half : EDGE // 2 + half, EDGE // 2 - half : EDGE // 2 + half] = True
        return np.repeat(box[None], count, 0)

    return boxes


def masks_of(soft: Tensor) -> Callable[[float], np.ndarray]:
    """Soft masks in [0, 1] at any threshold, as bool ``[edits, 32, 32]``."""

    def cut(threshold: float) -> np.ndarray:
        return (resize((soft > threshold).to(torch.uint8) * 255, EDGE, EDGE) >= 128).numpy()

    return cut


def iou(masks: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """``[edits]``: intersection over union; an empty mask has 0."""
    both = (masks & truth).sum((1, 2))
    return both / np.maximum((masks | truth).sum((1, 2)), 1)


def score(cut: Callable[[float], np.ndarray], truth: np.ndarray, choosing: int, threshold: float | None) -> Scores:
    """IoU on the scenes behind the first ``choosing``, at ``threshold`` or at the one that is best on those."""
    if threshold is None:
        threshold = max(THRESHOLDS, key=lambda value: iou(cut(value)[:choosing], truth[:choosing]).mean())
    return Scores(threshold, iou(cut(threshold)[choosing:], truth[choosing:]))


def localisation(pipe: InstDiffEditPipeline, seed: int, choosing: int, testing: int) -> dict[str, Scores]:
    """Mask IoU of the method, its parts, both DiffEdits and the centre box.

    Args:
        seed: of the scenes. choosing, testing: how many scenes choose thresholds and are tested.
    """
    edits = [scenes.edit(seed, index) for index in range(choosing + testing)]
    truth = np.stack([edit.mask() for edit in edits])
    method = collect(pipe, edits)
    candidates: dict[str, Callable[[float], np.ndarray]] = {
        "method": masks_of(method["soft"]),
        "method, one noise": masks_of(collect(pipe, edits, num_masks=1)["soft"]),
        "method, roles in every step": masks_of(collect(pipe, edits, roles="every")["soft"]),
    }
    parts = {**rules_of_attention(pipe, edits, method["attention"]), **diffedit_maps(pipe, edits)}
    candidates |= {name: masks_of(soft) for name, soft in parts.items()}
    candidates["centre box"] = centre_boxes(len(edits))
    found = {name: score(cut, truth, choosing, None) for name, cut in candidates.items()}
    found["method, the paper's threshold"] = score(candidates["method"], truth, choosing, PAPER_THRESHOLD)
    return found


def editing(pipe: InstDiffEditPipeline, seed: int, first: int, count: int, threshold: float) -> dict[str, dict]:
    """What edits change inside and outside of the true mask, decoded directly with one noise.

    Returns:
        variant -> "outside" (mean absolute change of pixels in [0, 1] outside of the true mask), "done" (share of edits
        whose object is what was asked for), "kept" (share whose other object is still what it was).
    """
    edits = [scenes.edit(seed, index) for index in range(first, first + count)]
    truth = np.stack([edit.mask() for edit in edits])
    before = to_tensor([edit.picture() for edit in edits], EDGE, EDGE)
    results = {}
    for name in ("method", "true mask", "SDEdit"):
        after = torch.cat(
            [
                _edited(pipe, edits[start : start + CHUNK], truth[start : start + CHUNK], name, threshold)
                for start in range(0, count, CHUNK)
            ]
        )
        change = ((after.clamp(-1, 1) - before).abs().mean(1) / 2).numpy()
        looks = [_look(picture, edit) for picture, edit in zip(after, edits, strict=True)]
        results[name] = {
            "outside": float(np.mean([c[~mask].mean() for c, mask in zip(change, truth, strict=True)])),
            "done": float(
                np.mean([look[edit.changed] == _name(edit, True) for look, edit in zip(looks, edits, strict=True)])
            ),
            "kept": float(
                np.mean([look[1 - edit.changed] == _name(edit, False) for look, edit in zip(looks, edits, strict=True)])
            ),
        }
    return results


def _edited(
    pipe: InstDiffEditPipeline, edits: Sequence[Edit], truth: np.ndarray, variant: str, threshold: float
) -> Tensor:
    """Edited pictures ``[edits, 3, 32, 32]``, about in [-1, 1]."""
    forced = {"SDEdit": torch.ones(truth.shape), "true mask": torch.from_numpy(truth).float()}.get(variant)

    def put(pipe: Any, step: int, timestep: Tensor, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return {} if forced is None else {"mask": forced}

    found = pipe(
        [edit.picture() for edit in edits],
        [edit.prompt for edit in edits],
        STRENGTH,
        STEPS,
        GUIDANCE,
        1,
        threshold,
        matched_noise=True,
        output_type="latent",
        callback_on_step_end=put,
        callback_on_step_end_tensor_inputs=("mask",),
    )
    return found.images / pipe.vae.config.scaling_factor


def _name(edit: Edit, changed: bool) -> tuple[str, str]:
    """Colour and shape that one of the two objects shall have."""
    thing = edit.target.things[edit.changed if changed else 1 - edit.changed]
    return thing.colour, thing.shape


def _look(picture: Tensor, edit: Edit) -> list[tuple[str, str]]:
    """What each object of a picture looks most like: the nearest rendering of any colour and shape at its place."""
    pixels = ((picture.clamp(-1, 1) / 2 + 0.5) * 255).permute(1, 2, 0).numpy()
    found = []
    for thing in edit.scene.things:
        best = min(
            ((colour, shape) for colour in miniworld.COLOURS for shape in miniworld.SHAPES),
            key=lambda look: _distance(pixels, thing, *look),
        )
        found.append(best)
    return found


def _distance(picture: np.ndarray, thing: miniworld.Thing, colour: str, shape: str) -> float:
    window, drawn = _rendered(thing.x, thing.y, thing.radius, thing.size, colour, shape)
    return float(np.square(picture[window] - drawn).sum())


_CACHE: dict[tuple, tuple[tuple[slice, slice], np.ndarray]] = {}


def _rendered(
    x: int, y: int, radius: int, size: str, colour: str, shape: str
) -> tuple[tuple[slice, slice], np.ndarray]:
    key = (x, y, radius, size, colour, shape)
    if key not in _CACHE:
        scale = EDGE / miniworld.UNITS
        rows = slice(max(int((y - radius) * scale) - 1, 0), int((y + radius) * scale) + 2)
        columns = slice(max(int((x - radius) * scale) - 1, 0), int((x + radius) * scale) + 2)
        alone = miniworld.Scene((miniworld.Thing(shape, colour, size, x, y, radius),), miniworld.UNITS // 3)
        _CACHE[key] = (rows, columns), miniworld.render_array(alone, EDGE)[rows, columns].astype(np.float32)
    return _CACHE[key]


def gate(pipe: InstDiffEditPipeline, seed: int, count: int, both: bool = False) -> tuple[float, float]:
    """Validity gate: how well the last word's attention tells its object's pixels from the rest (mean AUC).

    Pictures are not edited: the prompt names one of the two objects that are there, as prompts of edits name one.

    Args:
        both: name the other object too, before it.

    Returns:
        From all other pixels; and from the other object's alone, which says whether attention knows the word or only
        that there is an object.
    """
    edits = [scenes.edit(seed, index) for index in range(count)]
    areas = []
    for start in range(0, count, CHUNK):
        part = edits[start : start + CHUNK]
        prompts = [_both(edit) if both else edit.source_prompt for edit in part]
        seen: dict[int, Tensor] = {}

        def keep(pipe: Any, step: int, timestep: Tensor, tensors: dict[str, Tensor], seen: Any = seen) -> None:
            seen[step] = tensors["attention"]

        pipe(
            [edit.picture() for edit in part],
            prompts,
            STRENGTH,
            STEPS,
            GUIDANCE,
            1,
            output_type="latent",
            callback_on_step_end=keep,
            callback_on_step_end_tensor_inputs=("attention",),
        )
        words = [split_words(pipe.tokenizer, prompt) for prompt in prompts]
        weights, is_word = stack_weights(words, seen[0].shape[-1])
        pictures = resize(word_pictures(seen[max(seen)], weights), EDGE, EDGE)
        for row, edit in enumerate(part):
            last = pictures[row, int(is_word[row].sum())].numpy()
            named, other = (miniworld.masks(edit.scene, EDGE)[place] for place in (edit.changed, 1 - edit.changed))
            areas.append((auc(last, named), auc(last[named | other], named[named | other])))
    rest, other_object = np.mean(areas, 0)
    return float(rest), float(other_object)


def _both(edit: Edit) -> str:
    """A true caption of the picture before the edit that ends in the object to be edited."""
    return f"{scenes.phrase(edit.scene.things[1 - edit.changed])} and {edit.source_prompt}"


def auc(values: np.ndarray, truth: np.ndarray) -> float:
    """Probability that a pixel of the object has a higher value than one outside of it; equal ones count half."""
    inside, outside = np.sort(values[truth]), np.sort(values[~truth])
    below = np.searchsorted(outside, inside, "left") + np.searchsorted(outside, inside, "right")
    return float(below.sum() / (2 * len(inside) * len(outside)))
