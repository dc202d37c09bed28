"""Edit pairs: a scene, the same scene with one object changed, the words for it, and the pixels that may change."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from tenfold.data.miniworld.draws import EDIT, Draws
from tenfold.data.miniworld.language import describe
from tenfold.data.miniworld.raster import masks
from tenfold.data.miniworld.world import COLOURS, SHAPES, Scene
from tenfold.errors import UserError

EDITS = ("recolour", "reshape", "remove")


@dataclass(frozen=True)
class EditPair:
    """Two scenes that differ in one object.

    Args:
        kind: one of EDITS.
        source, target: before and after.
        changed: the object's place in `source.things`.
        instruction: what to do, in words.
        source_prompt, target_prompt: what the edited place shows before and after.
    """

    kind: str
    source: Scene
    target: Scene
    changed: int
    instruction: str
    source_prompt: str
    target_prompt: str

    def mask(self, size: int) -> np.ndarray:
        """The pixels of the changed object before or after the edit: bool `[size, size]`."""
        mask = masks(self.source, size)[self.changed]
        if self.kind != "remove":
            mask = mask | masks(self.target, size)[self.changed]
        return mask


def edit_pair(scene: Scene, seed: int, index: int) -> EditPair:
    """One change to a scene that has at least one object; the same on every platform.

    Raises:
        UserError: an empty scene; seed or index out of range.
    """
    if not scene.things:
        raise UserError("nothing to edit", f"scene {index} of seed {seed}", "a scene with at least one object")
    draws = Draws.of(seed, index, EDIT)
    kind = draws.choice(EDITS)
    changed = draws.below(len(scene.things))
    thing = scene.things[changed]
    before = f"a {describe(thing)}"
    if kind == "remove":
        things = scene.things[:changed] + scene.things[changed + 1 :]
        instruction, after = f"remove the {describe(thing)}", "a plain background"
    else:
        attribute, values = ("colour", tuple(COLOURS)) if kind == "recolour" else ("shape", SHAPES)
        value = draws.choice([value for value in values if value != getattr(thing, attribute)])
        changes: dict[str, Any] = {attribute: value}
        new = replace(thing, **changes)
        things = (*scene.things[:changed], new, *scene.things[changed + 1 :])
        wanted = value if kind == "recolour" else f"into a {value}"
        verb = "make" if kind == "recolour" else "turn"
        instruction, after = f"{verb} the {describe(thing)} {wanted}", f"a {describe(new)}"
    return EditPair(kind, scene, replace(scene, things=things), changed, instruction, before, after)
