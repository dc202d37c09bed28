"""The mask stage of a call: after every step attention becomes a mask, and what lies outside goes back to the original.

stage = MaskStage(originals, noise, words, levels, MaskOptions(threshold=0.2))
latents = stage.after_step(index, latents, recorder.mean())  # for every step of the scheduler
stage.found.mask  # the last one
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from inst_diff_edit.masks import InstantMask, instant_mask
from inst_diff_edit.resize import resize
from inst_diff_edit.sampling import NoiseLevels, blend_outside
from inst_diff_edit.words import Words, stack_weights

# (index of the step, tensors by name) -> those that replace "latents" or "mask".
Watch = Callable[[int, dict[str, Tensor]], Mapping[str, Tensor]]


@dataclass(frozen=True)
class MaskOptions:
    """How masks are found and used.

    Attributes:
        threshold: of the binary mask.
        object_threshold, background_threshold: of words' similarity to the reference word.
        roles_anew: decide roles in every step; False: in the first one (the paper).
        matched_noise: blend with the original at the level after the step; False: before it (the authors).
        keep_masks: keep the mask of every step.
    """

    threshold: float = 0.2
    object_threshold: float = 0.9
    background_threshold: float = 0.6
    roles_anew: bool = False
    matched_noise: bool = False
    keep_masks: bool = False


class MaskStage:
    """Masks of a batch of pictures while they are denoised; rows are pictures x noises, a picture's side by side.

    Args:
        originals: latents ``[rows, channels, height, width]``.
        noise: of the same shape.
        words: of every picture's prompt.
        positions: tokens of a prompt with its padding, 77.
        levels: of the scheduler, after its timesteps were set.
        options: see there.
        watch: sees "latents" as the step leaves them and "denoised", before blending; "mask" ``[pictures, height,
            width]``, "attention" and "soft_mask". With another mask the step is blended anew; other latents stand.

    Attributes:
        found: the last masks; None before the first step.
        finite: whether attention and latents of every step were; a tensor, to be asked for once, after the last step.
    """

    def __init__(
        self,
        originals: Tensor,
        noise: Tensor,
        words: Sequence[Words],
        positions: int,
        levels: NoiseLevels,
        options: MaskOptions,
        watch: Watch | None = None,
    ) -> None:
        self.originals, self.noise, self.levels = originals, noise, levels
        self.options, self.watch, self.pictures = options, watch, len(words)
        self.weights, self.is_word = (part.to(originals.device) for part in stack_weights(words, positions))
        self.found: InstantMask | None = None
        self.finite: Tensor | bool = True
        self._masks: list[Tensor] = []

    def start(self, index: int) -> Tensor:
        """The noised originals that step `index` begins with, ``[rows, channels, height, width]``."""
        return self.levels.noised(self.originals, self.noise, index)

    def after_step(self, index: int, latents: Tensor, attention: Tensor) -> Tensor:
        """The latents with everything outside of the mask put back.

        Args:
            index: of the scheduler's step.
            latents: ``[rows, channels, height, width]``, denoised by that step.
            attention: ``[rows, map height, map width, positions]``, mean over layers, heads and steps so far.
        """
        rows, _, height, width = latents.shape
        options = self.options
        attention = attention.unflatten(0, (self.pictures, -1)).mean(1)  # over the picture's noises
        # Masks are whole numbers and blending drops what lies outside of them: both would hide it.
        self.finite = attention.isfinite().all() & latents.isfinite().all() & self.finite
        self.found = instant_mask(
            attention,
            self.weights,
            self.is_word,
            threshold=options.threshold,
            object_threshold=options.object_threshold,
            background_threshold=options.background_threshold,
            roles=None if self.found is None or options.roles_anew else self.found.roles,
        )
        mask = resize(self.found.mask, height, width).to(latents.dtype) / 255  # [pictures, height, width]
        if options.keep_masks:
            self._masks.append(self.found.mask)
        outside = self.start(index + options.matched_noise)

        def blended(mask: Tensor) -> Tensor:
            return blend_outside(latents, outside, mask.repeat_interleave(rows // self.pictures, 0)[:, None])

        kept = blended(mask)
        if self.watch is None:
            return kept
        offered = {"latents": kept, "denoised": latents, "mask": mask}
        offered |= {"attention": attention, "soft_mask": self.found.soft}
        replaced = self.watch(index, offered)
        if (other := replaced.get("latents", kept)) is not kept:
            return other
        return blended(replaced["mask"]) if "mask" in replaced else kept

    @property
    def step_masks(self) -> Tensor | None:
        """``[pictures, steps, rows, columns]`` uint8, the mask of every step; None where they are not kept."""
        return torch.stack(self._masks, 1) if self.options.keep_masks else None
