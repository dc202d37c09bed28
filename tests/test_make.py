"""The make targets and the script that CI runs."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from tenfold.ledger import PAPERS

TARGETS = [
    "help",
    "setup",
    "demo",
    "test",
    "test-all",
    "test-oldest",
    "test-newest",
    "lint",
    "format",
    "claims",
    "bench",
    "efficiency",
    "report",
    "wheels",
    "lmms",
    "peers",
    "lock",
    "clean",
]
VERBS = ["train", "eval", "bench", "claims", "cite", "test"]
HERE = sorted(path.parent.name for path in Path(__file__).parent.parent.glob("packages/*/pyproject.toml"))


def test_help_comes_first_and_explains_every_target(run):
    """Fails if a target loses its `## text`, or if another target becomes the default."""
    shown = run("make").stdout
    explained = re.findall(r"^  make ([a-z-]+) +\S", shown, re.MULTILINE)
    assert explained == TARGETS
    assert run("make", "help").stdout == shown


def test_help_tells_which_papers_are_ready_and_which_are_planned(run):
    """Fails if the Makefile's list of papers differs from the ledger's."""
    shown = run("make").stdout
    ready = re.search(r"PAPER: +(.*)", shown).group(1).split()
    planned = re.search(r"planned: +(.*)", shown).group(1).split()
    assert sorted(ready) == HERE
    assert sorted(ready + planned) == sorted(paper.package for paper in PAPERS)


@pytest.mark.parametrize("paper", [paper for paper in PAPERS if paper.package not in HERE], ids=lambda p: p.package)
def test_a_planned_paper_says_so_in_one_line(paper, run):
    """Fails if a paper without a package has no targets: make would only say that it knows no rule."""
    done = run("make", "--keep-going", *(f"{paper.package}-{verb}" for verb in VERBS), check=False)
    ours = [line for line in done.stderr.splitlines() if not line.startswith("make")]
    assert ours == [f"{paper.package} is planned: it has no package yet"] * len(VERBS)
    assert done.returncode == 2


@pytest.mark.parametrize("paper", HERE)
def test_a_papers_targets_run_its_command_with_the_given_arguments(paper, run):
    """Fails if a target calls the command by its folder's name, or drops ARGS."""
    command = f".venv/bin/{paper.replace('_', '-')}"
    for verb in VERBS[:-1]:
        shown = run("make", "--dry-run", f"{paper}-{verb}", "ARGS=--limit 3").stdout
        assert f"{command} {verb} --limit 3\n" in shown
    assert f"packages/{paper}/tests -k x" in run("make", "--dry-run", f"{paper}-test", "ARGS=-k x").stdout


@pytest.mark.parametrize("paper", HERE)
def test_a_papers_citation_comes_through_make(paper, run):
    """Fails if the environment lacks the package's command."""
    assert run("make", "--silent", f"{paper}-cite").stdout.count("\n@") >= 1


@pytest.mark.parametrize("which", ["oldest", "newest"])
def test_other_versions_get_an_environment_of_their_own(which, run):
    """Fails if the tests run in `.venv`, with the lock's versions, or those of the root's own files run along."""
    shown = run("make", "--dry-run", f"test-{which}", "ARGS=-k x").stdout
    assert f"bootstrap.py {which}\n" in shown
    tests = re.search(rf"\.venv-{which}/bin/python -m pytest (.*)", shown).group(1)
    assert "packages/dtnet/tests" in tests and tests.endswith("-k x") and " tests " not in tests


def test_make_works_in_a_folder_with_a_space_in_its_name(tree, run):
    """Fails if a recipe uses an absolute path without quotes."""
    assert " " in str(tree)
    assert run("make", cwd=tree).stdout.startswith("Tenfold")
    (tree / ".venv").mkdir()
    (tree / "dist").mkdir(exist_ok=True)
    run("make", "clean", cwd=tree)
    assert not (tree / ".venv").exists() and not (tree / "dist").exists()
    assert (tree / "shared" / "src" / "tenfold" / "__init__.py").is_file()


@pytest.fixture
def ci(tree, tmp_path) -> tuple[Path, Path]:
    """A copy of `.ci/run` and a folder of stand-ins for the programs that it calls."""
    (tmp_path / ".ci").mkdir()
    shutil.copy(tree / ".ci" / "run", tmp_path / ".ci" / "run")
    programs = tmp_path / "programs"
    programs.mkdir()
    for name in ("dirname", "head", "id", "sh"):
        (programs / name).symlink_to(shutil.which(name))
    return tmp_path, programs


def stand_in(folder: Path, name: str, lines: str) -> None:
    (folder / name).write_text(f"#!/bin/sh\n{lines}\n")
    (folder / name).chmod(0o755)


@pytest.mark.parametrize("code", [0, 3])
def test_ci_runs_make_test_and_ends_as_it_ends(ci, run, code):
    """Fails if `.ci/run` goes on after a failure, or leaves CI unset."""
    folder, programs = ci
    stand_in(programs, "make", f'echo "make $* with CI=$CI in $PWD"; [ "$1" = --version ] || exit {code}')
    done = run(folder / ".ci" / "run", cwd=folder.parent, check=False, env={"PATH": str(programs)})
    assert f"make test with CI=true in {folder}\n" in done.stdout
    assert done.returncode == code


def test_ci_installs_a_browser_and_a_compiler_where_it_can_and_goes_on_where_it_cannot(ci, run):
    """Fails if they are asked for without a fresh list of packages, or if a failing apt-get ends the run."""
    folder, programs = ci
    stand_in(programs, "make", "true")
    stand_in(programs, "sudo", 'shift; "$@"')
    stand_in(programs, "apt-get", f'echo "$@" >> "{folder}/apt"; [ "$1" = update ]')
    done = run(folder / ".ci" / "run", env={"PATH": str(programs)})
    update, install = (folder / "apt").read_text().splitlines()
    assert update.startswith("update") and install.endswith("g++ chromium")
    assert "ci: not installed: g++ chromium: apt-get failed" in done.stdout
    stand_in(programs, "chromium", "true")
    (folder / "apt").unlink()
    run(folder / ".ci" / "run", env={"PATH": str(programs)})
    assert (folder / "apt").read_text().splitlines()[1].endswith("recommends g++")
    stand_in(programs, "g++", "true")
    (folder / "apt").unlink()
    run(folder / ".ci" / "run", env={"PATH": str(programs)})
    assert not (folder / "apt").exists()


@pytest.mark.parametrize("target", ["setup", "lock"])
def test_a_python_that_is_not_there_is_named(run, target):
    """Fails if the shell's own words, without a remedy, are all there is."""
    refused = run("make", "PYTHON=/nonexistent", target, check=False)
    assert refused.returncode == 2
    assert refused.stderr.splitlines()[0].startswith("error: no such Python: /nonexistent (expected Python 3.11")
