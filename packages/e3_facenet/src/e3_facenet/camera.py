"""Cameras around the head, the rays through their pixels, and what other programs need to place them.

A camera sits on the unit sphere around the origin, +z is up, and it looks at the origin through a field of view of 12
degrees. Its matrix is ``[x | y | z | position]`` with z pointing from the origin to the camera (OpenGL's axes). Angles:
yaw u (0 frontal, along +x) and pitch v (pi / 2 level), ``position = (sin v cos u, sin v sin u, cos v)``.

The ray grid is not centred: the rendering takes every 16th pixel of a corner-aligned grid of 512, so x runs from -1 to
0.941. Released weights were trained with it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from e3_facenet.config import GeneratorConfig
from tenfold import UserError

MID_PITCH = math.pi / 2
# The paper's five views.
FIVE_YAWS = (-0.45, -0.225, 0.0, 0.225, 0.45)


def camera_poses(yaw: Tensor, pitch: Tensor) -> Tensor:
    """Camera-to-world matrices: [B] and [B] radians -> [B, 4, 4] float32, angles taken in double precision."""
    yaw, pitch = yaw.double(), pitch.double()
    position = torch.stack([pitch.sin() * yaw.cos(), pitch.sin() * yaw.sin(), pitch.cos()], dim=-1).float()
    z = F.normalize(position, dim=-1)
    up = torch.tensor([0.0, 0.0, 1.0], dtype=z.dtype, device=z.device).expand_as(z)
    x = F.normalize(torch.cross(up, z, dim=-1), dim=-1)
    y = F.normalize(torch.cross(z, x, dim=-1), dim=-1)
    pose = torch.stack([x, y, z, position], dim=-1)  # (B, 3, 4)
    last = torch.tensor([0.0, 0.0, 0.0, 1.0], dtype=z.dtype, device=z.device).expand(len(z), 1, 4)
    return torch.cat([pose, last], dim=1)


def list_poses(ranges: Tensor, config: GeneratorConfig | None = None) -> Tensor:
    """The official "list" mode: [B, 2 or 3] in units of the ranges (0.5 is frontal; outside [0, 1] is legal)."""
    config = config or GeneratorConfig()
    ranges = ranges.double()
    yaw = config.yaw * (2 * ranges[:, 0] - 1)
    pitch = MID_PITCH - config.pitch + 2 * config.pitch * ranges[:, 1]
    return camera_poses(yaw, pitch)


def gaussian_poses(units: Tensor, config: GeneratorConfig | None = None) -> Tensor:
    """Training's cameras: standard normal (yaw, pitch) [B, 2]; the standard deviation is the half range, unclipped."""
    config, units = config or GeneratorConfig(), units.double()
    return camera_poses(config.yaw * units[:, 0], MID_PITCH + config.pitch * units[:, 1])


def poses(yaws: Sequence[float], pitches: Sequence[float] | float = MID_PITCH) -> Tensor:
    """Poses from angles in radians: [V, 4, 4].

    Raises:
        UserError: no angle, one that is not a number, or a pitch at a pole (0 or pi), where up is undefined.
    """
    level = [float(pitches)] * len(yaws) if isinstance(pitches, (int, float)) else [float(v) for v in pitches]
    yaw = torch.tensor([float(u) for u in yaws], dtype=torch.float64)
    pitch = torch.tensor(level, dtype=torch.float64)
    if not len(yaw) or len(yaw) != len(pitch):
        raise UserError(f"{len(yaw)} yaws and {len(pitch)} pitches", "cameras", "one of each a view")
    if not bool((yaw.isfinite() & pitch.isfinite()).all()) or bool((pitch.sin() < 1e-3).any()):
        raise UserError("an angle that gives no camera", "cameras", "finite radians, 0 < pitch < pi")
    return camera_poses(yaw, pitch)


def five_views() -> Tensor:
    """The five views of the paper's comparisons, yaw -0.45 to 0.45: [5, 4, 4]."""
    return poses(FIVE_YAWS)


def turntable(views: int = 24, yaw: float = 0.4, pitch: float = 0.2) -> Tensor:
    """A closed loop before the face: yaw = `yaw` sin(2 pi t), pitch = pi / 2 + `pitch` cos(2 pi t); [views, 4, 4]."""
    turn = [2 * math.pi * view / views for view in range(views)]
    return poses([yaw * math.sin(t) for t in turn], [MID_PITCH + pitch * math.cos(t) for t in turn])


def sweep(views: int = 7, scale: float = 2.0, half_range: float = 0.3) -> Tensor:
    """From one side to the other at level pitch: yaw from -scale half_range to scale half_range; [views, 4, 4]."""
    return poses(torch.linspace(-scale * half_range, scale * half_range, views).tolist())


def pixel_grid(resolution: int, rendered: int, device: torch.device | str = "cpu") -> Tensor:
    """Pixels of the rendering: every (resolution / rendered)-th of a corner-aligned grid, y up; [rendered^2, 2]."""
    line = torch.linspace(-1, 1, resolution, device=device)[:: resolution // rendered]
    y, x = torch.meshgrid(-line, line, indexing="ij")
    return torch.stack([x, y], dim=-1).view(-1, 2)


def path_pixels(shift: Tensor, resolution: int, rays: int) -> tuple[Tensor, Tensor]:
    """The NeRF-path regulariser's pixels: a strided grid of rays x rays, shifted at random for each picture.

    Args:
        shift: [B, 2] in [0, 1), of x and y.

    Returns:
        Pixels [B, rays^2, 2], and their places in the flattened picture [B, rays^2] int64.
    """
    stride = resolution // rays
    offset = (shift * stride).floor().long().clamp(max=stride - 1)
    steps = torch.arange(rays, device=shift.device) * stride
    rows = offset[:, 1:] + steps  # (B, rays)
    columns = offset[:, :1] + steps
    places = (rows[:, :, None] * resolution + columns[:, None, :]).flatten(1)
    return pixel_grid(resolution, resolution, shift.device)[places], places


def pixel_rays(pixels: Tensor, pose: Tensor, config: GeneratorConfig) -> tuple[Tensor, Tensor]:
    """Camera positions and rays to z-depth 1, not normalised: t along a ray is depth, not distance.

    Args:
        pixels: [N, 2] or [B, N, 2]; pose: [B, 4, 4].

    Returns:
        [B, 1, 3] and [B, N, 3].
    """
    tangent = math.tan(math.radians(config.fov / 2))
    pixels = pixels if pixels.dim() == 3 else pixels.expand(len(pose), -1, -1)
    ones = torch.ones_like(pixels[..., :1])
    # The 2^9 pi of the positional encoding magnifies the last bit of a point: matrices are multiplied in the
    # reference's order, and the ray is the point at depth 1 less the camera.
    matrix = pose @ torch.diag(pose.new_tensor([tangent, tangent, 1.0, 1.0]))
    points = (matrix @ torch.cat([pixels, -ones, ones], dim=-1).transpose(1, 2))[:, :3].transpose(1, 2)
    position = pose[:, None, :3, 3]
    return position, points - position


def cameras_json(pose: Tensor, resolution: int, fov: float = 12.0) -> dict[str, Any]:
    """Intrinsics and poses for other programs.

    Pixel (column i, row j) of the corner-aligned grid lies at x = 2 i / (H - 1) - 1, so the focal length is
    (H - 1) / 2 / tan(fov / 2) pixels and the principal point (H - 1) / 2. Rendered pictures go up from the rendered
    grid by whole factors, whose first pixels coincide.

    Args:
        pose: [V, 4, 4].

    Returns:
        "intrinsics" and "frames", each with "opengl" (x right, y up, z back) and "opencv" (x right, y down, z forward)
        camera-to-world matrices; units are those of the scene: the camera is at distance 1.
    """
    half = (resolution - 1) / 2
    focal = half / math.tan(math.radians(fov / 2))
    flip = torch.diag(torch.tensor([1.0, -1.0, -1.0, 1.0], dtype=pose.dtype, device=pose.device))
    frames = [
        {"opengl": matrix.tolist(), "opencv": (matrix @ flip).tolist()}
        for matrix in pose
    ]  # fmt: skip
    intrinsics = {"width": resolution, "height": resolution, "fl_x": focal, "fl_y": focal, "cx": half, "cy": half}
    return {"world": "right-handed, z up, head at the origin, camera at distance 1", "fov_degrees": fov,
            "intrinsics": intrinsics, "frames": frames}  # fmt: skip
