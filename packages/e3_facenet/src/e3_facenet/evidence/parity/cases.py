"""A golden case's dimensions as configurations, and its weights as modules."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from e3_facenet.checkpoints.keys import FILTER, from_official
from e3_facenet.config import DiscriminatorConfig, GeneratorConfig
from e3_facenet.discriminator import Discriminator
from e3_facenet.generator import Generator

Module = TypeVar("Module", bound=nn.Module)


def tolerance(case: Mapping[str, Any]) -> tuple[float, float]:
    """Absolute and relative, as the case states them."""
    return case["tolerance"]["atol"], case["tolerance"]["rtol"]


def part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors below a prefix, without it."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def filled(module: Module, weights: Mapping[str, Tensor]) -> Module:
    """A module with official weights of its own names; the constant filters are left out."""
    kept = {name: tensor for name, tensor in weights.items() if not name.endswith(FILTER)}
    module.load_state_dict(kept, strict=True)
    return module.eval()


def generator_config(config: Mapping[str, Any]) -> GeneratorConfig:
    """The case's generator."""
    return GeneratorConfig(
        z_dim=config["z_dim"], w_dim=config["w_dim"], t_dim=config["t_dim"], token_dim=config["tok_dim"],
        mapping_layers=config["map_layers"], heads=config["heads"], head_dim=config["dim_head"],
        resolution=config["img"], nerf_resolution=config["vol"],
        channel_base=config["channel_base_px"], channel_max=config["channel_max"],
        feature_channels=config["rgb_out_dim"], fg_hidden=config["fg_hidden"], fg_blocks=config["fg_blocks"],
        bg_hidden=config["bg_hidden"], bg_blocks=config["bg_blocks"], bg_dim=config["z_dim_bg"],
        ray_samples=config["n_ray"], bg_samples=config["n_bg"], path_rays=config["n_reg"],
    )  # fmt: skip


def generator(config: Mapping[str, Any], weights: Mapping[str, Tensor]) -> Generator:
    """The case's generator with its weights."""
    model = Generator(generator_config(config))
    model.load_state_dict(from_official(weights, "generator"), strict=True)
    return model.eval()


def discriminator(config: Mapping[str, Any], weights: Mapping[str, Tensor]) -> Discriminator:
    """The case's discriminator with its weights."""
    width = weights["b4_text.out.weight"].shape[0]
    model = Discriminator(
        DiscriminatorConfig(
            t_dim=config["t_dim"], cmap_dim=width, mapping_layers=config["d_map_layers"], resolution=config["img"],
            nerf_resolution=config["vol"], channel_base=config["channel_base_px"], channel_max=config["channel_max"],
            group=config["mbstd"],
        )
    )  # fmt: skip
    model.load_state_dict(from_official(weights, "discriminator"), strict=True)
    return model.eval()


def gradients(value: Tensor, module: nn.Module) -> dict[str, Tensor | None]:
    """d value / d every parameter, by our names; None where there is no path."""
    names, parameters = zip(*module.named_parameters(), strict=True)
    found = torch.autograd.grad(value, parameters, allow_unused=True)
    return dict(zip(names, found, strict=True))
