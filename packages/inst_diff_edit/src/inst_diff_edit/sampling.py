"""Noise levels and denoising from the middle of a schedule, for the method and its baselines alike."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from diffusers import LMSDiscreteScheduler
from torch import Tensor, nn

from tenfold import UserError

# What a schedule needs to keep of a model's own scheduler when another kind takes its place.
SCHEDULE = ("beta_start", "beta_end", "beta_schedule", "trained_betas", "num_train_timesteps", "prediction_type")
# Noise seeds are drawn below this, as the authors' code draws them.
SEEDS_BELOW = 2**62


def lms_scheduler(scheduler: Any) -> LMSDiscreteScheduler:
    """The authors' scheduler on a model's own noise schedule: linear multistep, order 4, no offset of steps."""
    return LMSDiscreteScheduler(**{name: scheduler.config[name] for name in SCHEDULE if name in scheduler.config})


class NoiseLevels:
    """How strong picture and noise are at each step of a schedule; plain numbers, so that no device has to answer.

    Args:
        scheduler: of diffusers, after `set_timesteps`.
    """

    def __init__(self, scheduler: Any) -> None:
        if hasattr(scheduler, "sigmas"):  # picture + sigma * noise
            sigmas = [float(sigma) for sigma in scheduler.sigmas]
            self.levels = [(1.0, sigma) for sigma in sigmas]
        else:
            kept = scheduler.alphas_cumprod.cpu()[scheduler.timesteps.cpu().long()].double()
            self.levels = [(float(share.sqrt()), float((1 - share).sqrt())) for share in kept] + [(1.0, 0.0)]

    def noised(self, latents: Tensor, noise: Tensor, index: int) -> Tensor:
        """``latents`` and ``noise``, both ``[rows, channels, height, width]``, at the level before step ``index``."""
        picture, strength = self.levels[index]
        return picture * latents + strength * noise


def start_index(steps: int, strength: float) -> int:
    """The first of ``steps`` scheduler steps that is taken: the last ``int(steps * strength)`` are.

    Raises:
        UserError: a strength outside (0, 1], or one that leaves no step.
    """
    taken = int(steps * strength) if 0 < strength <= 1 else 0
    if not taken:
        raise UserError(f"strength {strength} of {steps} steps", "strength", f"above {1 / steps:.3g}, at most 1")
    return steps - taken


def noise_seeds(generator: torch.Generator, count: int) -> list[int]:
    """``count`` seeds, one for every noise, from one generator on the CPU."""
    return torch.randint(0, SEEDS_BELOW, (count,), generator=generator).tolist()


def noises(seeds: list[int], like: Tensor) -> Tensor:
    """``[seeds, channels, height, width]``: each from a generator of its own on the device of ``like`` (one row)."""
    drawn = []
    for seed in seeds:
        generator = torch.Generator(like.device).manual_seed(seed)
        drawn.append(torch.randn(like.shape, generator=generator, device=like.device, dtype=like.dtype))
    return torch.cat(drawn)


def blend_outside(latents: Tensor, outside: Tensor, mask: Tensor) -> Tensor:
    """``latents`` where ``mask`` is 1, ``outside`` where it is 0: ``[rows, channels, height, width]``, broadcast."""
    return torch.lerp(outside, latents, mask)  # exact at both ends


def guided_noise(
    unet: nn.Module, scheduler: Any, latents: Tensor, timestep: Tensor, embeddings: Tensor, guidance_scale: float
) -> Tensor:
    """The noise that the UNet sees in ``latents [rows, ...]``, under classifier-free guidance.

    Args:
        embeddings: ``[2 * rows, 77, width]``, unconditional half first; ``[rows, ...]`` without guidance.
    """
    guided = len(embeddings) == 2 * len(latents)
    model_input = scheduler.scale_model_input(torch.cat([latents, latents]) if guided else latents, timestep)
    noise = unet(model_input, timestep, encoder_hidden_states=embeddings).sample
    if not guided:
        return noise
    unconditional, conditional = noise.chunk(2)
    return unconditional + guidance_scale * (conditional - unconditional)


def denoise(
    unet: nn.Module,
    scheduler: Any,
    latents: Tensor,
    start: int,
    embeddings: Tensor,
    guidance_scale: float,
    after_step: Callable[[int, Tensor], Tensor] = lambda index, latents: latents,
    after_noise: Callable[[int, Tensor], None] = lambda index, noise: None,
    step_options: dict[str, Any] | None = None,
) -> Tensor:
    """Denoise from step ``start`` of the scheduler's timesteps to the end.

    Args:
        latents: ``[rows, channels, height, width]`` at the level before step ``start``.
        after_step: what becomes of the latents after every step, e.g. blending; gets the step's index.
        after_noise: sees the guided noise of every step.
        step_options: for the scheduler's ``step``, e.g. eta.
    """
    # Kept on the CPU: schedulers compare timesteps with their own list.
    for index, timestep in enumerate(scheduler.timesteps[start:], start):
        noise = guided_noise(unet, scheduler, latents, timestep, embeddings, guidance_scale)
        after_noise(index, noise)
        latents = scheduler.step(noise, timestep, latents, **(step_options or {})).prev_sample
        latents = after_step(index, latents)
    return latents
