"""What edits of the mini model change: outside of the true mask, and whether the object becomes what was asked for.

An object is what it looks most like: the nearest rendering of any noun and pattern, at its place on the scene's ground.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from inst_diff_edit.data import scenes
from inst_diff_edit.data.scenes import EDGE, NOUNS, PATTERNS, RADIUS, Edit
from inst_diff_edit.evidence.arms import GUIDANCE, SDEDIT, STEPS, STRENGTH, TRUE_MASK, VARIANTS
from inst_diff_edit.evidence.rules import CHUNK
from inst_diff_edit.inputs import to_tensor
from inst_diff_edit.pipeline import InstDiffEditPipeline


def editing(pipe: InstDiffEditPipeline, edits: Sequence[Edit], threshold: float) -> dict[str, dict[str, list[float]]]:
    """Edits by the method, with the true mask and without any, decoded directly, with one noise.

    Args:
        threshold: of the method's masks.

    Returns:
        variant -> one number an edit: "outside", the mean absolute change of pixels in [0, 1] outside of the true mask;
        "done", whether the object is what was asked for; "kept", whether the other object is still what it was.
    """
    truth = np.stack([edit.mask() for edit in edits])
    before = to_tensor([edit.picture() for edit in edits], EDGE, EDGE)
    found = {}
    for variant in VARIANTS:
        parts = [slice(at, at + CHUNK) for at in range(0, len(edits), CHUNK)]
        after = torch.cat([_edited(pipe, edits[part], truth[part], variant, threshold) for part in parts])
        change = ((after.clamp(-1, 1) - before).abs().mean(1) / 2).numpy()
        looks = [look(picture, edit) for picture, edit in zip(after, edits, strict=True)]
        found[variant] = {
            "outside": [float(one[~mask].mean()) for one, mask in zip(change, truth, strict=True)],
            "done": [float(seen[edit.changed] == _asked(edit, True)) for seen, edit in zip(looks, edits, strict=True)],
            "kept": [
                float(seen[1 - edit.changed] == _asked(edit, False)) for seen, edit in zip(looks, edits, strict=True)
            ],
        }
    return found


def _edited(
    pipe: InstDiffEditPipeline, edits: Sequence[Edit], truth: np.ndarray, variant: str, threshold: float
) -> Tensor:
    """Edited pictures ``[edits, 3, 32, 32]``, about in [-1, 1]."""
    forced = {SDEDIT: torch.ones(truth.shape), TRUE_MASK: torch.from_numpy(truth).float()}.get(variant)

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


def _asked(edit: Edit, changed: bool) -> tuple[str, str]:
    """Noun and pattern that one of the two objects shall have."""
    thing = edit.target.things[edit.changed if changed else 1 - edit.changed]
    return thing.noun, thing.pattern


def look(picture: Tensor, edit: Edit) -> list[tuple[str, str]]:
    """Noun and pattern that each object of ``picture [3, 32, 32]`` looks most like."""
    pixels = ((picture.clamp(-1, 1) / 2 + 0.5) * 255).permute(1, 2, 0).numpy()
    ground = scenes.ground(edit.scene.ground, edit.scene.grain)
    found = []
    for thing in edit.scene.things:
        window = tuple(slice(max(0, at - RADIUS - 1), at + RADIUS + 1) for at in (thing.y, thing.x))

        def distance(noun: str, pattern: str, thing: Any = thing, window: Any = window) -> float:
            drawn = scenes.draw_on(ground, replace(thing, noun=noun, pattern=pattern))[window]
            return float(np.square(pixels[window] - drawn).sum())

        looks = [(noun, pattern) for noun in NOUNS for pattern in PATTERNS]
        found.append(min(looks, key=lambda one: distance(*one)))
    return found
