"""Meshes: a sphere, its colours, its files; and the region where a field means anything."""

import json
import struct

import numpy as np
import pytest
import torch

from e3_facenet.camera import cameras_json, pixel_grid, pixel_rays, poses
from e3_facenet.config import GeneratorConfig
from e3_facenet.mesh import extract_mesh, seen_by_all, surface
from tenfold import UserError

RADIUS, HALF, SIZE = 0.07, 0.12, 40


def red_left(points):
    left = (points[:, :1] < 0).float()
    return torch.cat([left, torch.zeros_like(left), 1 - left], dim=1) * 2 - 1


@pytest.fixture(scope="module")
def sphere():
    return surface(lambda p: 30 + 1000 * (RADIUS - p.norm(dim=-1)), red_left, HALF, SIZE, level=30.0)


def test_a_sphere_is_closed_round_and_turned_outwards(sphere):
    """Fails if vertices are scaled wrongly, triangles are wound inwards, or the surface has holes."""
    radii = np.linalg.norm(sphere.vertices, axis=1)
    assert np.abs(radii - RADIUS).max() < HALF / (SIZE - 1)
    edges = {tuple(sorted(pair)) for a, b, c in sphere.faces for pair in ((a, b), (b, c), (c, a))}
    assert len(sphere.vertices) - len(edges) + len(sphere.faces) == 2
    corners = sphere.vertices[sphere.faces]
    normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    assert ((normals * corners.mean(axis=1)).sum(axis=1) > 0).all()


def test_colours_go_with_their_places(sphere):
    """Fails if colours are missing from the file or belong to other vertices."""
    left = sphere.vertices[:, 0] < -0.005
    assert (sphere.colours[left] == (255, 0, 0)).all() and (
        sphere.colours[sphere.vertices[:, 0] > 0.005, 2] == 255
    ).all()
    head = sphere.ply().split(b"end_header\n")[0].decode()
    assert all(f"property uchar {name}" in head for name in ("red", "green", "blue"))


def test_files_hold_what_they_say(sphere, tmp_path):
    """Fails if counts, bounds or indices of a format are wrong."""
    body = sphere.ply().split(b"end_header\n", 1)[1]
    assert len(body) == 15 * len(sphere.vertices) + 13 * len(sphere.faces)
    lines = sphere.obj().decode().splitlines()
    assert sum(line.startswith("v ") for line in lines) == len(sphere.vertices)
    assert max(int(i) for line in lines if line.startswith("f ") for i in line.split()[1:]) == len(sphere.vertices)
    data = sphere.save(tmp_path / "s.glb").read_bytes()
    magic, version, length = struct.unpack("<4sII", data[:12])
    size = struct.unpack("<I", data[12:16])[0]
    scene = json.loads(data[20 : 20 + size])
    assert (magic, version, length) == (b"glTF", 2, len(data))
    assert scene["accessors"][2]["count"] == sphere.faces.size and scene["accessors"][1]["type"] == "VEC4"
    with pytest.raises(UserError, match=r"ending '.stl'"):
        sphere.save(tmp_path / "s.stl")


def test_a_level_outside_the_densities_is_named_with_their_range():
    with pytest.raises(UserError, match=r"level 99.*inside the densities, 0.* to 1"):
        surface(lambda p: torch.linspace(0, 1, len(p)), red_left, HALF, 8, level=99.0)


def test_without_a_level_thirty_or_the_upper_decile_with_a_note():
    found = surface(lambda p: 5 - 40 * p.norm(dim=-1), red_left, HALF, 16)
    assert found.level < 5 and "instead of 30" in found.note


def test_no_vertex_lies_where_no_camera_looked(face):
    """Fails if the cube is not cut to the view cones of the yaw range."""
    portrait = face.generate("a face", poses([0.0]))
    mesh = extract_mesh(face, portrait, resolution=24)
    step = 0.24 / 23
    config = GeneratorConfig(fov=face.config.fov + 1.2 * 57.3 * step)
    assert seen_by_all(torch.from_numpy(mesh.vertices), config).all()
    assert not seen_by_all(torch.tensor([[0.0, 0.115, 0.0]]), face.config).item()


def test_exported_cameras_project_points_onto_their_pixels():
    """Fails if focal length, principal point or an axis is wrong: half a pixel at most, in both conventions."""
    config, pose, size = GeneratorConfig(), poses([0.3, -0.1], [1.5, 1.7]), 512
    exported = cameras_json(pose, size)
    inner = exported["intrinsics"]
    position, rays = pixel_rays(pixel_grid(size, 32), pose, config)
    for view in range(2):
        points = (position[view] + 0.97 * rays[view]).double().numpy()
        for axes, sign in (("opencv", 1), ("opengl", -1)):
            world = np.array(exported["frames"][view][axes])
            local = (points - world[:3, 3]) @ world[:3, :3]
            column = inner["fl_x"] * local[:, 0] / (sign * local[:, 2]) + inner["cx"]
            row = inner["fl_y"] * sign * local[:, 1] / (sign * local[:, 2]) + inner["cy"]
            assert np.abs(column.reshape(32, 32) - np.arange(0, 512, 16)[None]).max() < 0.5
            assert np.abs(row.reshape(32, 32) - np.arange(0, 512, 16)[:, None]).max() < 0.5


def test_without_scikit_image_the_extra_is_named(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "skimage.measure", None)
    with pytest.raises(UserError, match=r"e3-facenet\[mesh\]"):
        surface(lambda p: p[:, 0], red_left, HALF, 8)
