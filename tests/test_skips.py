"""Every test run ends with its skips and their reasons; in CI an unexpected one fails the run."""

from __future__ import annotations

import shutil
import sys

import pytest

TESTS = """
import pytest

@pytest.mark.skipif(True, reason="no browser: none on PATH")
def test_a(): ...

@pytest.mark.parametrize("x", [1, 2])
def test_b(x): pytest.skip("a reason of its own")

def test_c(): ...
"""


@pytest.fixture
def outcome(root, run, tmp_path):
    """Runs a small project's tests under this repository's conftest.py."""
    (tmp_path / "tests").mkdir()
    shutil.copy(root / "conftest.py", tmp_path)
    shutil.copy(root / "tests" / "allowed_skips.txt", tmp_path / "tests")
    (tmp_path / "tests" / "test_x.py").write_text(TESTS)
    (tmp_path / "pytest.ini").write_text("[pytest]\n")

    def outcome(*options: str, ci: str = "") -> tuple[int, list[str]]:
        command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *options]
        done = run(*command, cwd=tmp_path, check=False, env={"CI": ci})
        return done.returncode, done.stdout.splitlines()

    return outcome


@pytest.mark.parametrize("workers", [[], ["-n", "2"]], ids=["one process", "two workers"])
def test_a_run_ends_with_the_number_of_skips_and_their_reasons(outcome, workers):
    """Fails if skips are counted in the workers, which print nothing."""
    code, lines = outcome(*workers)
    assert code == 0
    start = next(i for i, line in enumerate(lines) if "3 skipped" in line and "passed" not in line)
    assert lines[start + 1 : start + 3] == ["2 x a reason of its own", "1 x no browser: none on PATH"]


def test_every_test_draws_the_same_numbers_after_others_or_alone(root, run, tmp_path):
    """Fails if a test's numbers depend on those that ran before it: its bounds then hold by chance."""
    shutil.copy(root / "conftest.py", tmp_path)
    draws = "(random.random(), float(np.random.rand()), torch.rand(1).item())"
    one = "@pytest.mark.parametrize('x', [1, 2])\ndef test_a(x): print('drawn', *" + draws + ")\n"
    (tmp_path / "test_x.py").write_text("import random, numpy as np, pytest, torch\n" + one)
    done = run(sys.executable, "-m", "pytest", "-s", "-p", "no:cacheprovider", cwd=tmp_path, check=False)
    drawn = [line.rpartition("drawn ")[2] for line in done.stdout.splitlines() if "drawn " in line]
    assert len(drawn) == 2 and drawn[0] == drawn[1]


@pytest.mark.parametrize("workers", [[], ["-n", "2"]], ids=["one process", "two workers"])
def test_in_ci_a_skip_outside_the_list_fails_the_run(outcome, workers):
    """Fails if the exit code is left as pytest set it."""
    code, lines = outcome(*workers, ci="true")
    assert code == 1
    marked = [line for line in lines if "not in tests/allowed_skips.txt" in line]
    assert [line.split("  <-")[0] for line in marked] == ["2 x a reason of its own"]


def test_in_ci_expected_skips_pass(outcome):
    """Fails if the list's patterns are not read."""
    assert outcome("-k", "test_a or test_c", ci="true")[0] == 0


def test_what_is_worse_than_a_skip_keeps_its_exit_code(outcome, tmp_path):
    """Fails if the skips' verdict replaces pytest's: a file that cannot be read ends a run with 2."""
    (tmp_path / "tests" / "test_x.py").write_text("import pytest\npytest.skip('of its own', allow_module_level=True)\n")
    (tmp_path / "tests" / "test_y.py").write_text("def broken(:\n")
    assert outcome(ci="true")[0] == 2
