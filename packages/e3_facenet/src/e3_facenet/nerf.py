"""The radiance field: sample points, the two small networks, and volume rendering (StyleNeRF's, as the paper uses it).

The foreground is an MLP of style-modulated layers on z-depths 0.88 to 1.12; the background a plain MLP with a latent
code of its own on an inverted sphere (NeRF++). Both give RGB and features; the features are divided by their norm over
a ROW OF THE IMAGE, not over channels. That is how the released weights were trained, so points come in whole rows:
[B, h w s, 3] with (h, w) the most square factorisation of the number of rays.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from e3_facenet.config import GeneratorConfig
from e3_facenet.layers import EqualConv2d, ModulatedConv, lrelu

FREQUENCIES = 10
# Coarse samples of a ray where the progressive state was never set (official behaviour of a fresh model).
FRESH_SAMPLES = 20


class Draws(Protocol):
    """Random numbers of a training pass, in the reference's order. `what` names them; a replay checks it."""

    def uniform(self, what: str, shape: Sequence[int]) -> Tensor: ...
    def normal(self, what: str, shape: Sequence[int]) -> Tensor: ...


class Random:
    """Draws from a generator."""

    def __init__(self, generator: torch.Generator, device: torch.device | str = "cpu") -> None:
        self.generator, self.device = generator, device

    def uniform(self, what: str, shape: Sequence[int]) -> Tensor:
        return torch.rand(tuple(shape), generator=self.generator).to(self.device)

    def normal(self, what: str, shape: Sequence[int]) -> Tensor:
        return torch.randn(tuple(shape), generator=self.generator).to(self.device)


def positional_encoding(points: Tensor) -> Tensor:
    """sin and cos of 2^i pi p for i < 10: [..., d] -> [..., 20 d]. Always in float32: in bf16, 2^9 pi p is noise."""
    points = points.float()
    octaves = [points * (2.0**i * math.pi) for i in range(FREQUENCIES)]
    return torch.cat([wave for angle in octaves for wave in (angle.sin(), angle.cos())], dim=-1)


def jitter(depths: Tensor, u: Tensor) -> Tensor:
    """Each depth moved to a uniform place of its bin; bins end half-way to the neighbours. [..., S], [..., S]."""
    middle = (depths[..., 1:] + depths[..., :-1]) / 2
    lower = torch.cat([depths[..., :1], middle], dim=-1)
    upper = torch.cat([middle, depths[..., -1:]], dim=-1)
    return lower + (upper - lower) * u


def resample(depths: Tensor, weights: Tensor, u: Tensor) -> Tensor:
    """Depths by the inverse distribution function of the coarse weights (hierarchical sampling).

    Args:
        depths, weights: [..., S] of the coarse pass; u: [..., S'] in [0, 1].

    Returns:
        [..., S'], piecewise linear between the depths' midpoints.
    """
    bins = (depths[..., 1:] + depths[..., :-1]) / 2
    density = weights[..., 1:-1] + 1e-5
    density = density / density.sum(-1, keepdim=True)
    total = torch.cat([torch.zeros_like(density[..., :1]), density.cumsum(-1)], dim=-1)
    above = torch.searchsorted(total, u.contiguous())
    below = (above - 1).clamp(min=0)
    above = above.clamp(max=density.shape[-1])
    low, high = total.gather(-1, below), total.gather(-1, above)
    rise = torch.where(high - low < 1e-5, torch.ones_like(low), high - low)
    start, end = bins.gather(-1, below), bins.gather(-1, above)
    return start + (u - low) / rise * (end - start)


def outside_points(position: Tensor, rays: Tensor, inverse_radius: Tensor) -> Tensor:
    """Points beyond the unit sphere, by direction and inverse radius (NeRF++).

    Args:
        position: [B, 1, 3] cameras; rays: [B, N, 3]; inverse_radius: [B, N, S] in [0, 1].

    Returns:
        [B, N, S, 4]: where the ray is on the sphere of that radius, scaled back to the unit sphere, and 1 / r.
    """
    rays = F.normalize(rays, dim=-1)
    middle = position - (rays * position).sum(-1, keepdim=True) * rays  # the ray's nearest point to the origin
    nearest = middle.norm(dim=-1, keepdim=True)
    exit_point = middle + (1 - nearest.square()).clamp(min=0).sqrt() * rays
    axis = F.normalize(torch.cross(position.expand_as(rays), exit_point, dim=-1), dim=-1)
    angle = nearest.asin() - (nearest * inverse_radius).asin()  # (B, N, S)
    sine, cosine = angle.sin()[..., None], angle.cos()[..., None]
    # Rodrigues' rotation of the exit point about the axis.
    p, k = exit_point[..., None, :], axis[..., None, :]
    turned = p * cosine + torch.cross(k, p, dim=-1) * sine + k * (k * p).sum(-1, keepdim=True) * (1 - cosine)
    return torch.cat([F.normalize(turned, dim=-1), inverse_radius[..., None]], dim=-1)


def volume_weights(sigma: Tensor, depths: Tensor, lengths: Tensor, open_end: bool) -> tuple[Tensor, Tensor]:
    """Weights of the samples of a ray.

    Args:
        sigma: [..., S] densities, not negative; depths: [..., S]; lengths: [..., 1], a ray's length at depth 1.
        open_end: the last sample takes all the light that is left; otherwise it has no extent, and what is left goes
            on to the background.

    Returns:
        Weights [..., S], and the light that reaches the last sample [...].
    """
    delta = torch.cat([depths.diff(dim=-1) * lengths, torch.zeros_like(depths[..., :1])], dim=-1)
    alpha = 1 - torch.exp(-sigma * delta)
    if open_end:
        alpha = torch.cat([alpha[..., :-1], torch.ones_like(alpha[..., :1])], dim=-1)
    light = torch.cat([torch.ones_like(alpha[..., :1]), (1 - alpha + 1e-10).cumprod(-1)[..., :-1]], dim=-1)
    return alpha * light, light[..., -1]


def image_rows(rays: int) -> tuple[int, int]:
    """The most square (h, w) with h w = rays: 1024 -> (32, 32); training's 1280 -> (32, 40)."""
    height = next(side for side in range(math.isqrt(rays), 0, -1) if rays % side == 0)
    return height, rays // height


def normalise_rows(features: Tensor, rows: tuple[int, int]) -> Tensor:
    """Features over their norm along an image row: [B, h w s, C]. Over the width, as released weights expect."""
    batch, points, channels = features.shape
    grid = features.view(batch, *rows, points // (rows[0] * rows[1]), channels)  # (B, h, w, s, C)
    return (grid / (1e-7 + grid.norm(dim=2, keepdim=True))).view_as(features)


class Foreground(nn.Module):
    """The style-modulated field: points and style codes to RGB, features and raw density."""

    def __init__(self, config: GeneratorConfig) -> None:
        super().__init__()
        widths = [3 * 2 * FREQUENCIES] + [config.fg_hidden] * config.fg_blocks
        self.layers = nn.ModuleList(ModulatedConv(a, b, config.w_dim) for a, b in pairwise(widths))
        self.sigma = ModulatedConv(config.fg_hidden, 1, config.w_dim, demodulate=False)
        self.feature = ModulatedConv(config.fg_hidden, config.feature_channels, config.w_dim, demodulate=False)
        self.to_rgb = EqualConv2d(config.feature_channels, 3)

    def hidden(self, points: Tensor, ws: Tensor) -> Tensor:
        """[B, N, 3] points and [B, fg_ws, w_dim] codes -> [B, N, hidden]."""
        x = positional_encoding(points)
        for index, layer in enumerate(self.layers):
            x = lrelu(_apply(layer, x, ws[:, index]))
        return x

    def density(self, points: Tensor, ws: Tensor) -> Tensor:
        """Raw density alone (no relu), for meshes: [B, N]."""
        return _apply(self.sigma, self.hidden(points, ws), ws[:, len(self.layers)])[..., 0]

    def forward(self, points: Tensor, ws: Tensor, rows: tuple[int, int] | None) -> tuple[Tensor, Tensor, Tensor]:
        """RGB [B, N, 3], features [B, N, C] (normalised along `rows`, or raw where None), raw density [B, N]."""
        x = self.hidden(points, ws)
        sigma = _apply(self.sigma, x, ws[:, len(self.layers)])[..., 0]
        feature = _apply(self.feature, x, ws[:, len(self.layers) + 1])
        rgb = _point_conv(self.to_rgb, feature)
        return rgb, feature if rows is None else normalise_rows(feature, rows), sigma


class Background(nn.Module):
    """A plain ReLU network on the inverted sphere with a latent code; no style and no text."""

    def __init__(self, config: GeneratorConfig) -> None:
        super().__init__()
        widths = [4 * 2 * FREQUENCIES + config.bg_dim] + [config.bg_hidden] * config.bg_blocks
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))
        self.sigma = nn.Linear(config.bg_hidden, 1)
        self.feature = nn.Linear(config.bg_hidden, config.feature_channels)
        self.to_rgb = EqualConv2d(config.feature_channels, 3)

    def forward(self, points: Tensor, z: Tensor, rows: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
        """[B, N, 4] points and [B, bg_dim] codes -> RGB, normalised features, raw density."""
        code = z[:, None].expand(-1, points.shape[1], -1)
        x = torch.cat([positional_encoding(points), code], dim=-1)
        for layer in self.layers:
            x = F.relu(layer(x))
        feature = self.feature(x)
        return _point_conv(self.to_rgb, feature), normalise_rows(feature, rows), self.sigma(x)[..., 0]


def _apply(layer: nn.Module, x: Tensor, w: Tensor) -> Tensor:
    """A modulated layer on points: [B, N, in] -> [B, N, out]."""
    assert isinstance(layer, ModulatedConv)
    return torch.baddbmm(layer.bias, x, layer.matrix(w).transpose(1, 2))


def _point_conv(conv: EqualConv2d, x: Tensor) -> Tensor:
    return F.linear(x, conv.weight.flatten(1) * conv.gain, conv.bias)


@dataclass(frozen=True)
class Volume:
    """What rendering gives, all rays in one row: N of the picture, then those of the path regulariser.

    Attributes:
        features: [B, N, 3 + C], RGB first. depths, weights: [B, N, S] of the foreground, sorted.
        position: [B, 1, 3]; rays: [B, N, 3].
        light: [B, N] that reaches the background; 0 without one.
        samples: [B, N, S + S', 3 + C] per-sample values, where asked for. bg_weights: [B, N, S'] where there is one.
    """

    features: Tensor
    depths: Tensor
    weights: Tensor
    position: Tensor
    rays: Tensor
    light: Tensor
    bg_weights: Tensor | None = None
    samples: Tensor | None = None

    @property
    def depth(self) -> Tensor:
        """Expected z-depth [B, N] (section 3.3): weights need not sum to 1, so open background goes to 0."""
        return (self.weights * self.depths).sum(-1)

    @property
    def points(self) -> Tensor:
        """World points at the expected depth: [B, N, 3]."""
        return self.position + self.depth[..., None] * self.rays


class RadianceField(nn.Module):
    """Foreground and background, rendered along rays."""

    def __init__(self, config: GeneratorConfig) -> None:
        super().__init__()
        self.config = config
        self.foreground = Foreground(config)
        self.background = Background(config)

    def forward(
        self,
        ws: Tensor,
        z_bg: Tensor | None,
        position: Tensor,
        rays: Tensor,
        draws: Draws | None = None,
        keep_samples: bool = False,
        coarse: int | None = None,
    ) -> Volume:
        """Render rays.

        Args:
            ws: [P, fg_ws, w_dim] styles; B must be a multiple of P (views of one face stand together).
            z_bg: [B, bg_dim] background codes; None renders the foreground against nothing.
            position: [B, 1, 3]; rays: [B, N, 3].
            draws: random numbers of a training pass: jittered depths, random quantiles, noise on densities.
            keep_samples: also return every sample's values, for the path regulariser.
            coarse: samples of the first pass; default: the configuration's.
        """
        c, (batch, n) = self.config, rays.shape[:2]
        lengths = rays.norm(dim=-1, keepdim=True)
        count = coarse or c.ray_samples
        unit = torch.linspace(0, 1, count, device=rays.device).expand(batch, n, count)
        if draws is not None:
            unit = jitter(unit, draws.uniform("foreground depths", unit.shape))
        values, sigma = self._foreground(ws, position, rays, unit, draws)
        first, _ = volume_weights(sigma, self._depth(unit), lengths, open_end=z_bg is None)
        fine = self._fine(unit, first.detach(), draws)
        more, sigma_fine = self._foreground(ws, position, rays, fine, draws)
        unit, order = torch.cat([fine, unit], dim=-1).sort(dim=-1)
        values = torch.cat([more, values], dim=2).gather(2, order[..., None].expand(-1, -1, -1, values.shape[-1]))
        sigma = torch.cat([sigma_fine, sigma], dim=2).gather(2, order)
        weights, light = volume_weights(sigma, self._depth(unit), lengths, open_end=z_bg is None)
        features = torch.einsum("bns,bnsc->bnc", weights, values)
        bg_weights = None
        if z_bg is not None:
            bg_weights, bg_values = self._background(z_bg, position, rays, draws)
            features = features + light[..., None] * torch.einsum("bns,bnsc->bnc", bg_weights, bg_values)
            values = torch.cat([values, bg_values], dim=2) if keep_samples else values
        else:
            light = torch.zeros_like(light)
        samples = values if keep_samples else None
        return Volume(features, self._depth(unit), weights, position, rays, light, bg_weights, samples)

    def _depth(self, unit: Tensor) -> Tensor:
        return self.config.near + (self.config.far - self.config.near) * unit

    def _fine(self, unit: Tensor, weights: Tensor, draws: Draws | None) -> Tensor:
        batch, n, _ = unit.shape
        fine = self.config.ray_samples
        if draws is None:
            u = torch.linspace(0, 1, fine, device=unit.device).expand(batch, n, fine)
        else:
            u = draws.uniform("foreground quantiles", (batch * n, fine)).view(batch, n, fine)
        return resample(unit, weights, u)

    def _foreground(
        self, ws: Tensor, position: Tensor, rays: Tensor, unit: Tensor, draws: Draws | None
    ) -> tuple[Tensor, Tensor]:
        """Values [B, N, S, 3 + C] and densities [B, N, S] of the foreground at unit depths."""
        batch, n, count = unit.shape
        points = position[:, :, None] + self._depth(unit)[..., None] * rays[:, :, None]  # (B, N, S, 3)
        # Views of one face stand together: its modulated weights are made once for all of them.
        people, (height, width) = len(ws), image_rows(n)
        rows = (batch // people * height, width)
        rgb, feature, raw = self.foreground(points.reshape(people, -1, 3), ws, rows)
        values = torch.cat([rgb, feature], dim=-1).view(batch, n, count, -1)
        return values, self._density(raw.view(batch, n, count), "foreground density", draws)

    def _background(self, z: Tensor, position: Tensor, rays: Tensor, draws: Draws | None) -> tuple[Tensor, Tensor]:
        batch, n = rays.shape[:2]
        count = self.config.bg_samples
        line = torch.linspace(-1, 0, count, device=rays.device) * self.config.bg_start
        depths = line.expand(batch, n, count)
        if draws is not None:
            depths = jitter(depths, draws.uniform("background depths", depths.shape))
        points = outside_points(position, rays, -depths)
        rgb, feature, raw = self.background(points.reshape(batch, -1, 4), z, image_rows(n))
        sigma = self._density(raw.view(batch, n, count), "background density", draws)
        weights, _ = volume_weights(sigma, depths, torch.ones_like(rays[..., :1]), open_end=True)
        return weights, torch.cat([rgb, feature], dim=-1).view(batch, n, count, -1)

    def _density(self, raw: Tensor, what: str, draws: Draws | None) -> Tensor:
        """Density from its raw value; in training with unit noise, always."""
        return F.relu(raw if draws is None else raw + draws.normal(what, raw.shape))
