"""Rules that make a mask of a picture and a prompt: the method, its parts, both DiffEdits, and controls.

A rule is a soft mask for each picture, or a mask that a number between 0 and 1 describes. Every rule sees the same
pictures, prompts, noises and attention as the method does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from inst_diff_edit.data.scenes import EDGE, GROUNDS, NOUNS, PATTERNS, Edit
from inst_diff_edit.evaluation import baselines
from inst_diff_edit.evidence.arms import (
    BARRED,
    BOTH,
    BOX,
    DIFFUSERS,
    DIFFUSERS_BARE,
    EMPTY,
    FULL,
    GUIDANCE,
    LAST,
    MEAN,
    NOISES,
    NOUN,
    REFERENCE,
    REPOSITORY,
    REPOSITORY_BARE,
    START,
    STEPS,
    STRENGTH,
    SUM,
    UNSUBTRACTED,
)
from inst_diff_edit.inputs import to_tensor
from inst_diff_edit.masks import BACKGROUND, blur, decide_roles, refine, stretch, word_pictures
from inst_diff_edit.pipeline import SEED, InstDiffEditPipeline
from inst_diff_edit.resize import resize
from inst_diff_edit.sampling import NoiseLevels, guided_noise, noise_seeds, noises, start_index
from inst_diff_edit.words import Words, split_words, stack_weights

OBJECT_LIKENESS, BACKGROUND_LIKENESS = 0.9, 0.6
CHUNK = 25
# Words that name nothing in a picture.
FUNCTION_WORDS = ("a", "and", "on")

# Cuts a rule's soft masks at a threshold: bool ``[edits, 32, 32]``.
Cut = Callable[[float], np.ndarray]


def short_prompt(edit: Edit) -> str:
    """The noun and the ground of an edit's prompt, without the words between: "lemon grass"."""
    return f"{edit.target.things[edit.changed].noun} {edit.scene.ground}"


def words_of(pipe: InstDiffEditPipeline, prompts: Sequence[str]) -> list[Words]:
    """The words of every prompt."""
    return [split_words(pipe.tokenizer, prompt) for prompt in prompts]


def rows_of(words: Sequence[Words], kind: str, last: bool = True) -> Tensor:
    """``[prompts]`` int64: the row of a kind of word in stacked pictures, the start token being row 0.

    Args:
        kind: of `kind_of`. last: the last such word of a prompt, or its first.
    """
    found = []
    for one in words:
        places = [place for place, word in enumerate(one.text, 1) if kind_of(word) == kind]
        found.append(places[-1 if last else 0])
    return torch.tensor(found)


def kind_of(word: str) -> str:
    """ "noun", "ground", "pattern", or the word itself."""
    for kind, members in (("noun", NOUNS), ("ground", GROUNDS), ("pattern", PATTERNS)):
        if word in members:
            return kind
    return word


def of_attention(pipe: InstDiffEditPipeline, prompts: Sequence[str], attention: Tensor) -> dict[str, Tensor]:
    """Soft masks ``[edits, 64, 64]`` in [0, 1] by rules that use part of what the method uses.

    Args:
        attention: ``[2, edits, 16, 16, positions]``: the running mean after the first and after the last step.
    """
    words = words_of(pipe, prompts)
    weights, is_word = stack_weights(words, attention.shape[-1])
    first, last = (word_pictures(maps, weights) for maps in attention)
    roles, likeness, _ = decide_roles(first, is_word, OBJECT_LIKENESS, BACKGROUND_LIKENESS)
    named = torch.zeros_like(is_word)
    for row, one in enumerate(words):
        for place, word in enumerate(one.text, 1):
            named[row, place] = word not in FUNCTION_WORDS
    barred, _, _ = decide_roles(first, named, OBJECT_LIKENESS, BACKGROUND_LIKENESS)
    rows, values = torch.arange(len(words)), last.float() / 255
    count = is_word.sum(1)
    # One share of attention, of all words together: what stretching takes from every word stays in the sum.
    counted = ((weights > 0) & is_word[..., None]).any(1).float()  # [prompts, positions]
    of_words = torch.einsum("pt,phct->phc", counted, attention[1])
    raw = resize((255 * stretch(of_words)).to(torch.uint8), *last.shape[-2:]).float() / 255
    refined = {
        START: values[:, 0],
        REFERENCE: values[rows, reference(likeness, is_word)],
        LAST: values[rows, count],
        MEAN: (values * is_word[..., None, None]).sum(1) / count[:, None, None],
        SUM: raw,
        NOUN: values[rows, rows_of(words, "noun")],
        BARRED: refine(last, barred),
        UNSUBTRACTED: refine(last, torch.where(roles == BACKGROUND, 0, roles)),
    }
    return {name: stretch(blur(blur(picture))) for name, picture in refined.items()}


def reference(likeness: Tensor, is_word: Tensor) -> Tensor:
    """``[prompts]``: the row of the word that is most like the inverted start token's picture."""
    return likeness.masked_fill(~is_word, -1).argmax(1)


def diffedits(pipe: InstDiffEditPipeline, edits: Sequence[Edit]) -> dict[str, Tensor]:
    """Soft masks of the repository's DiffEdit and of the paper's as in diffusers, ``[edits, 32, 32]`` in [0, 1].

    Both with the source phrase, and with no text in its place, as diffusers' pipeline has it by default.
    """
    begin = start_index(STEPS, STRENGTH)
    seeds = noise_seeds(torch.Generator().manual_seed(SEED), NOISES)
    found: dict[str, list[Tensor]] = {name: [] for name in (REPOSITORY, REPOSITORY_BARE, DIFFUSERS, DIFFUSERS_BARE)}
    for at in range(0, len(edits), CHUNK):
        part = edits[at : at + CHUNK]
        one = to_tensor([edit.picture() for edit in part], EDGE, EDGE) * pipe.vae.config.scaling_factor
        noise = torch.cat([noises(seeds, row[None]) for row in one])  # [edits * noises, 3, 32, 32]
        latents = one.repeat_interleave(NOISES, 0)
        last, first = {}, {}
        for phrase, prompts in (
            ("source", [edit.source_prompt for edit in part]),
            ("nothing", [""] * len(part)),
            ("target", [edit.prompt for edit in part]),
        ):
            with torch.no_grad():
                told = pipe._encode_prompts(prompts, None, guided=True).repeat_interleave(NOISES, 0)
                pipe.scheduler.set_timesteps(STEPS)  # forgets the step that it was at
                noised = NoiseLevels(pipe.scheduler).noised(latents, noise, begin)
                time = pipe.scheduler.timesteps[begin]
                first[phrase] = guided_noise(pipe.unet, pipe.scheduler, noised, time, told, GUIDANCE)
                last[phrase] = baselines.last_noise(
                    pipe.unet, pipe.scheduler, latents, noise, told, STEPS, begin, GUIDANCE
                )
        for phrase, (repository, diffusers) in {
            "source": (REPOSITORY, DIFFUSERS), "nothing": (REPOSITORY_BARE, DIFFUSERS_BARE),
        }.items():  # fmt: skip
            distance = (last["target"] - last[phrase]).norm(dim=1).unflatten(0, (-1, NOISES)).mean(1)
            found[repository].append(blur(stretch(distance), baselines.GAUSSIAN))
            difference = (first["target"] - first[phrase]).abs().mean(1).unflatten(0, (-1, NOISES)).mean(1)
            # Clamped at three times the mean, as diffusers does; a threshold of 0.5 is its own.
            most = 3 * difference.mean((1, 2), keepdim=True)
            found[diffusers].append((difference / most.clamp(min=1e-12)).clamp(max=1))
    return {name: torch.cat(maps) for name, maps in found.items()}


def controls(edits: Sequence[Edit]) -> dict[str, Cut]:
    """Masks that look at no picture, or that know the objects and not the word."""
    both = np.stack([edit.mask() | edit.area(1 - edit.changed) for edit in edits])

    def box(share: float) -> np.ndarray:
        half = round(share * EDGE / 2)
        inside = np.zeros_like(both)
        inside[:, EDGE // 2 - half : EDGE // 2 + half, EDGE // 2 - half : EDGE // 2 + half] = True
        return inside

    return {
        BOX: box,
        BOTH: lambda threshold: both,
        FULL: lambda threshold: np.ones_like(both),
        EMPTY: lambda threshold: np.zeros_like(both),
    }


def cut_of(soft: Tensor) -> Cut:
    """Soft masks in [0, 1] at any threshold, as bool ``[edits, 32, 32]``."""

    def cut(threshold: float) -> np.ndarray:
        return (resize((soft > threshold).to(torch.uint8) * 255, EDGE, EDGE) >= 128).numpy()

    return cut


def reference_counts(
    pipe: InstDiffEditPipeline, prompts: Sequence[str], attention: Tensor
) -> tuple[dict[str, int], dict[str, dict[str, int]]]:
    """What the method's first step decides: how often each kind of word is the reference, and has which role.

    Args:
        attention: ``[edits, 16, 16, positions]`` of the first step.

    Returns:
        kind of word -> prompts whose reference it is; kind of word -> {"object", "neither", "background"} -> words.
    """
    words = words_of(pipe, prompts)
    weights, is_word = stack_weights(words, attention.shape[-1])
    decided, likeness, _ = decide_roles(
        word_pictures(attention, weights), is_word, OBJECT_LIKENESS, BACKGROUND_LIKENESS
    )
    chosen = reference(likeness, is_word)
    counts: dict[str, int] = {}
    roles: dict[str, dict[str, int]] = {}
    for row, one in enumerate(words):
        for place, word in enumerate(one.text, 1):
            kind = kind_of(word)
            counts[kind] = counts.get(kind, 0) + int(chosen[row] == place)
            of_kind = roles.setdefault(kind, {"object": 0, "neither": 0, "background": 0})
            of_kind[{1: "object", 0: "neither", -1: "background"}[int(decided[row, place])]] += 1
    return counts, roles


def auc(values: Any, truth: np.ndarray) -> float:
    """Probability that a pixel of the object has a higher value than one outside of it; equal ones count half."""
    inside, outside = np.sort(values[truth]), np.sort(values[~truth])
    below = np.searchsorted(outside, inside, "left") + np.searchsorted(outside, inside, "right")
    return float(below.sum() / (2 * len(inside) * len(outside)))
