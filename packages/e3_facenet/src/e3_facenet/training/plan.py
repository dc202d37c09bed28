"""What a training would do, without data or weights: `e3-facenet train --dry-run`."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from e3_facenet.discriminator import Discriminator
from e3_facenet.generator import Generator
from e3_facenet.training.phases import DREG_EVERY, GREG_EVERY
from e3_facenet.training.settings import TrainSettings


@dataclass(frozen=True)
class Plan:
    """The numbers of a training, by name and in the order in which they are shown."""

    networks: dict[str, int]
    schedule: dict[str, str]
    phases: tuple[tuple[str, str, str], ...]


def count(settings: TrainSettings) -> dict[str, int]:
    """Parameters of both networks and of parts of the generator, counted on the meta device."""
    with torch.device("meta"):
        generator = Generator(settings.generator_config())
        discriminator = Discriminator(settings.discriminator_config())

    def of(module: torch.nn.Module) -> int:
        return sum(parameter.numel() for parameter in module.parameters())

    return {
        "generator": of(generator), "mapping": of(generator.mapping), "foreground": of(generator.field.foreground),
        "background": of(generator.field.background), "upsampler": of(generator.blocks),
        "enhancers": of(generator.enhancers), "discriminator": of(discriminator),
        "text head": of(discriminator.match) + of(discriminator.mapping),
    }  # fmt: skip


def plan(settings: TrainSettings) -> Plan:
    """The plan of a training. Raises UserError where dimensions do not fit."""
    (g_rate, g_betas), (d_rate, d_betas) = settings.generator_adam(), settings.discriminator_adam()
    kimg = settings.iterations * settings.batch / 1000
    start = settings.start_kimg
    pictures, captions = settings.data.expected
    loss = settings.loss
    schedule = {
        "iterations": f"{settings.iterations:,}",
        "pictures": f"{kimg:,.0f} thousand, counted from {start:,} to {start + kimg:,.0f}",
        "batch": f"{settings.batch}, {settings.micro} at a time",
        "data": f"{pictures:,} pictures, {captions} captions each" + (", mirrored" if settings.data.flip else ""),
        "generator Adam": f"rate {g_rate:.4g}, betas {g_betas[0]:g} and {g_betas[1]:.6f}",
        "discriminator Adam": f"rate {d_rate:.5g}, betas {d_betas[0]:g} and {d_betas[1]:.6f}",
        "average": f"half-life {settings.ema:g} thousand pictures, decay {settings.ema_decay():.6f}",
        "start": settings.start or "new weights (the paper starts from StyleNeRF's FFHQ-512: --start FILE)",
        "regulariser": loss.regulariser,
        "augmentation": "none",
    }
    phases = (
        ("Gmain", "every iteration", f"adversarial, {loss.regulariser} regulariser, offset, path, CLIP"),
        ("Greg", f"every {GREG_EVERY}th" if loss.path_length else "never", f"path length, times {GREG_EVERY}"),
        ("Dmain", "every iteration", "adversarial, made and real"),
        ("Dreg", f"every {DREG_EVERY}th" if loss.r1 else "never", f"R1 with gamma {loss.r1:g}, times {DREG_EVERY}"),
    )
    return Plan(count(settings), schedule, phases)
