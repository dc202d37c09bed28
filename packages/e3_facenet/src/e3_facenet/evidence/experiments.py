"""The miniature: one pretrained generator a seed, five trainings from it, and what each of them can do.

    full        tokens, both regularisers: the paper's
    no_sce      dw = 0: text reaches the picture through the global vector alone
    plain       dw from the mean token by a small network with as many parameters as the enhancers: no attention, no
                view, same place (a control for parameters and for a second path from the text)
    no_reg      full without L_reg
    swapped     full, but the enhancer reads another caption's tokens (the global vector is right)

Arms of one seed share start, order of captions, cameras and noise. They are taught on drawn pictures: adversarial
training at this length gives no picture to build a verdict on (tried on development seed 100). CLIP and judge
are trained once, on the world of seed 0, and shared by all, as the paper's arms share OpenAI's CLIP. Every arm runs in
a process of its own; what has finished is kept.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from e3_facenet.camera import poses
from e3_facenet.config import GeneratorConfig
from e3_facenet.data.mini_world import draw, heads, sample
from e3_facenet.enhancer import StyleEnhancer
from e3_facenet.generator import Generator
from e3_facenet.layers import EqualLinear
from e3_facenet.miniature.model import (
    Judge,
    captions_of,
    mini_clip,
    mini_generator,
    right,
    train_clip,
    train_judge,
)
from e3_facenet.miniature.pretrain import pretrain, teach
from e3_facenet.text import TextEncoder
from tenfold.ledger.seeds import kept
from tenfold.runs import atomic_write_json, read_json, sample_rng

WORLD = 0
PICTURES = 1500
PRETRAINING, TEACHING = 2400, 2000
CAPTIONS = 200
YAWS = (-0.45, -0.225, 0.0, 0.225, 0.45)
FULL, NO_SCE, PLAIN, NO_REG, SWAPPED = "full", "no_sce", "plain", "no_reg", "swapped"
ARMS: dict[str, dict[str, Any]] = {
    FULL: {},
    NO_SCE: {"tokens": "none"},
    PLAIN: {},
    NO_REG: {"regulariser": "none"},
    SWAPPED: {"tokens": "shuffled"},
}


class PlainOffset(nn.Module):
    """dw from the mean token: the control without attention and view. As many parameters as an enhancer."""

    def __init__(self, enhancer: StyleEnhancer, config: GeneratorConfig) -> None:
        super().__init__()
        budget = sum(parameter.numel() for parameter in enhancer.parameters())
        hidden = max((budget - config.w_dim) // (config.token_dim + 1 + config.w_dim), 1)
        self.hidden = EqualLinear(config.token_dim, hidden, activation="lrelu")
        self.offset = EqualLinear(hidden, config.w_dim, activation="lrelu")

    def forward(self, x: Tensor, tokens: Tensor) -> Tensor:
        """[B, ...] and [P, T, token_dim] -> [B, w_dim]."""
        dw = self.offset(self.hidden(tokens.mean(dim=1)))
        return dw.repeat_interleave(len(x) // len(dw), dim=0)


def prepare(folder: Path, world: int = WORLD) -> None:
    """Train CLIP and judge, where they are not there yet."""
    torch.set_num_threads(1)
    if not (folder / "clip.safetensors").is_file():
        save_file(_plain(train_clip(world).clip.state_dict()), folder / "clip.safetensors")
    if not (folder / "judge.safetensors").is_file():
        save_file(train_judge(world).state_dict(), folder / "judge.safetensors")


def _plain(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.clone().contiguous() for name, tensor in state.items()}


def open_shared(folder: Path, world: int = WORLD) -> tuple[TextEncoder, Judge]:
    """CLIP and judge of `prepare`."""
    encoder, judge = mini_clip(world), Judge()
    encoder.clip.load_state_dict(load_file(folder / "clip.safetensors"))
    judge.load_state_dict(load_file(folder / "judge.safetensors"))
    return encoder, judge.eval().requires_grad_(False)


def start(folder: Path, seed: int, world: int = WORLD, steps: int = PRETRAINING) -> None:
    """Pretrain a seed's generator, where it is not there yet."""
    torch.set_num_threads(1)
    path = folder / f"start-{seed}.safetensors"
    if path.is_file():
        return
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(sample_rng(seed, 0, 31).integers(2**31)))
        generator = Generator(mini_generator())
    made, attributes, angles = heads(world, 0, PICTURES)
    background = sample(world, 0, PICTURES)[2]
    losses = pretrain(generator, made, attributes, angles, background, seed, steps)
    save_file(_plain(generator.state_dict()), path)
    atomic_write_json(folder / f"start-{seed}.json", {"first": losses[0], "last": float(np.mean(losses[-20:]))})


def fine_tune(folder: Path, arm: str, seed: int, world: int = WORLD, steps: int = TEACHING) -> Generator:
    """Teach an arm from its seed's start."""
    encoder, _ = open_shared(folder, world)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(sample_rng(seed, 0, 32).integers(2**31)))
        generator = Generator(mini_generator())
        generator.load_state_dict(load_file(folder / f"start-{seed}.safetensors"))
        if arm == PLAIN:
            for name, enhancer in list(generator.enhancers.items()):
                assert isinstance(enhancer, StyleEnhancer)
                generator.enhancers[name] = PlainOffset(enhancer, generator.config)
    made, attributes, angles = heads(world, 0, PICTURES)
    background = sample(world, 0, PICTURES)[2]
    losses = teach(generator, encoder, made, attributes, angles, background, seed, steps, **ARMS[arm])
    curve = [float(np.mean(losses[at : at + 10])) for at in range(0, steps, 10)]
    atomic_write_json(folder / f"curve-{arm}-{seed}.json", curve)
    return generator.eval()


def run_arm(arm: str, seed: int, folder: Path, world: int = WORLD, steps: int = TEACHING) -> dict[str, Any]:
    """Train and measure one arm of one seed, or take what is kept."""
    torch.set_num_threads(1)
    path = kept(folder, arm, seed)
    if path.exists():
        return read_json(path)
    generator = fine_tune(folder, arm, seed, world, steps)
    encoder, judge = open_shared(folder, world)
    save_file(_plain(generator.state_dict()), folder / f"{arm}-{seed}.safetensors")
    found = measure(generator, encoder, judge, world, conditional=arm != NO_SCE)
    atomic_write_json(path, found)
    return found


def measure(
    generator: Generator, encoder: TextEncoder, judge: Judge, world: int, conditional: bool, count: int = CAPTIONS
) -> dict[str, Any]:
    """What a generator makes of captions, from five yaws each, by the judge and by the world's true depth.

    Returns:
        "accuracy" of attributes, "shuffled" (the same pictures against other captions' attributes), "attributes" one by
        one, "cosine" of judge features over pairs of views, "depth" (correlation with the true ellipsoid's depth where
        both see a head), "reprojection" (colour change when a view is moved to its neighbour by its own depth),
        "frechet" on judge features against real pictures, "clip" (mean cosine of picture and caption).
    """
    attributes, _, background = sample(world, 9, count)
    text = encoder(captions_of(attributes, world, 10))
    fixed = torch.Generator().manual_seed(world + 77)
    config = generator.config
    z, z_bg = torch.randn(count, config.z_dim, generator=fixed), torch.randn(count, config.bg_dim, generator=fixed)
    views, images, depths, points = poses(YAWS), [], [], []
    generator.eval()
    with torch.no_grad():
        for part in torch.arange(count).split(25):
            ws = generator.styles(z[part], text.t[part])
            tokens = text.tokens[part] if conditional else None
            made = generator(ws, tokens, views.repeat(len(part), 1, 1), z_bg[part].repeat_interleave(5, dim=0))
            images.append(made.image.clamp(-1, 1))
            depths.append(made.depth)
            points.append(made.points)
        image, depth, point = torch.cat(images), torch.cat(depths), torch.cat(points)
        repeated = attributes.repeat_interleave(5, dim=0)
        hits = right(judge, image, repeated)
        other = right(judge, image, attributes.roll(1, dims=0).repeat_interleave(5, dim=0))
        features = judge.features(image)
        unit = F.normalize(features, dim=-1).view(count, 5, -1)
        pairs = torch.triu_indices(5, 5, 1)
        cosine = (unit @ unit.transpose(1, 2))[:, pairs[0], pairs[1]].mean()
        true = draw(repeated, views.repeat(count, 1, 1), background.repeat_interleave(5, dim=0)).depth
        clip = (
            encoder.picture_features(image, rescale=True) * F.normalize(text.t, dim=-1).repeat_interleave(5, 0)
        ).sum(-1)
    real, _, _ = heads(world, 8, 400)
    with torch.no_grad():
        real_features = judge.features(real.images)
    from e3_facenet.evaluation.scores import frechet_distance

    return {
        "accuracy": 100 * float(hits.float().mean()),
        "shuffled": 100 * float(other.float().mean()),
        "attributes": [100 * float(one) for one in hits.float().mean(dim=0)],
        "cosine": float(cosine),
        "depth": depth_correlation(depth, true),
        "reprojection": reprojection(image, point, views, count),
        "frechet": frechet_distance(real_features.double().numpy(), features.double().numpy()),
        "clip": float(clip.mean()),
        "depth_spread": float(depth.std()),
    }


def depth_correlation(depth: Tensor, true: Tensor) -> float:
    """Mean correlation of rendered depth [N, n, n] with true depth [N, R, R] where a head is; 0 for a flat one."""
    step = true.shape[-1] // depth.shape[-1]
    true = true[:, ::step, ::step]
    values = []
    for ours, theirs in zip(depth, true, strict=True):
        seen = theirs > 0
        a, b = ours[seen].double(), theirs[seen].double()
        a, b = a - a.mean(), b - b.mean()
        scale = a.norm() * b.norm()
        values.append(float((a * b).sum() / scale) if float(a.norm()) > 1e-6 else 0.0)
    return float(np.mean(values))


def reprojection(image: Tensor, points: Tensor, views: Tensor, count: int) -> float:
    """Mean colour difference when each view's points, by its own depth, are looked up in the next view.

    Fails for a flat face: its points land on wrong pixels of the neighbour.
    """
    import math

    n, size = points.shape[-1], image.shape[-1]
    small = image[:, :, :: size // n, :: size // n].view(count, len(views), 3, n, n)
    images = image.view(count, len(views), 3, size, size)
    spots = points.view(count, len(views), 3, n * n)
    tangent, total = math.tan(math.radians(6)), []
    for view in range(len(views) - 1):
        camera = views[view + 1]
        local = torch.einsum("ij,cin->cjn", camera[:3, :3], spots[:, view] - camera[:3, 3][None, :, None])
        x, y = (local[:, axis] / (-local[:, 2]).clamp(min=1e-3) / tangent for axis in (0, 1))
        grid = torch.stack([x, -y], dim=-1)[:, None]
        looked_up = F.grid_sample(images[:, view + 1], grid, align_corners=True, padding_mode="border")[:, :, 0]
        total.append((looked_up - small[:, view].flatten(2)).abs().mean())
    return float(torch.stack(total).mean())


def judge_gate(folder: Path, world: int = WORLD) -> float:
    """The judge's accuracy on held-out real renders with |yaw| <= 0.45, in percent."""
    _, judge = open_shared(folder, world)
    made, attributes, angles = heads(world, 7, 300)
    near = angles[:, 0].abs() <= 0.45
    return 100 * float(right(judge, made.images[near], attributes[near]).float().mean())


def latent_search(
    folder: Path, seed: int = 0, world: int = WORLD, captions: int = 3, steps: int = 100
) -> dict[str, float]:
    """Five views feed-forward against a search of the noise by Adam for the caption's score, in the same generator.

    Returns:
        seconds of both (median over captions), and their mean scores (cosine of picture and caption, five views).
    """
    import time

    encoder, _ = open_shared(folder, world)
    generator = Generator(mini_generator()).eval().requires_grad_(False)
    generator.load_state_dict(load_file(folder / f"{FULL}-{seed}.safetensors"))
    attributes, _, _ = sample(world, 11, captions)
    views, found = poses(YAWS), []
    for number, caption in enumerate(captions_of(attributes, world, 12)):
        draw_ = torch.Generator().manual_seed(number)
        z = torch.randn(1, generator.config.z_dim, generator=draw_)
        z_bg = torch.randn(1, generator.config.bg_dim, generator=draw_).expand(5, -1)
        begun = time.perf_counter()
        text = encoder([caption])
        with torch.no_grad():
            image = generator(generator.styles(z, text.t), text.tokens, views, z_bg).image
        seconds = time.perf_counter() - begun
        score = _score(encoder, image, text.t)
        # The search knows no text but through the score: the text vector of its noise is zero, dw is left out.
        begun, searched = time.perf_counter(), z.clone().requires_grad_()
        optimizer = torch.optim.Adam([searched], lr=0.05)
        for _ in range(steps):
            ws = generator.styles(searched, torch.zeros_like(text.t))
            loss = -_score(encoder, generator(ws, None, views, z_bg).image, text.t)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        with torch.no_grad():
            ws = generator.styles(searched, torch.zeros_like(text.t))
            best = _score(encoder, generator(ws, None, views, z_bg).image, text.t)
        found.append((seconds, time.perf_counter() - begun, float(score), float(best)))
    table = np.array(found)
    return {
        "generate_seconds": float(np.median(table[:, 0])), "search_seconds": float(np.median(table[:, 1])),
        "generate_score": float(table[:, 2].mean()), "search_score": float(table[:, 3].mean()),
    }  # fmt: skip


def _score(encoder: TextEncoder, image: Tensor, t: Tensor) -> Tensor:
    return (encoder.picture_features(image, rescale=True) * F.normalize(t, dim=-1)).sum(-1).mean()
