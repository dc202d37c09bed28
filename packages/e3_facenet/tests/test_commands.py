"""The command line: every verb, what it leaves, and what it says in one line when something is wrong."""

import json

import pytest
from PIL import Image

from e3_facenet.commands.app import app
from tenfold.cli import main


def run(capsys, monkeypatch, *arguments):
    """Exit code, output and errors of the command."""
    monkeypatch.setattr("sys.argv", ["e3-facenet", *map(str, arguments)])
    code = 0
    try:
        main(app)
    except SystemExit as done:
        code = done.code or 0
    captured = capsys.readouterr()
    return code, captured.out, captured.err


TEXT = "a face with black hair"


def test_generate_leaves_pictures_depth_and_cameras(capsys, monkeypatch, model_folder, tmp_path):
    """Fails if a file is missing or a picture does not say what it is."""
    out = tmp_path / "out"
    code, said, error = run(
        capsys,
        monkeypatch,
        "generate",
        TEXT,
        "--model",
        model_folder,
        "--output",
        out,
        "--yaws",
        "-0.2,0.2",
        "--device",
        "cpu",
    )
    assert code == 0, error
    names = {path.name for path in out.iterdir()}
    assert {"view-0.png", "view-1.png", "views.png", "depth.npy", "normals.npy", "cameras.json", "run.json"} <= names
    assert "AI-generated" in Image.open(out / "view-0.png").text and "2 views of 32 pixels" in said


def test_edit_says_that_the_geometry_stays_and_verifies(capsys, monkeypatch, model_folder, tmp_path):
    """Fails if an edit is not recorded, or the same run gives other files."""
    out = tmp_path / "out"
    code, said, error = run(
        capsys,
        monkeypatch,
        "edit",
        TEXT,
        "--to",
        "a face with glasses",
        "--model",
        model_folder,
        "--output",
        out,
        "--yaws",
        "0",
    )
    assert code == 0 and "the geometry stays" in said, error
    assert "Edited" in Image.open(out / "edited-0.png").text
    code, said, _ = run(capsys, monkeypatch, "verify", out)
    assert code == 0 and "It holds." in said
    code, said, _ = run(capsys, monkeypatch, "cite", out)
    assert code == 0 and json.loads((out / "run.json").read_text())["id"] in said


@pytest.mark.parametrize("name", ["face.gif", "face.mp4"])
def test_turntables_move(capsys, monkeypatch, model_folder, tmp_path, name):
    code, _, error = run(
        capsys, monkeypatch, "turntable", TEXT, "--model", model_folder, "--views", "3", "--output", tmp_path / name
    )
    assert code == 0, error
    assert len(json.loads((tmp_path / "face.cameras.json").read_text())["frames"]) == 3
    if name.endswith(".gif"):
        assert Image.open(tmp_path / name).n_frames == 3
    else:
        assert b"ftyp" in (tmp_path / name).read_bytes()[:16]


def test_meshes_are_written(capsys, monkeypatch, model_folder, tmp_path):
    code, said, error = run(
        capsys,
        monkeypatch,
        "mesh",
        TEXT,
        "--model",
        model_folder,
        "--resolution",
        "24",
        "--output",
        tmp_path / "face.ply",
    )
    assert code == 0 and "triangles" in said, error
    assert (tmp_path / "face.ply").read_bytes().startswith(b"ply\n")


def test_eval_prints_its_protocol(capsys, monkeypatch, model_folder, world, tmp_path):
    code, said, error = run(
        capsys,
        monkeypatch,
        "eval",
        "--model",
        model_folder,
        "--data",
        world,
        "--limit",
        "2",
        "--output",
        tmp_path / "e",
    )
    assert code == 0 and "protocol: psi" in said and "fid" in said, error


def test_dry_run_prints_the_papers_numbers(capsys, monkeypatch):
    code, said, _ = run(capsys, monkeypatch, "train", "--config", "mm-celeba", "--dry-run")
    assert code == 0
    for number in ("82,756,100", "36,961,857", "62,500", "0.0002", "0.00023529", "0.997784"):
        assert number in said


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("generate", "x", "--model", "/nowhere/at/all"), "no such model"),
        (("generate", "x", "--yaws", "left"), "radians"),
        (("generate", "x", "--device", "cuda:7"), "CUDA"),
        (("generate", "x", "--dtype", "int8"), "dtype"),
        (("edit", "x", "--to", "y", "--strength", "3"), "strength"),
        (("turntable", "x", "--output", "a.avi"), ".gif or .mp4"),
        (("mesh", "x", "--output", "a.stl"), ".ply"),
        (("convert", "/no.pkl", "out"), "no such file"),
        (("train", "--config", "large"), "no such config"),
        (("train", "--set", "rats=1"), "unknown setting rats"),
        (("train", "--set", "batch=5"), "multiple of micro"),
        (("train", "--config", "mm-celeba", "--output", "o"), "no data"),
        (("eval",), "no data"),
        (("eval", "--data", "/nowhere"), "no such folder"),
        (("verify", "/nowhere"), "no such file"),
        (("invert", "photo.jpg"), "out of scope in 1.0"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(capsys, monkeypatch, tmp_path, arguments, words):
    """Fails if a traceback, a second line, or a file is left behind."""
    monkeypatch.chdir(tmp_path)
    code, _, error = run(capsys, monkeypatch, *arguments)
    lines = [line for line in error.splitlines() if not line.startswith("WARNING")]
    assert code == 2 and words in error and len(lines) == 1, error
    left = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert not left, left


def test_help_needs_no_torch():
    """Fails if an import of the command line loads torch."""
    import subprocess
    import sys

    code = "import sys, e3_facenet.commands.app; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
