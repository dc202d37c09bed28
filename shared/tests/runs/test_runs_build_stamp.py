"""The build hook stamps what is built from a clean or changed work tree, and nothing else."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

HOOK = Path(__file__).parent.parent.parent / "hatch_build.py"
IDENTITY = {
    "GIT_AUTHOR_NAME": "x",
    "GIT_AUTHOR_EMAIL": "x@example.org",
    "GIT_COMMITTER_NAME": "x",
    "GIT_COMMITTER_EMAIL": "x@example.org",
}


class Interface:
    """What the hook uses of hatchling's class."""

    def __init__(self, root: Path, target: str) -> None:
        self.root, self.directory, self.target_name = str(root), str(root / "dist"), target


@pytest.fixture
def stamp(monkeypatch):
    """Builds like hatchling: the stamp's place in the archive and its content, or None."""
    modules = [
        "hatchling",
        "hatchling.builders",
        "hatchling.builders.hooks",
        "hatchling.builders.hooks.plugin",
    ]
    for name in modules:
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    interface = ModuleType(f"{modules[-1]}.interface")
    interface.BuildHookInterface = Interface
    monkeypatch.setitem(sys.modules, interface.__name__, interface)
    spec = importlib.util.spec_from_file_location("hatch_build", HOOK)
    hook = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(hook)

    def build(root: Path, target: str = "wheel", version: str = "standard") -> tuple[str, dict] | None:
        builder = hook.CommitStamp(root, target)
        data = {"force_include": {}}
        builder.initialize(version, data)
        found = None
        for file, place in data["force_include"].items():
            found = (place, json.loads(Path(file).read_text()))
        builder.finalize(version, data, "")
        assert not list(root.glob("dist/*"))
        return found

    return build


def git(folder: Path, *arguments: str) -> str:
    if shutil.which("git") is None:
        pytest.skip("git is not installed")
    command = ["git", "-C", str(folder), *arguments]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=os.environ | IDENTITY)
    return done.stdout.strip()


@pytest.fixture
def package(tmp_path) -> Path:
    root = tmp_path / "packages" / "beads"
    (root / "src" / "glass_beads").mkdir(parents=True)
    (root / "src" / "glass_beads" / "__init__.py").write_text("")
    (root / "pyproject.toml").write_text("")
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-q", "-m", "first")
    return root


def test_a_wheel_and_an_archive_carry_the_commit(stamp, package):
    commit = git(package, "rev-parse", "HEAD")
    assert stamp(package) == ("glass_beads/_build.json", {"commit": commit, "dirty": False})
    assert stamp(package, "sdist") == ("src/glass_beads/_build.json", {"commit": commit, "dirty": False})


def test_changed_files_of_the_package_make_it_dirty(stamp, package):
    (package.parent / "other").write_text("x")
    assert stamp(package)[1]["dirty"] is False
    (package / "src" / "glass_beads" / "new.py").write_text("")
    assert stamp(package)[1]["dirty"] is True


def test_an_editable_install_gets_no_stamp(stamp, package):
    assert stamp(package, version="editable") is None


def test_outside_git_and_inside_a_strange_repository_there_is_no_stamp(stamp, package, tmp_path, monkeypatch):
    """Fails if the hook takes the commit of whatever repository surrounds an unpacked archive."""
    unpacked = package.parent / "unpacked"
    (unpacked / "src" / "glass_beads").mkdir(parents=True)
    (unpacked / "src" / "glass_beads" / "__init__.py").write_text("")
    (unpacked / "pyproject.toml").write_text("")
    assert stamp(unpacked) is None
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    assert stamp(package) is None
