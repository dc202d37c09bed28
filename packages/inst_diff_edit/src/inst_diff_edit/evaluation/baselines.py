"""What the method is compared with, on the same models: SDEdit, and DiffEdit as the authors' repository has it.

Their "DiffEdit" is not the algorithm of the DiffEdit paper (that one is diffusers' `StableDiffusionDiffEditPipeline`):
for each of ten noises the picture is denoised twice from half strength, once under a source and once under a target
phrase, and the two guided noise predictions of the *last* step are compared.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from inst_diff_edit.masks import blur, stretch
from inst_diff_edit.sampling import NoiseLevels, denoise

# A Gaussian of sigma 1, over five pixels.
_WEIGHTS = [math.exp(-(offset**2) / 2) for offset in range(-2, 3)]
GAUSSIAN = tuple(weight / sum(_WEIGHTS) for weight in _WEIGHTS)


def sdedit(
    unet: nn.Module,
    scheduler: Any,
    latents: Tensor,
    noise: Tensor,
    embeddings: Tensor,
    steps: int,
    start: int,
    guidance_scale: float = 7.5,
) -> Tensor:
    """SDEdit: noise to the level of step ``start``, denoise under the target prompt, no mask.

    Args:
        latents, noise: ``[rows, channels, height, width]``; latents scaled.
        embeddings: ``[2 * rows, 77, width]``, unconditional half first.

    Returns:
        The edited latents, ``[rows, channels, height, width]``.
    """
    scheduler.set_timesteps(steps)
    noised = NoiseLevels(scheduler).noised(latents, noise, start)
    return denoise(unet, scheduler, noised, start, embeddings, guidance_scale)


def last_noise(
    unet: nn.Module,
    scheduler: Any,
    latents: Tensor,
    noise: Tensor,
    embeddings: Tensor,
    steps: int,
    start: int,
    guidance_scale: float = 7.5,
) -> Tensor:
    """The guided noise prediction of SDEdit's last step; arguments and shapes as in `sdedit`."""
    kept: list[Tensor] = []

    def keep(index: int, predicted: Tensor) -> None:
        kept[:] = [predicted]

    scheduler.set_timesteps(steps)
    noised = NoiseLevels(scheduler).noised(latents, noise, start)
    denoise(unet, scheduler, noised, start, embeddings, guidance_scale, after_noise=keep)
    return kept[0]


def diffedit_distances(
    unet: nn.Module,
    scheduler: Any,
    latents: Tensor,
    noise: Tensor,
    source: Tensor,
    target: Tensor,
    unconditional: Tensor,
    steps: int,
    start: int,
    guidance_scale: float = 7.5,
    batch: int = 1,
) -> tuple[Tensor, Tensor, Tensor]:
    """The repository's DiffEdit: how differently the last noise is predicted under two phrases.

    Args:
        latents: ``[1, channels, height, width]`` of one picture, scaled.
        noise: ``[noises, channels, height, width]``; the same for both phrases.
        source, target, unconditional: ``[1, 77, width]`` text embeddings.
        batch: noises at once; the repository takes one at a time.

    Returns:
        Distances ``[noises, height, width]``: the norm over channels of the difference; and both predictions
        ``[noises, channels, height, width]``.
    """
    predictions: dict[str, list[Tensor]] = {"source": [], "target": []}
    for part in noise.split(batch):
        for name, phrase in (("source", source), ("target", target)):
            embeddings = torch.cat([unconditional, phrase]).repeat_interleave(len(part), 0)
            rows = latents.expand(len(part), -1, -1, -1)
            predictions[name].append(last_noise(unet, scheduler, rows, part, embeddings, steps, start, guidance_scale))
    ours, theirs = torch.cat(predictions["source"]), torch.cat(predictions["target"])
    return (ours - theirs).norm(dim=1), ours, theirs


def diffedit_mask(distances: Tensor, threshold: float = 0.3) -> tuple[Tensor, Tensor]:
    """From distances ``[noises, height, width]`` to a soft and a binary mask, ``[height, width]`` uint8 each.

    Mean over noises, stretched to 0..255, blurred by a Gaussian, cut at ``255 * threshold``.
    """
    soft = (stretch(distances.mean(0)) * 255).to(torch.uint8)
    blurred = blur(soft.float()[None], GAUSSIAN)[0]
    return soft, (blurred > 255 * threshold).to(torch.uint8) * 255
