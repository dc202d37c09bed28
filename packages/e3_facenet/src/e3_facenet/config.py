"""Dimensions of the generator and the discriminator; the paper's by default (sections 3.1 and 4.1).

GeneratorConfig()                                    # 512 x 512, 82,756,100 parameters
GeneratorConfig(resolution=32, nerf_resolution=8)    # two upsampling blocks
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

from tenfold import UserError

Config = TypeVar("Config", bound="_Config")


@dataclass(frozen=True)
class _Config:
    """What both configurations share: reading from and writing to json."""

    def to_json(self) -> dict[str, Any]:
        """All fields as plain json values."""
        return asdict(self)

    @classmethod
    def from_json(cls: type[Config], values: Any, where: str | Path | None = None) -> Config:
        """A configuration from a json object.

        Raises:
            UserError: not an object, an unknown field, or a value that is not a number of the field's kind.
        """
        if not isinstance(values, Mapping):
            raise UserError(f"{type(values).__name__} instead of an object", where, f"the fields of {cls.__name__}")
        known = {field.name: field for field in fields(cls)}
        for name, value in values.items():
            if name not in known:
                raise UserError(f"unknown field {name!r}", where, ", ".join(sorted(known)))
            whole = "int" in str(known[name].type)
            fits = isinstance(value, int if whole else (int, float)) and not isinstance(value, bool)
            if not (fits and math.isfinite(value)):
                raise UserError(f"{name}: {value!r}", where, "a whole number" if whole else "a number")
        config = cls(**values)
        config.check(where)
        return config

    def check(self, where: str | Path | None = None) -> None:
        """Raises UserError where a dimension is not positive or two do not go together."""
        for name, value in self.to_json().items():
            if value <= 0:
                raise UserError(f"{name}: {value}", where, "a number above 0")


@dataclass(frozen=True)
class GeneratorConfig(_Config):
    """The generator's dimensions.

    Attributes:
        z_dim, w_dim: noise and style code.
        t_dim, token_dim: the text encoder's global vector and token states.
        mapping_layers: of the mapping network.
        heads, head_dim: of the enhancer's attention.
        resolution: of the picture; nerf_resolution: of the volume rendering. Both powers of two.
        channel_base, channel_max: an upsampling block of resolution r has min(channel_base / r, channel_max) channels.
        feature_channels: what the NeRF renders beside RGB.
        fg_hidden, fg_blocks: the foreground's width and its hidden layers, the first one counted.
        bg_hidden, bg_blocks, bg_dim: the same of the background, and its latent code.
        ray_samples: coarse samples of a ray, and as many fine ones; bg_samples: of the background.
        path_rays: rays along an edge of the NeRF-path regulariser's grid.
        fov: degrees.
        yaw, pitch: half ranges of the camera in radians (pitch around pi / 2).
        near, far: z-depth of the foreground's first and last sample.
        bg_start: inverse radius at which the background begins.
    """

    z_dim: int = 512
    w_dim: int = 512
    t_dim: int = 512
    token_dim: int = 512
    mapping_layers: int = 8
    heads: int = 8
    head_dim: int = 64
    resolution: int = 512
    nerf_resolution: int = 32
    channel_base: int = 32768
    channel_max: int = 512
    feature_channels: int = 64
    fg_hidden: int = 128
    fg_blocks: int = 8
    bg_hidden: int = 64
    bg_blocks: int = 4
    bg_dim: int = 32
    ray_samples: int = 14
    bg_samples: int = 4
    path_rays: int = 16
    fov: float = 12.0
    yaw: float = 0.3
    pitch: float = 0.155
    near: float = 0.88
    far: float = 1.12
    bg_start: float = 0.5

    def check(self, where: str | Path | None = None) -> None:
        super().check(where)
        for name in ("resolution", "nerf_resolution"):
            if getattr(self, name).bit_count() != 1:
                raise UserError(f"{name}: {getattr(self, name)}", where, "a power of two")
        if self.resolution <= self.nerf_resolution:
            raise UserError(f"resolution: {self.resolution}", where, f"above nerf_resolution {self.nerf_resolution}")
        if self.resolution % self.path_rays:
            raise UserError(f"path_rays: {self.path_rays}", where, f"a divisor of the resolution {self.resolution}")
        if self.channel_base // self.resolution < 4:
            raise UserError(f"channel_base: {self.channel_base}", where, "at least four channels in every block")
        if not (self.near < self.far and 0 < self.fov < 180 and self.ray_samples >= 4 and self.bg_samples >= 2):
            raise UserError("rays that cannot be sampled", where, "near < far, 0 < fov < 180, 4 and 2 samples at least")

    @property
    def blocks(self) -> tuple[int, ...]:
        """Resolutions of the upsampling blocks: 64, 128, 256, 512."""
        levels = (self.resolution // self.nerf_resolution).bit_length() - 1
        return tuple(self.nerf_resolution << level for level in range(1, levels + 1))

    def channels(self, resolution: int) -> int:
        """Channels that the upsampling block of a resolution gives."""
        return min(self.channel_base // resolution, self.channel_max)

    def block_channels(self, resolution: int) -> tuple[int, int]:
        """What the block of a resolution takes, and what it gives."""
        first = resolution == self.blocks[0]
        return self.feature_channels if first else self.channels(resolution // 2), self.channels(resolution)

    @property
    def fg_ws(self) -> int:
        """Style codes of the foreground: its hidden layers, density and feature."""
        return self.fg_blocks + 2

    @property
    def num_ws(self) -> int:
        """Style codes in all; 19 at full size."""
        return self.fg_ws + 2 * len(self.blocks) + 1


@dataclass(frozen=True)
class DiscriminatorConfig(_Config):
    """The discriminator's dimensions.

    Attributes:
        t_dim: the text's global vector.
        cmap_dim: the text code that the matching head is projected on.
        mapping_layers: of the text's mapping network.
        resolution: of the picture; nerf_resolution: what it is at progressive state 0.
        channel_base, channel_max: a block of resolution r takes min(channel_base / r, channel_max) channels.
        group: pictures among which the minibatch standard deviation is taken.
    """

    t_dim: int = 512
    cmap_dim: int = 512
    mapping_layers: int = 8
    resolution: int = 512
    nerf_resolution: int = 32
    channel_base: int = 32768
    channel_max: int = 512
    group: int = 4

    def check(self, where: str | Path | None = None) -> None:
        super().check(where)
        for name in ("resolution", "nerf_resolution"):
            if getattr(self, name).bit_count() != 1:
                raise UserError(f"{name}: {getattr(self, name)}", where, "a power of two")

    @property
    def blocks(self) -> tuple[int, ...]:
        """Resolutions of the blocks, from the picture down to 8."""
        return tuple(1 << level for level in range(self.resolution.bit_length() - 1, 2, -1))

    def channels(self, resolution: int) -> int:
        """Channels at a resolution."""
        return min(self.channel_base // resolution, self.channel_max)
