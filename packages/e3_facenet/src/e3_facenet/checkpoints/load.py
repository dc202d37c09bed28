"""Networks from an official release, dimensions read from the weights; and weights to start a training from."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from e3_facenet.checkpoints.keys import from_official
from e3_facenet.checkpoints.release import read_release
from e3_facenet.config import DiscriminatorConfig, GeneratorConfig
from e3_facenet.discriminator import Discriminator
from e3_facenet.facenet import CONFIG, WEIGHTS, fill, read_state
from e3_facenet.generator import Generator
from tenfold import UserError

DISCRIMINATOR = "discriminator.safetensors"


def generator_config(state: Mapping[str, Tensor], where: str | Path | None = None, heads: int = 8) -> GeneratorConfig:
    """The dimensions of an official generator's weights.

    Args:
        state: official names. heads: of the enhancers, which no weight tells.

    Raises:
        UserError: not an E3-FaceNet generator (a StyleNeRF without text, for one), or heads that do not fit.
    """

    def shape(name: str) -> torch.Size:
        if name not in state:
            raise UserError(
                f"no {name}", where, "an E3-FaceNet generator (StyleNeRF's can start a training: train --start)"
            )
        return state[name].shape

    def count(pattern: str) -> int:
        return len({found[1] for name in state if (found := re.match(pattern, name))})

    blocks = sorted(
        int(found[1]) for name in state if (found := re.fullmatch(r"synthesis\.b(\d+)\.conv1\.weight", name))
    )
    if not blocks:
        raise UserError("no upsampling blocks", where, "an E3-FaceNet generator")
    z_dim, t_dim = shape("mapping.embed.weight")
    channels = {r: shape(f"synthesis.b{r}.conv1.weight")[0] for r in blocks}
    inner, token_dim = shape(f"synthesis.b{blocks[0]}_attn.attn.to_k.weight")
    if inner % heads:
        raise UserError(f"{heads} heads", where, f"a divisor of {inner}")
    fg, bg = "synthesis.fg_nerf.", "synthesis.bg_nerf."
    config = GeneratorConfig(
        z_dim=z_dim, t_dim=t_dim, w_dim=shape("mapping.fc0.weight")[0], token_dim=token_dim,
        mapping_layers=count(r"mapping\.fc(\d+)\."), heads=heads, head_dim=inner // heads, resolution=blocks[-1],
        nerf_resolution=blocks[0] // 2, channel_base=channels[blocks[-1]] * blocks[-1],
        channel_max=max(channels.values()), feature_channels=shape(f"{fg}feat_out.weight")[0],
        fg_hidden=shape(f"{fg}fc_in.weight")[0], fg_blocks=1 + count(re.escape(fg) + r"blocks\.(\d+)\."),
        bg_hidden=shape(f"{bg}fc_in.weight")[0], bg_blocks=1 + count(re.escape(bg) + r"blocks\.(\d+)\."),
        bg_dim=shape(f"{bg}fc_in.weight")[1] - 80, path_rays=16 if blocks[-1] >= 64 else 4,
    )  # fmt: skip
    config.check(where)
    return config


def discriminator_config(state: Mapping[str, Tensor], where: str | Path | None = None) -> DiscriminatorConfig:
    """The dimensions of an official discriminator's weights. Raises UserError where it has no text head."""
    blocks = sorted(int(found[1]) for name in state if (found := re.fullmatch(r"b(\d+)\.conv0\.weight", name)))
    if not blocks or "b4_text.out.weight" not in state or "mapping.embed.weight" not in state:
        raise UserError("no text head", where, "an E3-FaceNet discriminator")
    channels = {r: state[f"b{r}.conv0.weight"].shape[0] for r in blocks}
    return DiscriminatorConfig(
        t_dim=state["mapping.embed.weight"].shape[1], cmap_dim=state["b4_text.out.weight"].shape[0],
        mapping_layers=len({name.split(".")[1] for name in state if name.startswith("mapping.fc")}),
        resolution=blocks[-1], channel_base=channels[blocks[-1]] * blocks[-1], channel_max=max(channels.values()),
    )  # fmt: skip


def load_official(path: str | Path, heads: int = 8) -> tuple[Generator, Discriminator | None]:
    """Networks of an official release, in evaluation mode on the CPU.

    Raises:
        UserError: as `read_release`; another model's weights.
    """
    release = read_release(path)
    with torch.device("meta"):
        generator = Generator(generator_config(release.generator, path, heads))
    fill(generator, from_official(release.generator, "generator", path), path)
    discriminator = None
    if release.discriminator is not None:
        with torch.device("meta"):
            discriminator = Discriminator(discriminator_config(release.discriminator, path))
        fill(discriminator, from_official(release.discriminator, "discriminator", path), path)
        discriminator.eval()
    return generator.eval(), discriminator


@dataclass(frozen=True)
class Started:
    """What a training took from the weights it starts from: names copied, and names that are new."""

    copied: tuple[str, ...]
    new: tuple[str, ...]


def start_weights(path: str | Path, generator: nn.Module, discriminator: nn.Module) -> Started:
    """Copy what has the same name and shape into both networks, in place (the paper starts from StyleNeRF).

    Args:
        path: an official pickle, safetensors with official names, or a folder of this package.

    Raises:
        UserError: a tensor of another shape (named, with both shapes); nothing in common.
    """
    path = Path(path)
    if path.is_dir():
        folder = path / "model" if (path / "model" / CONFIG).is_file() else path
        states = [read_state(folder / WEIGHTS)]
        states += [read_state(folder / DISCRIMINATOR)] if (folder / DISCRIMINATOR).is_file() else [{}]
    else:
        release = read_release(path)
        states = [_known(release.generator, "generator"), _known(release.discriminator or {}, "discriminator")]
    copied, new = [], []
    for kind, module, state in zip(("generator", "discriminator"), (generator, discriminator), states, strict=True):
        target = module.state_dict()
        for name, tensor in target.items():
            if name not in state:
                new.append(f"{kind}.{name}")
                continue
            if state[name].shape != tensor.shape:
                theirs, ours = list(state[name].shape), list(tensor.shape)
                raise UserError(f"{kind} {name} is {theirs}", path, f"{ours}, as the config says")
            tensor.copy_(state[name])
            copied.append(f"{kind}.{name}")
    if not copied:
        raise UserError("nothing in common with this model", path, "a StyleNeRF or E3-FaceNet")
    return Started(tuple(copied), tuple(new))


def _known(state: Mapping[str, Tensor], network: str) -> dict[str, Tensor]:
    """What of a state dict has a name of ours; StyleNeRF has layers that E3-FaceNet lacks."""
    from e3_facenet.checkpoints.keys import FILTER, renamed

    found = {}
    for name, tensor in state.items():
        ours = renamed(name, network)
        if ours is not None and not name.endswith(FILTER):
            found[ours] = tensor
    return found
