"""requirements.lock: exact, hashed, from the public index, and in step with the pyproject files."""

from __future__ import annotations

import importlib.util
import re
import shutil
import tomllib
from collections.abc import Iterator
from contextlib import nullcontext
from datetime import datetime, timedelta

import pytest
from house import ROOT, made
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

LOCK = (ROOT / "requirements.lock").read_text()
PIN = re.compile(
    r"(?P<name>[a-z0-9-]+)==(?P<version>[\w.!+-]+)(?: ; (?P<marker>[^\\\n]+?))?(?: \\\n    --hash=sha256:\w{64})+"
)
PYPROJECTS = [ROOT / "pyproject.toml", ROOT / "shared/pyproject.toml", *sorted(ROOT.glob("packages/*/pyproject.toml"))]
LOCAL = {"tenfold", *(file.parent.name.replace("_", "-") for file in PYPROJECTS[2:])}


def wanted() -> Iterator[tuple[str, Requirement]]:
    """Every public requirement of a project, an extra or the dev group, with the file that states it."""
    for file in PYPROJECTS:
        stated = tomllib.loads(file.read_text())
        project = stated.get("project", {})
        groups = [project.get("dependencies", []), *project.get("optional-dependencies", {}).values()]
        groups += stated.get("dependency-groups", {}).values()
        for group in groups:
            # The requirement on tenfold is a template of the build backend.
            public = [text for text in group if re.match(r"[\w.-]+", text).group(0) not in LOCAL]
            yield from ((str(file.relative_to(ROOT)), Requirement(text)) for text in public)


def pins() -> dict[str, list[str]]:
    versions: dict[str, list[str]] = {}
    for pin in PIN.finditer(LOCK):
        versions.setdefault(pin["name"], []).append(pin["version"])
    return versions


def test_every_line_pins_one_version_with_its_hashes():
    """Fails if a line of another kind gets in: an index, a link, an editable project, a pin without hashes."""
    assert PIN.sub("", LOCK).strip() == ""
    assert len(pins()) > 50


def test_the_lock_names_no_host():
    """Fails if it is exported with the index's address, or holds a project of this repository."""
    assert "://" not in LOCK and "index" not in LOCK.lower()
    assert not LOCAL & set(pins())


def test_whatever_a_project_asks_for_is_pinned_within_its_bounds():
    """Fails if a dependency is added, or a bound moved, and `make lock` is forgotten."""
    versions = pins()
    found = list(wanted())
    assert {file for file, _ in found} == {str(file.relative_to(ROOT)) for file in PYPROJECTS}
    for file, requirement in found:
        pinned = versions.get(canonicalize_name(requirement.name), [])
        assert any(requirement.specifier.contains(version) for version in pinned), (file, str(requirement), pinned)


def test_every_tool_of_the_dev_group_has_a_floor():
    """Fails if a requirement is added without the lowest version that it was used with."""
    group = tomllib.loads((ROOT / "pyproject.toml").read_text())["dependency-groups"]["dev"]
    outside = [Requirement(text) for text in group if Requirement(text).name not in LOCAL]
    bare = [one.name for one in outside if not {part.operator for part in one.specifier} & {">=", "=="}]
    assert len(outside) > 15 and not bare, bare


def test_no_build_of_a_private_channel_is_pinned():
    """Fails if a build of another channel (such as 2.15.0+cpu) is pinned: nobody else could install it."""
    assert not [pin for pin in pins().items() if any("+" in version for version in pin[1])]


@pytest.fixture
def bootstrap_script():
    spec = importlib.util.spec_from_file_location("bootstrap", ROOT / "bootstrap.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_lock_is_derived_from_the_files_and_the_date_alone(bootstrap_script, monkeypatch, tmp_path):
    """uv keeps what an index said, and what was resolved before. Fails if either is asked: a pin then depends on when
    and where this was run before, which is how one changed on a clean clone."""
    commands = []

    def call(command, what, environment, held=None, cwd=ROOT, capture=False):
        commands.append([str(word) for word in command])
        assert cwd == tmp_path
        return "the lock"

    monkeypatch.setattr(bootstrap_script, "call", call)
    monkeypatch.setattr(bootstrap_script, "ensure_uv", lambda held: "uv")
    monkeypatch.setattr(bootstrap_script, "uv_environment", lambda uv: {})
    monkeypatch.setattr(bootstrap_script, "exclusive", lambda: nullcontext(0))
    assert bootstrap_script.derive_lock(tmp_path) == "the lock"
    resolve, export = commands
    assert resolve[:2] == ["uv", "lock"] and {"--upgrade", "--refresh"} <= set(resolve)
    assert export[:2] == ["uv", "export"] and "--frozen" in export


def test_the_date_lies_days_before_the_lock(run):
    """An index that is mirrored lags: what was released on the date itself may be there for one and not for another.
    Fails if `exclude-newer` is the day of the derivation."""
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("not a git clone")
    stated = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["uv"]["exclude-newer"]
    last = run("git", "-C", str(ROOT), "log", "-1", "--format=%cI", "--", "requirements.lock").stdout.strip()
    assert datetime.fromisoformat(stated) + timedelta(days=3) <= datetime.fromisoformat(last)


@pytest.mark.slow
def test_a_fresh_resolution_equals_the_lock(bootstrap_script, tmp_path):
    """Fails if a pyproject file changes what is resolved and `make lock` is forgotten, or if the date is dropped.

    Needs the package index.
    """
    folder = tmp_path / "fresh"
    shutil.copytree(ROOT, folder, ignore=made)
    assert bootstrap_script.derive_lock(folder) == LOCK
