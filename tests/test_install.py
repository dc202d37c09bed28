"""Each package installs alone, with one requirement, and works outside the checkout."""

from __future__ import annotations

import json
import shutil
import sys
import tomllib
import zipfile
from email.parser import HeaderParser
from pathlib import Path

import pytest

PAPERS = sorted(path.parent.name for path in Path(__file__).parent.parent.glob("packages/*/pyproject.toml"))
DISTRIBUTIONS = "import importlib.metadata as m; print(*(d.name for d in m.distributions()))"
# From git as from a folder: the same requirement in all of them. So two are quick, of few and of many dependencies.
QUICK = ("dtnet", "eas")
FROM_GIT = pytest.mark.parametrize(
    "paper",
    [paper if paper in QUICK else pytest.param(paper, marks=pytest.mark.slow) for paper in PAPERS],
    indirect=True,
    scope="module",
)
SOURCE = "from tenfold.runs.provenance import package_source as s; print(s('{}').commit, s('tenfold').commit)"


@pytest.fixture(scope="module", params=PAPERS)
def paper(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def from_git(paper, clone, fresh, tmp_path_factory) -> Path:
    """The bin folder of an environment into which the package came from a git URL."""
    url = f"git+{clone.as_uri()}#subdirectory=packages/{paper}"
    return fresh(tmp_path_factory.mktemp("git") / "env", url)


@pytest.fixture(scope="module")
def from_folder(paper, tree, fresh, tmp_path_factory) -> Path:
    """The bin folder of an environment into which the package came from a folder."""
    return fresh(tmp_path_factory.mktemp("folder") / "env", f"./packages/{paper}", cwd=tree)


def works_alone(bin_folder: Path, paper: str, run, cwd: Path) -> None:
    command = bin_folder / paper.replace("_", "-")
    # Only what the package itself asks for: no extra, no development tool.
    installed = run(bin_folder / "python", "-c", DISTRIBUTIONS).stdout.split()
    assert "tenfold" in installed and not {"pytest", "wandb", "ruff", "accelerate"} & set(installed)
    imported = run(bin_folder / "python", "-c", f"import {paper}; print({paper}.__file__)", cwd=cwd)
    assert Path(imported.stdout.strip()).is_relative_to(bin_folder.parent)
    assert "claims" in run(command, "--help", cwd=cwd).stdout
    assert run(command, "cite", cwd=cwd).stdout.count("@") >= 2


def test_installs_from_a_folder_with_one_requirement(paper, from_folder, run, tmp_path):
    """Fails if pyproject.toml asks for tenfold by its bare name, which is not on the public index."""
    works_alone(from_folder, paper, run, tmp_path)


@FROM_GIT
def test_installs_from_a_git_url_with_one_requirement(paper, from_git, run, tmp_path):
    """Fails if the path to shared/ in pyproject.toml points outside what git has cloned."""
    works_alone(from_git, paper, run, tmp_path)


@FROM_GIT
def test_the_demo_runs_outside_the_checkout(paper, from_git, run, tmp_path):
    """Fails if the demo reads a file that the wheel has not, or imports what the package does not ask for."""
    run(from_git / paper.replace("_", "-"), "demo", "--output", tmp_path / "demo", cwd=tmp_path)
    record = json.loads((tmp_path / "demo" / "run.json").read_text())
    assert (record["package"], record["verb"]) == (paper, "demo")


@FROM_GIT
def test_an_installed_package_knows_its_commit(paper, clone, from_git, fresh, run, tmp_path):
    """Fails if the build hook stamps nothing, or if the commit is asked of the working directory."""
    head = run("git", "rev-parse", "HEAD", cwd=clone).stdout.strip()
    assert run(from_git / "python", "-c", SOURCE.format(paper), cwd=tmp_path).stdout.split()[0] == head
    built_in_clone = fresh(tmp_path / "env", f"./packages/{paper}", cwd=clone)
    assert run(built_in_clone / "python", "-c", SOURCE.format(paper), cwd=tmp_path).stdout.split() == [head, head]


@pytest.fixture
def two_papers(tree, tmp_path) -> Path:
    """A clone in which the first paper has a twin: a package with the same path to the shared layer."""
    folder = tmp_path / "two"
    shutil.copytree(tree, folder, ignore=shutil.ignore_patterns("tests", ".git"))
    twin = folder / "packages" / "twin"
    shutil.copytree(folder / "packages" / PAPERS[0], twin)
    (twin / "src" / PAPERS[0]).rename(twin / "src" / "twin")
    for file in (twin / "pyproject.toml", twin / "claims.yaml"):
        text = file.read_text().replace(PAPERS[0], "twin")
        file.write_text(text.replace(PAPERS[0].replace("_", "-"), "twin"))
    return folder


def test_two_packages_install_in_one_command(two_papers, fresh, run, tmp_path):
    """Fails if the packages' requirements on tenfold are different addresses: pip refuses even two spellings of one."""
    both = [f"./packages/{PAPERS[0]}", "./packages/twin"]
    bin_folder = fresh(tmp_path / "env", *both, cwd=two_papers)
    run(bin_folder / "python", "-c", f"import {PAPERS[0]}, twin", cwd=tmp_path)
    # The pip that made this environment, on this environment: everything else is there, nothing is fetched.
    pip = [Path(sys.base_prefix, "bin", "python3"), "-m", "pip", "--python", sys.executable]
    run(*pip, "install", "--dry-run", "--no-index", "--no-build-isolation", *both, cwd=two_papers)


def test_release_wheels_name_a_version_and_install_without_an_index(tree, fresh, uv, run, tmp_path):
    """Fails if `make wheels` leaves the path of this machine in the requirement on tenfold."""
    (tree / ".venv").symlink_to(Path(sys.executable).parent.parent)
    try:
        run("make", "-o", "setup", "wheels", cwd=tree)
    finally:
        (tree / ".venv").unlink()
    wheels = sorted((tree / "dist").glob("*.whl"))
    assert [wheel.name.split("-")[0] for wheel in wheels] == sorted(["tenfold", *PAPERS])
    required = {wheel.name.split("-")[0]: requirements(wheel) for wheel in wheels}
    version = wheels[-1].name.split("-")[1]
    assert all(f"tenfold=={version}" in required[paper] for paper in PAPERS)
    public = {
        one for some in required.values() for one in some if "extra ==" not in one and not one.startswith("tenfold")
    }
    bin_folder = fresh(tmp_path / "env", *sorted(public))
    python = bin_folder / "python"
    run(uv, "pip", "install", "--python", python, "--no-index", "--find-links", tree / "dist", *PAPERS)
    run(bin_folder / PAPERS[0].replace("_", "-"), "cite", cwd=tmp_path)


def requirements(wheel: Path) -> list[str]:
    with zipfile.ZipFile(wheel) as archive:
        name = next(name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        return HeaderParser().parsestr(archive.read(name).decode()).get_all("Requires-Dist", [])


@pytest.mark.slow
@pytest.mark.parametrize("way", ["folder", "git"])
def test_real_pip_installs_each_package(paper, way, clone, fresh, uv, constraints, run, tmp_path):
    """pip itself, all public ones in place. Fails if the requirement on tenfold is one that only uv understands."""
    bin_folder = fresh(tmp_path / "env", f"./packages/{paper}", cwd=clone)
    python = bin_folder / "python"
    run(uv, "pip", "uninstall", "--python", python, paper, "tenfold")
    pip = [Path(sys.base_prefix, "bin", "python3"), "-m", "pip", "--python", python]
    done = run(*pip, "install", "--constraint", constraints, requirement(paper, way, clone), cwd=clone)
    installed = next(line for line in done.stdout.splitlines() if line.startswith("Successfully installed"))
    assert len(installed.split()) == 4, installed
    works_alone(bin_folder, paper, run, tmp_path)


@pytest.mark.slow
def test_real_pip_installs_a_package_from_the_index(clone, constraints, run, tmp_path):
    """pip alone, all from the index: minutes and gigabytes, so for one package, which asks for the fewest."""
    run(sys.executable, "-m", "venv", tmp_path / "env")
    python = tmp_path / "env" / "bin" / "python"
    one = requirement("dtnet", "git", clone)
    run(python, "-m", "pip", "install", "--constraint", constraints, one, cwd=clone, timeout=3600)
    works_alone(python.parent, "dtnet", run, tmp_path)


def requirement(paper: str, way: str, clone: Path) -> str:
    return f"git+{clone.as_uri()}#subdirectory=packages/{paper}" if way == "git" else f"./packages/{paper}"


def test_the_wheel_carries_what_the_commands_read(paper, tree, from_folder, run, tmp_path):
    """Fails if a line of the wheel's force-include is lost, or a file of the source tree stays behind."""
    (installed,) = from_folder.parent.glob(f"lib/python*/site-packages/{paper}")
    source = tree / "packages" / paper / "src" / paper
    files = {path.relative_to(source) for path in source.rglob("*") if path.is_file()}
    assert {path for path in files if "__pycache__" not in path.parts and not (installed / path).is_file()} == set()
    for name in ("claims.yaml", "CITATION.cff", "configs/mini.yaml"):
        code = f"from tenfold.cli import package_file; print(package_file('{paper}', '{name}'))"
        place = run(from_folder / "python", "-c", code, cwd=tmp_path).stdout.strip()
        assert Path(place).is_relative_to(from_folder.parent)


def test_extras_name_what_the_lock_provides(root):
    """Fails if an extra asks for a library that the tests never see."""
    locked = (root / "requirements.lock").read_text()
    for file in [root / "shared" / "pyproject.toml", *root.glob("packages/*/pyproject.toml")]:
        for extra, wanted in tomllib.loads(file.read_text())["project"].get("optional-dependencies", {}).items():
            for requirement in wanted:
                name = requirement.split(">")[0].split("=")[0].split("[")[0].strip()
                assert name == "tenfold" or f"\n{name}==" in f"\n{locked}", (file, extra, requirement)
