"""What the mini trainings start from: a generator that knows heads, and no text.

The paper starts from StyleNeRF's FFHQ weights, days of adversarial training. A few hundred adversarial iterations of
eight pictures from scratch give no head at all (tried on development seed 100), so the stand-in learns from what the
mini world knows: a head's attributes become a noise code by a fixed random matrix, and the generator is trained to
draw that head from its true camera, with its true depth and outline. The enhancers take no part, as StyleNeRF has
none, and the text vector is zero. What words mean is taught in a second training, `teach`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from e3_facenet.camera import camera_poses
from e3_facenet.data.mini_world import COUNTS, Heads, caption
from e3_facenet.generator import Generator, Synthesis
from e3_facenet.losses import REGULARISERS, offset_loss
from e3_facenet.text import TextEncoder
from tenfold.runs import sample_generator, sample_rng
from tenfold.runs.finite import require_finite_loss

# Released fields reach densities of tens; at N(0, 1) a ray of 0.24 sees hardly any surface.
DENSITY_GAIN = 30.0
DEPTH_WEIGHT, OUTLINE_WEIGHT, SMALL_WEIGHT = 4.0, 0.3, 0.5
# Of the method's own terms beside a picture loss of about 0.1, where the adversarial loss is about 1.
OFFSET_WEIGHT, REGULARISER_WEIGHT = 0.02, 0.02
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
    """Train a generator, in place, to draw heads from codes; returns the loss of every step.

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
    losses: list[float] = []
    for step in range(steps):
        draw = sample_generator(seed, 21, step)
        rows = torch.randint(len(angles), (batch,), generator=draw)
        z = z_all[rows] + NOISE * torch.randn(batch, config.z_dim, generator=draw)
        ws = generator.styles(z, torch.zeros(batch, config.t_dim))
        found = generator(ws, None, camera_poses(angles[rows, 0], angles[rows, 1]), bg_all[rows])
        true = made.depth[rows][:, :: size // n, :: size // n]
        outline = (true > 0).float()
        opacity = 1 - found.volume.light.unflatten(-1, (n, n))
        loss = (
            picture_loss(found, made.images[rows])
            + OUTLINE_WEIGHT * (opacity - outline).abs().mean()
            + DEPTH_WEIGHT * ((found.depth - true).abs() * outline).mean()
        )
        losses.append(_step(loss, len(losses), optimizer, schedule))
    return losses


def teach(
    generator: Generator,
    encoder: TextEncoder,
    made: Heads,
    attributes: Tensor,
    angles: Tensor,
    background: Tensor,
    seed: int,
    steps: int,
    regulariser: str = "paper",
    tokens: str = "own",
    batch: int = 8,
    rate: float = 6e-3,
) -> list[float]:
    """Teach a pretrained generator, in place, what captions mean: caption, noise and camera to the drawn picture.

    Pictures alone are compared, with the method's own L_reg and L_delta; depth and outline are not given. It stands in
    for the adversarial and contrastive training, which takes days.

    Args:
        regulariser: a name in `losses.REGULARISERS`.
        tokens: the enhancer's: "own", "shuffled" (another head's caption) or "none" (dw = 0).
    """
    config, bg_all = generator.config, background_codes(background, generator.config.bg_dim)
    optimizer = torch.optim.Adam(generator.parameters(), rate, betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps, pct_start=0.1)
    generator.train()
    losses: list[float] = []
    for step in range(steps):
        draw, words = sample_generator(seed, 22, step), sample_rng(seed, 23, step)
        rows = torch.randint(len(angles), (batch,), generator=draw)
        other = torch.randint(len(angles), (batch,), generator=draw)
        text = encoder([caption(row.tolist(), words) for row in attributes[rows]])
        read: Tensor | None = text.tokens
        if tokens != "own":
            another = encoder([caption(row.tolist(), words) for row in attributes[other]]).tokens
            read = another if tokens == "shuffled" else None
        ws = generator.styles(torch.randn(batch, config.z_dim, generator=draw), text.t)
        found = generator(ws, read, camera_poses(angles[rows, 0], angles[rows, 1]), bg_all[rows])
        loss = picture_loss(found, made.images[rows]) + OFFSET_WEIGHT * offset_loss(found.offsets)
        loss = loss + REGULARISER_WEIGHT * REGULARISERS[regulariser](found.points)
        losses.append(_step(loss, len(losses), optimizer, schedule))
    return losses


def picture_loss(found: Synthesis, target: Tensor) -> Tensor:
    """Mean absolute difference of the picture and of the field's own small one."""
    small = F.interpolate(target, size=found.rgb.shape[-1], mode="area")
    return (found.image - target).abs().mean() + SMALL_WEIGHT * (found.rgb - small).abs().mean()


def _step(
    loss: Tensor, done: int, optimizer: torch.optim.Optimizer, schedule: torch.optim.lr_scheduler.LRScheduler
) -> float:
    require_finite_loss(loss, "generator", done + 1)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()
    schedule.step()
    return float(loss.detach())
