"""Tiny networks and settings that every test can afford."""

import torch

from e3_facenet.config import DiscriminatorConfig, GeneratorConfig
from e3_facenet.data.settings import DataSettings, MiniSettings
from e3_facenet.generator import Generator
from e3_facenet.training.settings import LossSettings, TrainSettings

torch.set_num_threads(1)

TINY = GeneratorConfig(
    z_dim=16, w_dim=24, t_dim=32, token_dim=32, mapping_layers=2, heads=2, head_dim=8, resolution=32, nerf_resolution=8,
    channel_base=256, channel_max=16, feature_channels=8, fg_hidden=16, fg_blocks=3, bg_hidden=8, bg_blocks=2,
    bg_dim=8, ray_samples=5, bg_samples=3, path_rays=4,
)  # fmt: skip
TINY_D = DiscriminatorConfig(
    t_dim=32, cmap_dim=16, mapping_layers=2, resolution=32, nerf_resolution=8, channel_base=256, channel_max=16, group=2
)


def make_generator(seed=0, config=TINY):
    """A generator with random weights and densities that are seen."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        generator = Generator(config)
    with torch.no_grad():
        generator.field.foreground.sigma.weight.mul_(30)
    return generator.eval()


def tiny_training(folder=None, **changes):
    """Settings of a training of four iterations on a dozen heads."""
    loss = changes.pop("loss", {})
    values = {
        "data": DataSettings(
            folder=folder, in_memory=True, flip=False, mini=MiniSettings(train=12, test=4, captions=2), expected=(12, 2)
        ),
        "generator": TINY.to_json(), "discriminator": TINY_D.to_json(), "clip": "untrained",
        "loss": LossSettings(contrast_rescale=True, mixing=0.5, **loss), "iterations": 4, "batch": 4, "micro": 2,
        "checkpoint_steps": 2, "log_steps": 1, "threads": 1, "device": "cpu", "rate": 1e-3,
    }  # fmt: skip
    return TrainSettings(**(values | changes))
