"""Noise levels and denoising from the middle of a schedule, for the method and its baselines alike."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from diffusers import LMSDiscreteScheduler
from torch import Tensor

from inst_diff_edit.inputs import require_number
from tenfold import InputError, UserError

# What the authors' scheduler does not take from a model's own: how steps are spread over the schedule.
SPACING = {
    "timestep_spacing": "linspace",
    "steps_offset": 0,
    "use_karras_sigmas": False,
    "use_exponential_sigmas": False,
    "use_beta_sigmas": False,
}
# The schedules of betas that the authors' scheduler can compute itself.
SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2")
# What the authors' scheduler can take from a model.
PREDICTIONS = ("epsilon", "v_prediction")
# What is left of the picture at the last level of a schedule that ends in pure noise; zero has no finite sigma.
LEAST_SHARE = 2**-24
# Noise seeds are drawn below this, as the authors' code draws them.
SEEDS_BELOW = 2**62
# Turns the seed of a row's first noise into that of its later ones. The CPU's generator reads the low 32 bits only.
LATER = 0x9E3779B9


def lms_scheduler(scheduler: Any) -> LMSDiscreteScheduler:
    """The authors' scheduler on a model's own noise schedule: linear multistep, order 4, no offset of steps.

    Its config keeps what only other kinds know, such as ``clip_sample``, for ``from_config`` of one of them. A schedule
    that it cannot compute itself, such as one rescaled to end in pure noise, is handed over number by number.

    Raises:
        UserError: a scheduler without such a schedule, as those of flow matching, or for a model that predicts neither
            noise nor velocity.
    """
    betas = getattr(scheduler, "betas", None)
    if betas is None:
        raise UserError("no schedule of noise", type(scheduler).__name__, "one with betas, as Stable Diffusion 1 and 2")
    refuse_other_predictions(scheduler)
    handed: dict[str, Any] = {}
    rescaled = scheduler.config.get("rescale_betas_zero_snr", False)
    if rescaled or scheduler.config.get("beta_schedule") not in SCHEDULES:
        share = torch.cumprod(1 - betas.double(), 0)  # of the picture
        share[-1] = share[-1].clamp(min=LEAST_SHARE)
        handed["trained_betas"] = (1 - share / torch.cat([share.new_ones(1), share[:-1]])).tolist()
    return LMSDiscreteScheduler.from_config(scheduler.config, **SPACING, **handed)


def refuse_other_predictions(scheduler: Any) -> None:
    """
    Raises:
        UserError: a scheduler for a model that predicts neither noise nor velocity.
    """
    predicted = scheduler.config.get("prediction_type", PREDICTIONS[0])
    if predicted not in PREDICTIONS:
        raise UserError(f"prediction_type {predicted!r:.40}", type(scheduler).__name__, " or ".join(PREDICTIONS))


class NoiseLevels:
    """How strong picture and noise are at each step of a schedule; plain numbers, so that no device has to answer.

    Args:
        scheduler: of diffusers, after `set_timesteps`.

    Raises:
        UserError: one that takes several calls of the model for a step, or cannot add noise, or is for a model that
            predicts neither noise nor velocity.
    """

    def __init__(self, scheduler: Any) -> None:
        refuse_other_predictions(scheduler)
        if len(scheduler.timesteps) != scheduler.num_inference_steps or not hasattr(scheduler, "add_noise"):
            raise UserError(
                "cannot begin in the middle of its schedule",
                type(scheduler).__name__,
                "one call of the model a step, e.g. DDIMScheduler.from_config(pipe.scheduler.config)",
            )
        one, nothing = torch.ones(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
        # What becomes of a picture without noise, and of noise without a picture: schedulers differ in their scales.
        self.levels = [
            (scheduler.add_noise(one, nothing, time).item(), scheduler.add_noise(nothing, one, time).item())
            for time in scheduler.timesteps.cpu().split(1)
        ]
        self.levels.append((1.0, 0.0))

    def noised(self, latents: Tensor, noise: Tensor, index: int) -> Tensor:
        """``latents`` and ``noise``, both ``[rows, channels, height, width]``, at the level before step ``index``."""
        picture, strength = self.levels[index]
        return picture * latents + strength * noise


def start_index(steps: int, strength: float) -> int:
    """The first of ``steps`` scheduler steps that is taken: the last ``int(steps * strength)`` are.

    Raises:
        UserError: a strength outside (0, 1], or one that leaves no step.
    """
    least = math.ceil(1000 / steps) / 1000
    expected = f"{least:g} to 1" if steps > 1 else "1"
    require_number("strength", strength, expected, lambda share: 0 < share <= 1, what=f"of {steps} steps")
    taken = int(steps * strength)
    if not taken:
        raise InputError(f"strength {strength} of {steps} steps", "strength", expected)
    return steps - taken


def noise_seeds(generator: torch.Generator, count: int) -> list[int]:
    """``count`` seeds, one for every noise, from one generator on the CPU."""
    return torch.randint(0, SEEDS_BELOW, (count,), generator=generator).tolist()


def noises(seeds: list[int], like: Tensor) -> Tensor:
    """``[seeds, channels, height, width]``: each from a generator of its own on the device of ``like`` (one row).

    Drawn in float32 whatever the dtype of ``like``, so that all of them have the same noise.
    """
    drawn = []
    for seed in seeds:
        generator = torch.Generator(like.device).manual_seed(seed)
        drawn.append(torch.randn(like.shape, generator=generator, device=like.device, dtype=torch.float32))
    return torch.cat(drawn).to(like.dtype)


def step_options(scheduler: Any, seeds: Sequence[Sequence[int]], device: torch.device) -> dict[str, Any]:
    """For the ``step`` of a scheduler that draws noise, as ancestral ones do: a generator for every row."""
    if "generator" not in inspect.signature(scheduler.step).parameters:
        return {}
    return {"generator": [torch.Generator(device).manual_seed(seed ^ LATER) for own in seeds for seed in own]}


def blend_outside(latents: Tensor, outside: Tensor, mask: Tensor) -> Tensor:
    """``latents`` where ``mask`` is 1, ``outside`` where it is 0: ``[rows, channels, height, width]``, broadcast."""
    return torch.lerp(outside, latents, mask)  # exact at both ends


def guided_noise(
    unet: Callable[..., Any],
    scheduler: Any,
    latents: Tensor,
    timestep: Tensor,
    embeddings: Tensor,
    guidance_scale: float,
    unet_timestep: Tensor | None = None,
) -> Tensor:
    """The noise that the UNet sees in ``latents [rows, ...]``, under classifier-free guidance.

    Args:
        embeddings: ``[2 * rows, 77, width]``, unconditional half first; ``[rows, ...]`` without guidance.
        unet_timestep: the timestep on the UNet's device, if it is there already.
    """
    guided = len(embeddings) == 2 * len(latents)
    model_input = scheduler.scale_model_input(torch.cat([latents, latents]) if guided else latents, timestep)
    seen = timestep if unet_timestep is None else unet_timestep
    noise = unet(model_input, seen, encoder_hidden_states=embeddings).sample
    if not guided:
        return noise
    unconditional, conditional = noise.chunk(2)
    return unconditional + guidance_scale * (conditional - unconditional)


def denoise(
    unet: Callable[..., Any],
    scheduler: Any,
    latents: Tensor,
    start: int,
    embeddings: Tensor | Callable[[], Tensor],
    guidance_scale: float | Callable[[], float],
    after_step: Callable[[int, Tensor], Tensor] = lambda index, latents: latents,
    after_noise: Callable[[int, Tensor], None] = lambda index, noise: None,
    step_options: dict[str, Any] | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> Tensor:
    """Denoise from step ``start`` of the scheduler's timesteps to the end.

    Args:
        latents: ``[rows, channels, height, width]`` at the level before step ``start``.
        embeddings: as in `guided_noise`, or what is asked for them in every step.
        guidance_scale: a number, or what is asked for it in every step.
        after_step: what becomes of the latents after every step, e.g. blending; gets the step's index.
        after_noise: sees the guided noise of every step.
        step_options: for the scheduler's ``step``, e.g. eta.
        stop: asked after every step whether it was the last one.
    """
    # Schedulers compare timesteps with their own list, on the CPU. The UNet gets them from a copy on the device, made
    # once: its own copy in every step would make the host wait for the device.
    there = scheduler.timesteps.to(latents.device)
    for index, timestep in enumerate(scheduler.timesteps[start:], start):
        scale = guidance_scale() if callable(guidance_scale) else guidance_scale
        text = embeddings() if callable(embeddings) else embeddings
        noise = guided_noise(unet, scheduler, latents, timestep, text, scale, there[index])
        after_noise(index, noise)
        latents = scheduler.step(noise, timestep, latents, **(step_options or {})).prev_sample
        latents = after_step(index, latents)
        if stop():
            break
    return latents
