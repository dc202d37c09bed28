"""The mini world: ellipsoid heads with five attributes, drawn by a ray caster, written in the official format.

A head is an ellipsoid with painted hair, eyes or glasses, and mouth; a hat is a second ellipsoid. Pictures are taken by
the paper's camera (field of view 12 degrees, distance 1, yaw N(0, 0.3)) through the generator's own pixel grid, and the
true depth of every pixel is known.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from e3_facenet.camera import MID_PITCH, camera_poses, pixel_grid, pixel_rays
from e3_facenet.config import GeneratorConfig
from tenfold.runs import atomic_write_bytes, atomic_write_json, sample_rng

# Attribute -> its values, as a caption says them; the first hat and the first glasses are none.
ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "hat": ("", "red hat", "blue hat"),
    "glasses": ("", "glasses"),
    "skin": ("pale skin", "brown skin", "green skin"),
    "hair": ("black hair", "blond hair", "white hair"),
    "mouth": ("small mouth", "wide mouth"),
}
COUNTS = tuple(len(values) for values in ATTRIBUTES.values())
CHANCE = sum(1 / count for count in COUNTS) / len(COUNTS)

_HAT = torch.tensor([[0.0, 0.0, 0.0], [0.85, 0.10, 0.10], [0.10, 0.20, 0.85]])
_SKIN = torch.tensor([[0.95, 0.78, 0.66], [0.50, 0.31, 0.20], [0.35, 0.75, 0.35]])
_HAIR = torch.tensor([[0.06, 0.05, 0.05], [0.90, 0.76, 0.30], [0.93, 0.93, 0.95]])
_MOUTH = torch.tensor([0.70, 0.08, 0.15])
_DARK = torch.tensor([0.03, 0.03, 0.05])
_LIGHT = torch.nn.functional.normalize(torch.tensor([1.0, 0.35, 0.6]), dim=0)
# Semi-axes and centre of head and hat, in the scene's units (the view is 0.21 wide).
_HEAD_AXES, _HEAD_CENTRE = torch.tensor([0.060, 0.052, 0.068]), torch.tensor([0.0, 0.0, -0.012])
_HAT_AXES, _HAT_CENTRE = torch.tensor([0.058, 0.056, 0.030]), torch.tensor([0.0, 0.0, 0.048])
SUPERSAMPLING = 2


@dataclass(frozen=True)
class Heads:
    """What was drawn.

    Attributes:
        images: [N, 3, R, R] in [-1, 1]. depth: [N, R, R], z-depth at pixel centres, 0 where there is no head.
    """

    images: Tensor
    depth: Tensor


def caption(values: Sequence[int], generator: np.random.Generator | None = None) -> str:
    """A caption of one head; with a generator, one of several word orders."""
    words = {name: ATTRIBUTES[name][value] for name, value in zip(ATTRIBUTES, values, strict=True)}
    parts = [words[name] for name in ("skin", "hair", "mouth", "hat", "glasses") if words[name]]
    start = "a face with"
    if generator is not None:
        order = generator.permutation(len(parts))
        parts = [parts[number] for number in order]
        start = ("a face with", "a person with", "someone with")[int(generator.integers(3))]
    return f"{start} {' , '.join(parts[:-1])} and {parts[-1]}"


def vocabulary() -> list[str]:
    """Every word of the captions, sorted."""
    words = {word for values in ATTRIBUTES.values() for value in values for word in value.split()}
    return sorted(words | set("a face person someone with and ,".split()))


def draw(attributes: Tensor, pose: Tensor, background: Tensor, resolution: int = 32) -> Heads:
    """Draw heads.

    Args:
        attributes: [N, 5] values of `ATTRIBUTES`, int64. pose: [N, 4, 4]. background: [N, 2, 3], colours in [0, 1] at
            the top and at the bottom.
    """
    config = GeneratorConfig(resolution=resolution, nerf_resolution=resolution // 2, channel_base=1 << 12, path_rays=1)
    step = 2 / (resolution - 1)
    offsets = [((i + 0.5) / SUPERSAMPLING - 0.5) * step for i in range(SUPERSAMPLING)]
    centres = pixel_grid(resolution, resolution)
    colours = torch.zeros(len(attributes), resolution**2, 3)
    for dx in offsets:
        for dy in offsets:
            colours += _shade(attributes, pose, background, centres + torch.tensor([dx, dy]), config)[0]
    _, depth = _shade(attributes, pose, background, centres, config)
    images = (colours / SUPERSAMPLING**2).clamp(0, 1) * 2 - 1
    return Heads(
        images.transpose(1, 2).unflatten(-1, (resolution, resolution)).contiguous(),
        depth.unflatten(-1, (resolution, resolution)),
    )


def _shade(
    attributes: Tensor, pose: Tensor, background: Tensor, pixels: Tensor, config: GeneratorConfig
) -> tuple[Tensor, Tensor]:
    """Colours [N, P, 3] and depths [N, P] along rays through pixels [P, 2]."""
    position, rays = pixel_rays(pixels, pose, config)
    head, hat = _hit(position, rays, _HEAD_CENTRE, _HEAD_AXES), _hit(position, rays, _HAT_CENTRE, _HAT_AXES)
    hat = torch.where((attributes[:, 0] > 0)[:, None], hat, torch.full_like(hat, torch.inf))
    on_hat = hat < head
    depth = torch.minimum(hat, head)
    seen = depth.isfinite()
    depth = torch.where(seen, depth, torch.zeros_like(depth))
    point = position + depth[..., None] * rays
    centre = torch.where(on_hat[..., None], _HAT_CENTRE, _HEAD_CENTRE)
    axes = torch.where(on_hat[..., None], _HAT_AXES, _HEAD_AXES)
    normal = torch.nn.functional.normalize((point - centre) / axes.square(), dim=-1)
    colour = torch.where(on_hat[..., None], _HAT[attributes[:, 0]][:, None], _paint(attributes, point))
    colour = colour * (0.62 + 0.38 * (normal @ _LIGHT).clamp(min=0))[..., None]
    height = ((pixels[:, 1] + 1) / 2)[None, :, None]
    behind = background[:, :1] * height + background[:, 1:] * (1 - height)
    return torch.where(seen[..., None], colour, behind), depth


def _paint(attributes: Tensor, point: Tensor) -> Tensor:
    """The head's colour at surface points [N, P, 3]."""
    x, y, z = point.unbind(-1)
    colour = _SKIN[attributes[:, 2]][:, None].expand_as(point)
    hair = (z > 0.016) | (x < -0.006) | ((y.abs() > 0.042) & (z > -0.020))
    colour = torch.where(hair[..., None], _HAIR[attributes[:, 3]][:, None], colour)
    front = x > 0
    radius = torch.where(attributes[:, 1] > 0, 0.0155, 0.0055)[:, None]
    eyes = ((y.abs() - 0.021).square() + (z - 0.003).square() < radius.square()) & front
    bridge = (attributes[:, 1] > 0)[:, None] & (y.abs() < 0.02) & ((z - 0.005).abs() < 0.003) & front
    colour = torch.where((eyes | bridge)[..., None], _DARK, colour)
    wide = (attributes[:, 4] > 0)[:, None]
    half, tall = torch.where(wide, 0.024, 0.008), torch.where(wide, 0.010, 0.004)
    mouth = ((y / half).square() + ((z + 0.040) / tall).square() < 1) & front
    return torch.where(mouth[..., None], _MOUTH, colour)


def _hit(position: Tensor, rays: Tensor, centre: Tensor, axes: Tensor) -> Tensor:
    """Depth at which rays [N, P, 3] first meet an ellipsoid; infinity where they do not."""
    origin, direction = (position - centre) / axes, rays / axes
    a, b = direction.square().sum(-1), (origin * direction).sum(-1)
    c = origin.square().sum(-1) - 1
    root = b.square() - a * c
    depth = (-b - root.clamp(min=0).sqrt()) / a
    return torch.where(root > 0, depth, torch.full_like(depth, torch.inf))


def sample(seed: int, split: int, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Attributes [N, 5], (yaw, pitch) [N, 2] and background colours [N, 2, 3] of a split's heads."""
    generator = sample_rng(seed, split, 0)
    attributes = np.stack([generator.integers(0, values, count) for values in COUNTS], axis=1)
    angles = np.stack([generator.normal(0, 0.3, count), MID_PITCH + generator.normal(0, 0.155, count)], axis=1)
    colours = generator.uniform(0.45, 0.9, (count, 1, 1)) + generator.uniform(-0.08, 0.08, (count, 2, 3))
    return torch.from_numpy(attributes), torch.from_numpy(angles), torch.from_numpy(colours).float().clamp(0, 1)


def heads(seed: int, split: int, count: int, resolution: int = 32) -> tuple[Heads, Tensor, Tensor]:
    """Drawn heads of a split, their attributes [N, 5] and angles [N, 2]."""
    attributes, angles, background = sample(seed, split, count)
    parts = [
        draw(attributes[part], camera_poses(angles[part, 0], angles[part, 1]), background[part], resolution)
        for part in torch.arange(count).split(500)
    ]
    made = Heads(torch.cat([part.images for part in parts]), torch.cat([part.depth for part in parts]))
    return made, attributes, angles


def to_uint8(images: Tensor) -> NDArray[np.uint8]:
    """Pictures [N, 3, H, W] in [-1, 1] as the official script stores them, x 127.5 + 128 clamped: [N, H, W, 3]."""
    return (images * 127.5 + 128).clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()


def write_mini_world(folder: Path, seed: int, train: int, test: int, resolution: int = 32, captions: int = 3) -> Path:
    """Write heads as MM-CelebA-HQ is laid out: dataset.json and a folder of pictures.

    ``attributes.json`` beside it tells what each picture shows. Returns the folder.
    """
    index: dict[str, dict[str, list[str]]] = {}
    truth: dict[str, list[int]] = {}
    images_folder = folder / f"images_{resolution}"
    images_folder.mkdir(parents=True, exist_ok=True)
    for split, (name, count) in enumerate((("train", train), ("test", test))):
        made, attributes, _ = heads(seed, split, count, resolution)
        rows: dict[str, list[str]] = {"filenames": [], "captions": []}
        for number, picture in enumerate(to_uint8(made.images)):
            stem = f"{name}{number:05d}"
            Image.fromarray(picture).save(images_folder / f"{stem}.png")
            values = attributes[number].tolist()
            truth[stem] = values
            words = sample_rng(seed, 2 + split, number + 1)
            for _ in range(captions):
                rows["filenames"].append(stem)
                rows["captions"].append(caption(values, words))
        index[name] = rows
    atomic_write_json(folder / "attributes.json", truth)
    atomic_write_bytes(folder / "dataset.json", json.dumps(index).encode())
    return folder
