"""The environment that `make` bootstraps: made once, repaired when torn, refused in one line.

A workspace of two tiny projects and a lock of a few small packages stands for the real one; the script, uv and what
it installs are real.
"""

from __future__ import annotations

import ast
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest
from house import ROOT

LOCK = (ROOT / "requirements.lock").read_text()
# What building an editable install needs, one package to use, and uv itself.
LOCKED = (
    "editables",
    "hatchling",
    "iniconfig",
    "packaging",
    "pathspec",
    "pluggy",
    "tomlkit",
    "trove-classifiers",
    "uv",
)
PROJECT = """[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "{name}"
version = "0"

[tool.hatch.build.targets.wheel]
packages = ["src/{name}"]
"""


def locked(name: str) -> str:
    return re.search(rf"^{name}==[^\\\n]*(?: \\\n    --hash=\S+)+$", LOCK, re.MULTILINE).group(0) + "\n"


VERSION = re.search(r"uv==(\S+)", locked("uv")).group(1)


@pytest.fixture
def workspace(tmp_path) -> Path:
    """A workspace with its own uv (the one that runs these tests), and no environment yet."""
    folder = tmp_path / "ten fold"
    for name, place in (("layer", "shared"), ("paper", "packages/paper")):
        (folder / place / "src" / name).mkdir(parents=True)
        (folder / place / "src" / name / "__init__.py").touch()
        (folder / place / "pyproject.toml").write_text(PROJECT.format(name=name))
    (folder / "pyproject.toml").write_text('[tool.uv.workspace]\nmembers = ["shared", "packages/*"]\n')
    (folder / "requirements.lock").write_text("".join(map(locked, LOCKED)))
    shutil.copy(ROOT / "bootstrap.py", folder)
    uv = folder / ".tools" / f"uv-{VERSION}" / "bin" / "uv"
    uv.parent.mkdir(parents=True)
    uv.symlink_to(Path(sys.executable).parent / "uv")
    return folder


@pytest.fixture(scope="module")
def network(tmp_path_factory) -> dict[str, str]:
    """Settings that keep uv off the network, where the cache of `make setup` has all that is needed."""
    folder = tmp_path_factory.mktemp("cached")
    (folder / "lock.txt").write_text("".join(map(locked, LOCKED)))
    install = [Path(sys.executable).parent / "uv", "pip", "install", "--offline", "--no-deps"]
    install += ["--target", folder / "target", "--requirements", folder / "lock.txt"]
    return {"UV_OFFLINE": "1"} if subprocess.run(install, cwd="/", capture_output=True).returncode == 0 else {}


def environment(**more: str) -> dict[str, str]:
    unwanted = ("PYTHONDONTWRITEBYTECODE", "PIP_INDEX_URL")
    return {name: value for name, value in os.environ.items() if name not in unwanted} | more


def start(workspace: Path, log: Path, **more: str) -> subprocess.Popen:
    """Run it from elsewhere, without a terminal."""
    command = [sys.executable, workspace / "bootstrap.py"]
    with log.open("w") as output:
        env = environment(**more)
        return subprocess.Popen(command, cwd="/", env=env, stdin=subprocess.DEVNULL, stdout=output, stderr=output)


@pytest.fixture
def setup(network) -> Callable[..., subprocess.CompletedProcess[str]]:
    def setup(workspace: Path, **more: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, workspace / "bootstrap.py"]
        env = environment(**network, **more)
        return subprocess.run(
            command, cwd="/", env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=300
        )

    return setup


def steps(output: str) -> list[str]:
    return [line for line in output.splitlines() if not line.startswith("setup: still ")]


WHOLE = [
    f"setup: making .venv with Python {sys.version_info[0]}.{sys.version_info[1]}",
    "setup: installing requirements.lock (the first time this downloads torch: several GB)",
    "setup: installing shared, packages/paper (editable)",
    "setup: .venv is ready",
]


def works(workspace: Path) -> bool:
    """Whether the environment's own Python imports a locked package, and the two projects from their source."""
    code = "import iniconfig, layer, paper; print(layer.__file__, paper.__file__, sep='\\n')"
    found = subprocess.check_output([workspace / ".venv" / "bin" / "python", "-c", code], cwd="/", text=True)
    sources = [workspace / "shared/src/layer", workspace / "packages/paper/src/paper"]
    return found.splitlines() == [str(source / "__init__.py") for source in sources]


def test_one_run_makes_the_environment_and_the_next_does_nothing(workspace, setup):
    """Fails if the projects are not installed editable, or if an environment that stands is touched again."""
    first = setup(workspace)
    assert (steps(first.stdout), first.stderr, first.returncode) == (WHOLE, "", 0)
    assert works(workspace)
    (workspace / ".tools" / f"uv-{VERSION}" / "bin" / "uv").unlink()  # nobody calls it any more
    second = setup(workspace)
    assert (second.stdout, second.stderr, second.returncode) == ("", "", 0)


def test_a_changed_lock_and_a_new_paper_are_followed_without_making_everything_anew(workspace, setup):
    """Fails if the lock or the pyproject files are no part of the stamp, or if what the lock dropped stays."""
    setup(workspace)
    (workspace / "requirements.lock").write_text("".join(locked(name) for name in LOCKED if name != "iniconfig"))
    changed = setup(workspace)
    assert steps(changed.stdout) == WHOLE[1:]
    python = workspace / ".venv" / "bin" / "python"
    assert subprocess.run([python, "-c", "import iniconfig"], capture_output=True).returncode == 1
    shutil.copytree(workspace / "packages" / "paper", workspace / "packages" / "second")
    (workspace / "packages" / "second" / "pyproject.toml").write_text(PROJECT.format(name="second"))
    (workspace / "packages" / "second" / "src" / "paper").rename(workspace / "packages/second/src/second")
    assert "setup: installing shared, packages/paper, packages/second (editable)" in setup(workspace).stdout


def test_a_moved_folder_gets_a_new_environment(workspace, setup):
    """Fails if the stamp does not know where the environment was made: its scripts hold absolute paths."""
    setup(workspace)
    moved = workspace.rename(workspace.parent / "moved")
    assert steps(setup(moved).stdout) == WHOLE
    assert works(moved)


@pytest.fixture
def slow_uv(workspace) -> Iterator[Path]:
    """uv, but before it installs the lock it leaves a file `begun` and waits for a file `go`; the folder of the two."""
    uv = workspace / ".tools" / f"uv-{VERSION}" / "bin" / "uv"
    real, signs = uv.resolve(), workspace.parent
    uv.unlink()
    uv.write_text(
        f'#!/bin/sh\nif [ "$2" = sync ]; then touch "{signs}/begun"\n'
        f'while [ ! -e "{signs}/go" ]; do sleep 0.05; done; fi\nexec "{real}" "$@"\n'
    )
    uv.chmod(0o755)
    yield signs
    (signs / "go").touch()  # whatever happened: nobody waits for ever


def wait_for(condition: Callable[[], bool], process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 120  # far beyond any machine: only a broken script gets there
    while not condition():
        assert process.poll() is None and time.monotonic() < deadline, "it did not come to that"
        time.sleep(0.02)


def test_a_killed_run_is_repaired_by_the_next_which_waits_for_its_orphan(workspace, slow_uv, network, tmp_path):
    """Fails if the installer does not inherit the lock, or if an environment without its mark counts as whole."""
    killed = start(workspace, tmp_path / "killed.log", **network)
    wait_for((slow_uv / "begun").exists, killed)
    killed.kill()
    killed.wait()
    assert (workspace / ".venv" / "bin" / "python").exists()
    log = tmp_path / "next.log"
    following = start(workspace, log, **network)
    wait_for(lambda: "waiting" in log.read_text(), following)
    (slow_uv / "go").touch()
    assert following.wait() == 0
    assert steps(log.read_text()) == ["setup: waiting for another setup in this folder", *WHOLE]
    assert works(workspace)


def test_of_two_runs_at_once_one_works_and_the_other_waits(workspace, slow_uv, network, tmp_path):
    """Fails if the lock is not taken, or if the second run does not look again once it has it."""
    one = start(workspace, tmp_path / "one.log", **network)
    wait_for((slow_uv / "begun").exists, one)
    other = start(workspace, tmp_path / "other.log", **network)
    wait_for(lambda: "waiting" in (tmp_path / "other.log").read_text(), other)
    (slow_uv / "go").touch()
    assert (one.wait(), other.wait()) == (0, 0)
    assert steps((tmp_path / "one.log").read_text()) == WHOLE
    assert steps((tmp_path / "other.log").read_text()) == ["setup: waiting for another setup in this folder"]


def test_a_package_that_cannot_be_built_is_named_and_then_only_it_is_tried_again(workspace, setup):
    """Fails if the reason is lost among uv's lines, or if the dependencies count as torn because of it."""
    project = workspace / "packages" / "paper" / "pyproject.toml"
    project.write_text(PROJECT.format(name="paper") + '\n[tool.hatch.build.targets.wheel.force-include]\n"no" = "no"\n')
    done = setup(workspace)
    assert done.returncode == 2
    assert re.fullmatch(r"error: installing the packages .*Forced include not found: .*/no\n", done.stderr)
    project.write_text(PROJECT.format(name="paper"))
    assert steps(setup(workspace).stdout) == WHOLE[1:]


def test_a_file_that_is_not_what_the_lock_pins_is_refused(workspace, setup):
    """Fails if the hashes are not checked."""
    lock = workspace / "requirements.lock"
    lock.write_text(re.sub(r"(iniconfig==\S+(?: \\\n    --hash=\S+)+)", _with_wrong_hashes, lock.read_text()))
    done = setup(workspace)
    assert done.returncode == 2 and done.stderr.startswith("error: installing requirements.lock failed: ")
    assert done.stderr.count("\n") == 1
    assert not (workspace / ".venv" / "dependencies-are-whole").exists()


def _with_wrong_hashes(pin: re.Match) -> str:
    return re.sub(r"sha256:\w+", "sha256:" + "0" * 64, pin.group(0))


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ("error: failed to write: No space left on device (os error 28)", "no space left on the disk"),
        ("error: Request failed\n  cause: invalid peer certificate: UnknownIssuer", "certificate is not trusted"),
        ("error: Failed to fetch\n  cause: dns error", "the package index cannot be reached"),
        ("error: No solution found\n  hint: none\n  cause: a wants b", "error: No solution found; cause: a wants b"),
        ("", "it gave no reason"),
    ],
)
def test_a_failing_installer_gives_one_line_and_code_2(workspace, setup, words, reason):
    """Fails if uv's many lines are shown, or its failure is taken for success."""
    uv = workspace / ".tools" / f"uv-{VERSION}" / "bin" / "uv"
    uv.unlink()
    uv.write_text(f"#!/bin/sh\ncat >&2 <<'END'\n{words}\nEND\nexit 1\n")
    uv.chmod(0o755)
    done = setup(workspace)
    assert done.returncode == 2
    assert re.fullmatch(rf"error: making .venv failed: .*{reason}.*\n", done.stderr)


def test_uv_comes_through_pip_and_a_missing_network_is_said_in_one_line(workspace, setup):
    """Fails if pip's page of retries is shown."""
    shutil.rmtree(workspace / ".tools")
    away = {"PIP_INDEX_URL": "http://127.0.0.1:9/simple", "PIP_CONFIG_FILE": os.devnull, "PIP_FIND_LINKS": ""}
    done = setup(workspace, **away, PIP_RETRIES="1")
    assert steps(done.stdout) == [f"setup: installing uv {VERSION} into .tools/uv-{VERSION}"]
    assert re.fullmatch(r"error: installing uv .* with pip failed: the package index cannot be .*\n", done.stderr)
    assert done.returncode == 2


def pretend(workspace: Path, pretence: str, **more: str) -> subprocess.CompletedProcess[str]:
    """Run bootstrap.py after `pretence` (Python code)."""
    script = str(workspace / "bootstrap.py")
    code = f"import runpy, sys; {pretence}; sys.argv = [{script!r}]; runpy.run_path({script!r}, run_name='__main__')"
    return subprocess.run([sys.executable, "-c", code], env=environment(**more), capture_output=True, text=True)


def test_a_missing_pip_is_said_in_one_line(workspace, tmp_path):
    """Fails if pip's absence shows as a failed download."""
    shutil.rmtree(workspace / ".tools")
    (tmp_path / "python").write_text("#!/bin/sh\nexit 1\n")
    (tmp_path / "python").chmod(0o755)
    done = pretend(workspace, f"sys._base_executable = {str(tmp_path / 'python')!r}")
    assert re.fullmatch(r"error: pip is missing: .*/python -m pip \(expected .*\)\n", done.stderr)
    assert done.returncode == 2


def test_half_of_uv_is_not_taken_for_uv(workspace, tmp_path):
    """Fails if pip installs straight into the folder whose presence says that uv is there."""
    shutil.rmtree(workspace / ".tools")
    (tmp_path / "python").write_text(
        '#!/bin/sh\nwhile [ $# -gt 0 ]; do [ "$1" != --target ] || { mkdir -p "$2/bin"; exit 1; }; shift; done\n'
    )
    (tmp_path / "python").chmod(0o755)
    done = pretend(workspace, f"sys._base_executable = {str(tmp_path / 'python')!r}")
    assert done.stderr == f"error: installing uv {VERSION} with pip failed: it gave no reason\n"
    assert (workspace / ".tools" / "uv-new" / "bin").is_dir()
    assert not (workspace / ".tools" / f"uv-{VERSION}").exists()


OLD = "sys.version_info = (3, 8, 0, 'final', 0)"


def test_a_python_that_is_too_old_is_said_in_one_line(workspace, tmp_path):
    """Fails if the version is not checked before anything else."""
    done = pretend(workspace, OLD, PATH=str(tmp_path))
    assert re.fullmatch(r"error: Python 3.8 is too old: .* \(expected 3.11 or newer: .*\)\n", done.stderr)
    assert done.returncode == 2
    assert not (workspace / ".venv").exists()


def test_a_python_that_is_too_old_hands_over_to_a_newer_one(workspace, tmp_path):
    """Fails if the newer Python on PATH is not started with the same arguments."""
    newer = tmp_path / "python3.12"
    newer.write_text('#!/bin/sh\n[ "$1" = -c ] || echo "started with $*"\n')
    newer.chmod(0o755)
    done = pretend(workspace, OLD, PATH=str(tmp_path))
    assert done.stdout.splitlines()[-1] == f"started with {workspace / 'bootstrap.py'}"
    assert done.returncode == 0


def test_an_old_python_gets_as_far_as_saying_so():
    """Fails if the script uses syntax, or an annotation, that Python 3.6 cannot read."""
    tree = ast.parse((ROOT / "bootstrap.py").read_text(), feature_version=(3, 6))
    assert not [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module == "__future__"]
    for function in (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)):
        annotations = [argument.annotation for argument in function.args.args] + [function.returns]
        assert all(isinstance(node, ast.Name | ast.Constant | None) for node in annotations), function.name


@pytest.fixture
def bootstrap(workspace) -> ModuleType:
    spec = importlib.util.spec_from_file_location("bootstrap", workspace / "bootstrap.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def uv(workspace) -> Path:
    return workspace / ".tools" / f"uv-{VERSION}" / "bin" / "uv"


def test_uv_gets_the_mirror_and_the_certificate_that_pip_is_set_to(bootstrap, uv, monkeypatch, tmp_path):
    """Fails if only pip can reach the index behind a company's door."""
    for name in ("UV_DEFAULT_INDEX", "UV_INDEX_URL", "SSL_CERT_FILE", "PIP_INDEX_URL", "PIP_CERT"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "ca.pem").touch()
    settings = f"[global]\nindex-url = https://global.example.org\ncert = {tmp_path}/ca.pem\n"
    (tmp_path / "pip.conf").write_text(settings + "[install]\nindex-url = https://install.example.org\n")
    monkeypatch.setenv("PIP_CONFIG_FILE", str(tmp_path / "pip.conf"))
    found = bootstrap.uv_environment(uv)
    assert found["UV_DEFAULT_INDEX"] == "https://install.example.org"
    assert found["SSL_CERT_FILE"] == f"{tmp_path}/ca.pem"
    monkeypatch.setenv("UV_DEFAULT_INDEX", "https://mine.example.org")
    assert bootstrap.uv_environment(uv)["UV_DEFAULT_INDEX"] == "https://mine.example.org"


def test_without_a_home_the_cache_lies_in_the_project(bootstrap, uv, workspace, monkeypatch, tmp_path):
    """Fails if uv is left with a cache that it cannot write."""
    (tmp_path / "file").touch()
    monkeypatch.setenv("UV_CACHE_DIR", str(tmp_path / "file" / "cache"))
    assert bootstrap.uv_environment(uv)["UV_CACHE_DIR"] == str(workspace / ".tools" / "cache")
    monkeypatch.setenv("UV_CACHE_DIR", str(tmp_path / "cache"))
    assert bootstrap.uv_environment(uv)["UV_CACHE_DIR"] == str(tmp_path / "cache")


def test_uv_does_not_get_another_environment_to_install_into(bootstrap, uv, monkeypatch):
    """Fails if an active environment, or a container's UV_SYSTEM_PYTHON, comes before .venv."""
    for name in ("VIRTUAL_ENV", "CONDA_PREFIX", "UV_SYSTEM_PYTHON", "PYTHONPATH"):
        monkeypatch.setenv(name, "1")
    found = bootstrap.uv_environment(uv)
    assert not {"VIRTUAL_ENV", "CONDA_PREFIX", "UV_SYSTEM_PYTHON", "PYTHONPATH"} & set(found)
    assert found["UV_PYTHON_DOWNLOADS"] == "never"


def test_an_environment_without_its_settings_is_made_anew(workspace, setup):
    """Fails if .venv/bin/python is enough: without pyvenv.cfg it is the Python below, without packages."""
    assert setup(workspace).returncode == 0
    (workspace / ".venv" / "pyvenv.cfg").unlink()
    assert "setup: .venv is ready" in setup(workspace).stdout
    assert (workspace / ".venv" / "pyvenv.cfg").is_file()
