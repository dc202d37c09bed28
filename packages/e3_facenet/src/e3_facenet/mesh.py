"""The head as a triangle mesh with colours: marching cubes on the foreground's density, and three file formats.

The field was trained inside the cameras' view cones alone; outside them it is noise, the usual complaint about meshes
of this family. So the grid, a cube of half edge 0.12 around the origin, is cut to points that all cameras of the yaw
range sees within its picture. Density is raw (no relu, no noise); the one call in the released code takes level 30.
Vertex colours are the field's own RGB. +z is up, +x looks at the frontal camera.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from e3_facenet.camera import poses
from e3_facenet.config import GeneratorConfig
from e3_facenet.facenet import E3FaceNet, Face, Portrait
from tenfold import UserError
from tenfold.runs import atomic_write_bytes

LEVEL = 30.0
POINTS_AT_ONCE = 65_536
FORMATS = (".ply", ".obj", ".glb")


@dataclass(frozen=True)
class Mesh:
    """Vertices [N, 3] float32 in the scene's units, triangles [M, 3] int64 wound outwards, colours [N, 3] uint8.

    `level` is the density of the surface; `note` says where it is not the one asked for.
    """

    vertices: NDArray[np.float32]
    faces: NDArray[np.int64]
    colours: NDArray[np.uint8]
    level: float
    note: str = ""

    def save(self, path: str | Path) -> Path:
        """Write .ply (binary), .obj or .glb by the name's ending. Raises UserError for another ending."""
        path = Path(path)
        writers: dict[str, Callable[[], bytes]] = {".ply": self.ply, ".obj": self.obj, ".glb": self.glb}
        if path.suffix.lower() not in writers:
            raise UserError(f"ending {path.suffix!r}", path, ", ".join(writers))
        atomic_write_bytes(path, writers[path.suffix.lower()]())
        return path

    def ply(self) -> bytes:
        """Binary little-endian PLY with red, green, blue as uchar."""
        head = (
            "ply\nformat binary_little_endian 1.0\ncomment synthetic face by e3_facenet, +z up\n"
            f"element vertex {len(self.vertices)}\nproperty float x\nproperty float y\nproperty float z\n"
            "property uchar red\nproperty uchar green\nproperty uchar blue\n"
            f"element face {len(self.faces)}\nproperty list uchar int vertex_indices\nend_header\n"
        )
        rows = np.zeros(len(self.vertices), dtype=[("xyz", "<f4", 3), ("rgb", "u1", 3)])
        rows["xyz"], rows["rgb"] = self.vertices, self.colours
        triangles = np.zeros(len(self.faces), dtype=[("n", "u1"), ("v", "<i4", 3)])
        triangles["n"], triangles["v"] = 3, self.faces
        return head.encode() + rows.tobytes() + triangles.tobytes()

    def obj(self) -> bytes:
        """Wavefront OBJ; colours follow each vertex, as most programs read them."""
        lines = ["# synthetic face by e3_facenet, +z up"]
        for point, colour in zip(self.vertices, self.colours / 255, strict=True):
            lines.append("v " + " ".join(f"{value:.6f}" for value in (*point, *colour)))
        lines += ["f " + " ".join(str(index + 1) for index in face) for face in self.faces]
        return ("\n".join(lines) + "\n").encode()

    def glb(self) -> bytes:
        """glTF 2.0 binary. glTF's up is +y: points are turned so (x, y, z) -> (y, z, x)."""
        points = np.ascontiguousarray(self.vertices[:, [1, 2, 0]], dtype="<f4")
        colours = np.concatenate([self.colours, np.full((len(self.colours), 1), 255, np.uint8)], axis=1)
        parts = [points.tobytes(), colours.tobytes(), self.faces.astype("<u4").tobytes()]
        views, offset = [], 0
        for part, target in zip(parts, (34962, 34962, 34963), strict=True):
            views.append({"buffer": 0, "byteOffset": offset, "byteLength": len(part), "target": target})
            offset += len(part)
        bounds = {"min": points.min(0).tolist(), "max": points.max(0).tolist()}
        accessors = [
            {"bufferView": 0, "componentType": 5126, "count": len(points), "type": "VEC3", **bounds},
            {"bufferView": 1, "componentType": 5121, "normalized": True, "count": len(points), "type": "VEC4"},
            {"bufferView": 2, "componentType": 5125, "count": int(self.faces.size), "type": "SCALAR"},
        ]
        primitive = {"attributes": {"POSITION": 0, "COLOR_0": 1}, "indices": 2}
        scene = {
            "asset": {"version": "2.0", "generator": "e3_facenet: a synthetic face"}, "scene": 0,
            "scenes": [{"nodes": [0]}], "nodes": [{"mesh": 0}], "meshes": [{"primitives": [primitive]}],
            "accessors": accessors, "bufferViews": views, "buffers": [{"byteLength": offset}],
        }  # fmt: skip
        text = json.dumps(scene).encode()
        text += b" " * (-len(text) % 4)
        binary = b"".join(parts)
        binary += b"\0" * (-len(binary) % 4)
        chunks = struct.pack("<II", len(text), 0x4E4F534A) + text + struct.pack("<II", len(binary), 0x004E4942) + binary
        return struct.pack("<4sII", b"glTF", 2, 12 + len(chunks)) + chunks


def seen_by_all(points: Tensor, config: GeneratorConfig, yaws: int = 5) -> Tensor:
    """Which world points [N, 3] every camera of the yaw range sees inside its picture: [N] bool."""
    pose = poses(torch.linspace(-config.yaw, config.yaw, yaws).tolist())
    tangent = math.tan(math.radians(config.fov / 2))
    inside = torch.ones(len(points), dtype=torch.bool, device=points.device)
    for camera in pose.to(points):
        local = (points - camera[:3, 3]) @ camera[:3, :3]  # camera axes: z looks back
        inside &= (local[:, :2].abs() <= -local[:, 2:] * tangent).all(-1)
    return inside


def extract_mesh(model: E3FaceNet, face: Portrait | Face, resolution: int = 128, level: float | None = None) -> Mesh:
    """A face's mesh. Text edits cannot change it: they touch the upsampler's style codes alone.

    Args:
        face: what `generate` gave. resolution: grid points along an edge; 128 takes a minute on a CPU at full size.
        level: density of the surface; None: the released code's 30, or where the densities do not reach it their
            upper decile, with a note.

    Raises:
        UserError: a level outside the densities (prints their range); no scikit-image (names the extra).
    """
    codes, config = (face.face if isinstance(face, Portrait) else face), model.config
    if not 8 <= resolution <= 1024:
        raise UserError(f"resolution {resolution}", "mesh", "8 to 1024")
    half = (config.far - config.near) / 2
    field = model.generator.field.foreground
    ws = codes.ws[:, : config.fg_ws]

    def density(points: Tensor) -> Tensor:
        with torch.no_grad():
            parts = [field.density(part[None].to(ws.device), ws)[0] for part in points.split(POINTS_AT_ONCE)]
        return torch.cat(parts).cpu()

    def colour(points: Tensor) -> Tensor:
        with torch.no_grad():
            parts = [field(part[None].to(ws.device), ws, None)[0][0] for part in points.split(POINTS_AT_ONCE)]
        return torch.cat(parts).cpu()

    return surface(density, colour, half, resolution, level, lambda points: seen_by_all(points, config))


def surface(
    density: Callable[[Tensor], Tensor],
    colour: Callable[[Tensor], Tensor],
    half: float,
    resolution: int,
    level: float | None = None,
    inside: Callable[[Tensor], Tensor] | None = None,
) -> Mesh:
    """Marching cubes on a density in the cube [-half, half]^3.

    Args:
        density: [N, 3] -> [N]. colour: [N, 3] -> [N, 3] in [-1, 1]. inside: [N, 3] -> [N]: where the field means
            anything; there is no surface elsewhere.
    """
    try:
        from skimage.measure import marching_cubes
    except ImportError as error:
        raise UserError("no scikit-image", "mesh", 'pip install "e3-facenet[mesh]"') from error
    line = torch.linspace(-half, half, resolution)
    grid = torch.stack(torch.meshgrid(line, line, line, indexing="ij"), dim=-1).view(-1, 3)
    known = torch.ones(len(grid), dtype=torch.bool) if inside is None else inside(grid)
    values = torch.full((len(grid),), -torch.inf)
    values[known] = density(grid[known]).float()
    low, high = values[known].min().item(), values[known].max().item()
    note = ""
    if level is None:
        level = LEVEL
        if not low < level < high:
            level = float(np.quantile(values[known].numpy(), 0.9))
            note = (
                f"density reaches from {low:.3g} to {high:.3g}: level {level:.3g} (upper decile) instead of {LEVEL:g}"
            )
    if not low < level < high:
        raise UserError(f"level {level:g}", "mesh", f"inside the densities, {low:.4g} to {high:.4g}")
    # Outside, and on the cube's faces, the density lies below the surface, so that the mesh closes.
    floor = min(low, 2 * level - high)
    values[~known] = floor
    volume = np.pad(values.view(resolution, resolution, resolution).numpy(), 1, constant_values=floor)
    vertices, faces, _, _ = marching_cubes(volume, level, gradient_direction="ascent")
    step = 2 * half / (resolution - 1)
    points = ((vertices - 1) * step - half).clip(-half, half).astype(np.float32)
    rgb = (colour(torch.from_numpy(points)) * 127.5 + 128).clamp(0, 255).to(torch.uint8).numpy()
    return Mesh(points, faces.astype(np.int64), rgb, float(level), note)
