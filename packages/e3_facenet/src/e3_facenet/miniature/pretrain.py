"""What the mini trainings start from: a generator that knows heads, and no text.

The paper starts from StyleNeRF's FFHQ weights, days of adversarial training. A few hundred adversarial iterations of
eight pictures from scratch give no head at all (tried on development seed 100), so the stand-in is an autoencoder: a
small CNN gives noise codes of drawn heads, the generator draws them again from their true cameras, and the CNN is
thrown away. The enhancers take no part, as StyleNeRF has none, and the text vector is zero. Noise is normalised before
the mapping network, so codes lie on the sphere that random noise is drawn from.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from e3_facenet.camera import camera_poses
from e3_facenet.data.mini_world import Heads
from e3_facenet.generator import Generator
from tenfold.runs import sample_generator


class Coder(nn.Module):
    """Pictures to noise codes: [B, 3, 32, 32] -> [B, z_dim] and background codes [B, bg_dim]."""

    def __init__(self, z_dim: int, bg_dim: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList(
            nn.Conv2d(a, b, 4, stride=2, padding=1) for a, b in ((3, 24), (24, 48), (48, 64))
        )
        self.out = nn.Linear(64 * 16, z_dim + bg_dim)
        self.z_dim = z_dim

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        x = images
        for conv in self.convs:
            x = F.leaky_relu(conv(x), 0.2)
        both = self.out(x.flatten(1))
        z, z_bg = both[:, : self.z_dim], both[:, self.z_dim :]
        return z, z_bg / (z_bg.square().mean(1, keepdim=True) + 1e-4).sqrt()


def pretrain(
    generator: Generator, made: Heads, angles: Tensor, seed: int, steps: int, batch: int = 16, rate: float = 4e-3
) -> list[float]:
    """Train a generator, in place, to draw heads; returns the loss of every step.

    Args:
        made, angles: drawn heads [N] and their (yaw, pitch) [N, 2].
    """
    config = generator.config
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(torch.randint(2**31, [], generator=sample_generator(seed, 20, 0))))
        coder = Coder(config.z_dim, config.bg_dim)
    parts = (generator.mapping, generator.field, generator.blocks, coder)
    parameters = [parameter for part in parts for parameter in part.parameters()]
    optimizer = torch.optim.Adam(parameters, rate, betas=(0.0, 0.99))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps, pct_start=0.1)
    generator.train()
    losses = []
    for step in range(steps):
        draw = sample_generator(seed, 21, step)
        rows = torch.randint(len(angles), (batch,), generator=draw)
        z, z_bg = coder(made.images[rows])
        # Codes are smeared, so that what lies between two heads is a head as well.
        z = F.normalize(z, dim=-1) * config.z_dim**0.5 + 0.3 * torch.randn(z.shape, generator=draw)
        ws = generator.styles(z, torch.zeros(batch, config.t_dim))
        pose = camera_poses(angles[rows, 0], angles[rows, 1])
        found = generator(ws, None, pose, z_bg)
        target = made.images[rows]
        small = F.interpolate(target, size=found.rgb.shape[-1], mode="area")
        loss = (found.image - target).abs().mean() + 0.5 * (found.rgb - small).abs().mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(float(loss.detach()))
    return losses
