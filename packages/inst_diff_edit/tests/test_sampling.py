"""Noise, its levels, and denoising from the middle of a schedule, with schedulers of several kinds."""

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DEISMultistepScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    LMSDiscreteScheduler,
    PNDMScheduler,
    UniPCMultistepScheduler,
)
from diffusers.models.unets.unet_2d_condition import UNet2DConditionOutput
from torch import nn

from inst_diff_edit.miniature import model as mini
from inst_diff_edit.pipeline import SEED
from inst_diff_edit.sampling import (
    NoiseLevels,
    blend_outside,
    denoise,
    guided_noise,
    lms_scheduler,
    noise_seeds,
    noises,
    start_index,
    step_options,
)
from tenfold import UserError

STABLE_DIFFUSION = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
STEPS, START = 20, 10


def scheduler_of(kind):
    scheduler = kind.from_config({**STABLE_DIFFUSION, "clip_sample": False})
    scheduler.set_timesteps(STEPS)
    return scheduler


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class Oracle(nn.Module):
    """Knows the picture: says what noise is in the latents."""

    def __init__(self, scheduler, picture):
        super().__init__()
        self.picture = picture
        self.shares = scheduler.alphas_cumprod

    def forward(self, sample, timestep, encoder_hidden_states):
        # Timesteps may lie between two of the schedule: noise over picture is linear there.
        low, part = divmod(timestep.item(), 1)
        sigmas = ((1 - self.shares) / self.shares).sqrt()
        sigma = torch.lerp(*sigmas[[int(low), min(int(low) + 1, len(sigmas) - 1)]], part)
        share = 1 / (sigma**2 + 1)
        return UNet2DConditionOutput(sample=(sample - share.sqrt() * self.picture) / (1 - share).sqrt())


@pytest.mark.parametrize(
    ("kind", "tolerance"),
    [
        (DDIMScheduler, 1e-3),
        (EulerDiscreteScheduler, 1e-3),
        (DPMSolverMultistepScheduler, 2e-2),
        (UniPCMultistepScheduler, 2e-2),
        (DEISMultistepScheduler, 0.12),  # stops at the schedule's lowest level, which is not zero
    ],
)
def test_whoever_knows_the_noise_gets_the_picture_back(kind, tolerance):
    """From the middle of the schedule, whatever its scale of picture and noise.

    Fails if the noised picture has the scale of another kind of scheduler, or is one step off.
    """
    scheduler, picture, noise = scheduler_of(kind), drawn(1, 3, 8, 8), drawn(1, 3, 8, 8, seed=1)
    noised = NoiseLevels(scheduler).noised(picture, noise, START)
    found = denoise(Oracle(scheduler, picture), scheduler, noised, START, torch.zeros(1, 1, 1), 1.0)
    assert torch.allclose(found, picture, atol=tolerance)


@pytest.mark.parametrize("kind", [DDIMScheduler, DPMSolverMultistepScheduler])
def test_levels_without_sigmas_keep_the_variance(kind):
    """Fails if the noise's share is not rooted."""
    scheduler = scheduler_of(kind)
    levels = NoiseLevels(scheduler).levels
    for (picture, noise), timestep in zip(levels, scheduler.timesteps, strict=False):
        share = scheduler.alphas_cumprod[timestep].item()
        assert picture == pytest.approx(share**0.5, abs=1e-3) and noise == pytest.approx((1 - share) ** 0.5, abs=1e-3)
    assert levels[-1] == (1.0, 0.0) and len(levels) == STEPS + 1


@pytest.mark.parametrize(
    ("strength", "taken", "time", "sigma"),
    [(0.4, 20, 387.37, 1.1171), (0.5, 25, 489.31, 1.5617), (0.6, 30, 591.24, 2.2143), (0.8, 40, 795.12, 4.9989)],
)
def test_levels_are_the_authors(strength, taken, time, sigma):
    """Fails if the first step is one off, or the timesteps have an offset."""
    scheduler = LMSDiscreteScheduler(**STABLE_DIFFUSION)
    scheduler.set_timesteps(50)
    levels = NoiseLevels(scheduler).levels
    start = start_index(50, strength)
    assert 50 - start == taken and scheduler.timesteps[start].item() == pytest.approx(time, abs=0.01)
    assert levels[start] == (1.0, pytest.approx(sigma, abs=1e-4)) and levels[49][1] == pytest.approx(0.02917, abs=1e-5)


def test_the_whole_schedule_is_strength_one():
    """Fails if it is refused."""
    assert start_index(50, 1.0) == 0


@pytest.mark.parametrize("kind", [PNDMScheduler, HeunDiscreteScheduler])
def test_a_scheduler_of_several_calls_a_step_is_refused(kind):
    """Its list of timesteps is longer than its steps. Fails if the wrong half of it is run."""
    with pytest.raises(UserError, match=r"cannot begin in the middle of its schedule: .* DDIMScheduler.from_config"):
        NoiseLevels(scheduler_of(kind))


def test_another_kind_of_model_keeps_its_kind_in_the_authors_scheduler():
    """Stable Diffusion 2 at 768 pixels predicts velocity. Fails if that is lost with the scheduler."""
    theirs = DDIMScheduler(
        **STABLE_DIFFUSION,
        prediction_type="v_prediction",
        timestep_spacing="trailing",
        steps_offset=1,
        clip_sample=False,
    )
    ours = lms_scheduler(theirs)
    assert ours.config.prediction_type == "v_prediction" and ours.config.timestep_spacing == "linspace"
    assert torch.allclose(ours.alphas_cumprod, theirs.alphas_cumprod) and ours.config.steps_offset == 0
    assert DDIMScheduler.from_config(ours.config).config.clip_sample is False


@pytest.mark.parametrize("kind", ["sample", {}])
def test_a_model_that_predicts_something_else_is_one_line(kind):
    """Fails if the scheduler's own error comes through, in the middle of an edit."""
    theirs = DDIMScheduler(**STABLE_DIFFUSION)
    theirs.register_to_config(prediction_type=kind)
    theirs.set_timesteps(4)
    for taken in (lms_scheduler, NoiseLevels):  # the second where a model's own scheduler goes on as it is
        with pytest.raises(UserError, match=r"prediction_type .*: DDIMScheduler \(expected epsilon or v_prediction\)"):
            taken(theirs)


def test_the_default_seed_s_noises_are_the_authors():
    """Fails if seeds are drawn from another range or generator."""
    seeds = noise_seeds(torch.Generator().manual_seed(SEED), 3)
    assert seeds == [3944286309546282234, 409196348493568663, 2705547579506105986]


def test_each_noise_has_a_generator_of_its_own_and_is_the_same_in_every_dtype():
    """Fails if one stream serves all, or another dtype has other numbers."""
    like = torch.zeros(1, 4, 8, 8)
    both = noises([7, 8], like)
    assert torch.equal(both, torch.cat([drawn(1, 4, 8, 8, seed=7), drawn(1, 4, 8, 8, seed=8)]))
    assert torch.equal(noises([7, 8], like.bfloat16()), both.bfloat16())


def test_blending_is_exact_at_both_ends():
    """Fails if rounding leaves a trace of the other side, as `outside + mask * (latents - outside)` does."""
    latents, outside = 1e-8 * drawn(1, 1, 16, 16), 1e8 * drawn(1, 1, 16, 16, seed=1)
    assert torch.equal(blend_outside(latents, outside, torch.ones(1)), latents)
    assert torch.equal(blend_outside(latents, outside, torch.zeros(1)), outside)


def test_guidance_goes_from_unconditional_to_conditional():
    """Fails if the halves are exchanged, or guidance starts from the conditional one."""

    class Halves(nn.Module):
        def forward(self, sample, timestep, encoder_hidden_states):
            return UNet2DConditionOutput(sample=encoder_hidden_states.expand_as(sample))

    scheduler, latents = scheduler_of(DDIMScheduler), torch.zeros(2, 1, 4, 4)
    embeddings = torch.tensor([1.0, 1.0, 3.0, 5.0]).view(4, 1, 1, 1)
    found = guided_noise(Halves(), scheduler, latents, scheduler.timesteps[0], embeddings, 7.5)
    assert found[:, 0, 0, 0].tolist() == [1 + 7.5 * 2, 1 + 7.5 * 4]


@pytest.mark.parametrize("kind", [EulerAncestralDiscreteScheduler, DDPMScheduler])
def test_schedulers_that_draw_noise_do_so_from_the_seeds(edits, settings, kind):
    """Fails if they draw from the global generator, or rows share a stream: results would depend on the batch."""
    pipe = mini.build(0).to(torch.float64)
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = kind.from_config(pipe.scheduler.config)
    options = {**settings, "num_masks": 2, "output_type": "latent"}
    pictures, prompts = [edit.picture() for edit in edits[:2]], [edit.prompt for edit in edits[:2]]
    together = pipe(pictures, prompts, **options).images
    alone = pipe(pictures[1], prompts[1], **options).images
    assert torch.allclose(together[2:], alone, atol=1e-4)
    assert not torch.allclose(alone[0], alone[1], atol=1e-2)
    own = step_options(pipe.scheduler, [[7], [8, 9]], torch.device("cpu"))["generator"]
    drawn_later = torch.cat([torch.randn(1, 3, 4, 4, generator=one) for one in own])
    # Not the first noise again, and no two alike.
    everything = torch.cat([drawn_later, noises([7, 8, 9], torch.zeros(1, 3, 4, 4))]).flatten(1)
    assert len(everything.unique(dim=0)) == 6
