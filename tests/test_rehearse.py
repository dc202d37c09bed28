"""`benchmarks/rehearse.py` finds a package's rehearsal and hands its arguments on."""

import runpy
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
RUNNER = ROOT / "benchmarks" / "rehearse.py"


def rehearse(*arguments):
    return subprocess.run([sys.executable, RUNNER, *arguments], capture_output=True, text=True)


def test_a_package_without_a_rehearsal_is_refused_in_one_line():
    """Fails if the name is imported untested: a traceback, or any module's `evidence`."""
    for arguments in ((), ("nothing",), ("tenfold",)):
        done = rehearse(*arguments)
        assert done.returncode == 2 and done.stderr.count("\n") == 1 and "gamma_mod" in done.stderr


def test_every_package_has_a_rehearsal():
    """Fails if a package comes without one."""
    packages = sorted(path.parent.name for path in ROOT.glob("packages/*/pyproject.toml"))
    assert runpy.run_path(str(RUNNER))["rehearsed"]() == packages


def test_arguments_reach_the_package():
    """Fails if the runner keeps them, or calls something other than what `python -m` runs."""
    done = rehearse("dit-sam", "--help")
    assert done.returncode == 0 and "--size" in done.stdout
