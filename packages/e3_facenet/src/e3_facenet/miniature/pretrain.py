"""What the mini trainings start from: a generator that knows heads, and no text.

The paper starts from StyleNeRF's FFHQ weights, days of adversarial training. A few hundred adversarial iterations of
eight pictures from scratch give no head at all (tried on development seed 100), so the stand-in learns from what the
mini world knows: a head's attributes become a noise code by a fixed random matrix, and the generator is trained to
draw that head from its true camera, with its true depth and outline. The enhancers take no part, as StyleNeRF has
none, and the text vector is zero: which words mean what is left to the training that the paper describes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from e3_facenet.camera import camera_poses
from e3_facenet.data.mini_world import COUNTS, Heads
from e3_facenet.generator import Generator
from tenfold.runs import sample_generator

# Released fields reach densities of tens; at N(0, 1) a ray of 0.24 sees hardly any surface.
DENSITY_GAIN = 30.0
DEPTH_WEIGHT, OUTLINE_WEIGHT, SMALL_WEIGHT = 4.0, 0.3, 0.5
NOISE = 0.25


def codes(attributes: Tensor, z_dim: int, seed: int) -> Tensor:
    """Noise codes of heads: one-hot attributes [N, 5] through a fixed random matrix, unit mean square; [N, z_dim]."""
    one_hot = torch.cat([F.one_hot(attributes[:, i], n).float() for i, n in enumerate(COUNTS)], dim=1)
    matrix = torch.randn(one_hot.shape[1], z_dim, generator=sample_generator(seed, 20, 0))
    z = (one_hot - one_hot.mean(1, keepdim=True)) @ matrix
    return z / z.square().mean(1, keepdim=True).sqrt()


def background_codes(background: Tensor, bg_dim: int) -> Tensor:
    """Codes of backgrounds [N, 2, 3] in [0, 1]: their colours around the middle, then zeros; [N, bg_dim]."""
    return F.pad((background.flatten(1) - 0.65) / 0.15, (0, bg_dim - 6))


def pretrain(
    generator: Generator,
    made: Heads,
    attributes: Tensor,
    angles: Tensor,
    background: Tensor,
    seed: int,
    steps: int,
    batch: int = 8,
    rate: float = 6e-3,
) -> list[float]:
    """Train a generator, in place, to draw heads; returns the loss of every step.

    Args:
        made, attributes, angles, background: drawn heads [N] and what they were drawn from.
    """
    config = generator.config
    z_all, bg_all = codes(attributes, config.z_dim, seed), background_codes(background, config.bg_dim)
    with torch.no_grad():
        generator.field.foreground.sigma.weight.mul_(DENSITY_GAIN)
    parts = (generator.mapping, generator.field, generator.blocks)
    optimizer = torch.optim.Adam([p for part in parts for p in part.parameters()], rate, betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps, pct_start=0.1)
    generator.train()
    n, size = config.nerf_resolution, config.resolution
    losses = []
    for step in range(steps):
        draw = sample_generator(seed, 21, step)
        rows = torch.randint(len(angles), (batch,), generator=draw)
        z = z_all[rows] + NOISE * torch.randn(batch, config.z_dim, generator=draw)
        ws = generator.styles(z, torch.zeros(batch, config.t_dim))
        pose = camera_poses(angles[rows, 0], angles[rows, 1])
        found = generator(ws, None, pose, bg_all[rows])
        target = made.images[rows]
        small = F.interpolate(target, size=n, mode="area")
        true = made.depth[rows][:, :: size // n, :: size // n]
        outline = (true > 0).float()
        opacity = 1 - found.volume.light.unflatten(-1, (n, n))
        loss = (
            (found.image - target).abs().mean()
            + SMALL_WEIGHT * (found.rgb - small).abs().mean()
            + OUTLINE_WEIGHT * (opacity - outline).abs().mean()
            + DEPTH_WEIGHT * ((found.depth - true).abs() * outline).mean()
        )
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(float(loss.detach()))
    return losses
