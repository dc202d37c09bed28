"""The repository as these tests see it: its own folder, a clone of it, and empty environments."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from house import ROOT, load_bootstrap, made

# A test run by `make test` must not hand make's variables, nor its own environment, to what it starts.
INHERITED = ("MAKEFLAGS", "MFLAGS", "MAKELEVEL", "MAKEOVERRIDES", "ARGS", "PYTHONPATH", "VIRTUAL_ENV")
IDENTITY = {f"GIT_{who}_{what}": "x@example.org" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def root() -> Path:
    return ROOT


@pytest.fixture(scope="session")
def run() -> Run:
    """Runs a command without a terminal and without what make set; fails with its output unless told not to."""

    def run(
        *command: str | Path, cwd: Path = ROOT, check: bool = True, env: Mapping[str, str] = {}, timeout: float = 600
    ) -> subprocess.CompletedProcess[str]:
        # Bytecode may be written: an environment that is used more than once would compile torch each time.
        unwanted = (*INHERITED, "PYTHONDONTWRITEBYTECODE")
        inherited = {name: value for name, value in os.environ.items() if name not in unwanted}
        arguments = [str(part) for part in command]
        done = subprocess.run(
            arguments,
            cwd=cwd,
            env={**inherited, **env},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
        )
        if check and done.returncode != 0:
            pytest.fail(f"{arguments} ended with {done.returncode}\n{done.stdout}\n{done.stderr}")
        return done

    return run


@pytest.fixture(scope="session")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the repository as it stands, without what was made in it."""
    folder = tmp_path_factory.mktemp("copy") / "ten fold"
    shutil.copytree(ROOT, folder, ignore=made)
    return folder


@pytest.fixture(scope="session")
def clone(tree: Path, run: Run) -> Path:
    """A git repository with everything committed."""
    if shutil.which("git") is None:
        pytest.skip("git is not installed")
    if not (tree / ".git").exists():
        run("git", "init", "--quiet", cwd=tree)
        run("git", "add", "--all", cwd=tree)
        run("git", "commit", "--quiet", "--message", "all of it", cwd=tree, env=IDENTITY)
    return tree


@pytest.fixture(scope="session")
def constraints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """requirements.lock without its hashes: what was downloaded already is what gets installed again."""
    text = (ROOT / "requirements.lock").read_text()
    file = tmp_path_factory.mktemp("constraints") / "constraints.txt"
    file.write_text("".join(f"{line}\n" for line in re.findall(r"^\S+==[^\\\n]*", text, re.MULTILINE)))
    return file


@pytest.fixture(scope="session")
def uv() -> Path:
    return Path(sys.executable).parent / "uv"


@pytest.fixture(scope="session")
def fresh(uv: Path, constraints: Path, run: Run) -> Callable[..., Path]:
    """`fresh(folder, "./packages/fitprune")`: an empty environment, then what uv installs; its bin folder.

    The requirements are read as pip reads them, without `tool.uv.sources`. The cache of `make setup` serves them;
    only what is not there comes from the network.
    """

    # As `make setup` runs it: with pip's index and certificates, where uv has none of its own.
    environment = load_bootstrap().uv_environment(uv)

    def fresh(folder: Path, *requirements: str | Path, cwd: Path = ROOT) -> Path:
        python = folder / "bin" / "python"
        run(uv, "venv", "--quiet", "--no-project", "--python", sys.executable, folder, env=environment)
        pinned = ["--constraints", constraints, "--build-constraints", constraints]
        command = [uv, "pip", "install", "--quiet", "--no-sources", "--python", python, *pinned, *requirements]
        if run(*command, "--offline", cwd=cwd, check=False, env=environment).returncode != 0:
            run(*command, cwd=cwd, env=environment)
        return folder / "bin"

    return fresh
