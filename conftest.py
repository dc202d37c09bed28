"""Ends every test run with the number of skips and the reason of each; in CI only expected ones may happen.

Expected are the reasons that `tests/allowed_skips.txt` lists (shell patterns, one a line).
"""

from __future__ import annotations

import os
import random
import sys
from collections import Counter
from fnmatch import fnmatchcase
from operator import attrgetter
from pathlib import Path
from types import ModuleType

import pytest

from tenfold.testing import processes  # forks of tests get a thread pool of their own

ALLOWED_SKIPS = Path(__file__).parent / "tests" / "allowed_skips.txt"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files whose tests fork come first, then those with more tests.

    A fork cannot train once a test of its process has made torch start threads for gradients, and which tests have run
    before in a worker is chance. `--no-loadscope-reorder` lets pytest-xdist keep this order.
    """
    counts = Counter(item.path for item in items)
    forks = {item.path: _forks(getattr(item, "module", None)) for item in items}
    items.sort(key=lambda item: (not forks[item.path], -counts[item.path]))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Every test draws the same numbers, alone or after others, so that a bound holds in every run or in none."""
    random.seed(0)
    for name, seed in (("numpy", "random.seed"), ("torch", "manual_seed")):
        if name in sys.modules:
            attrgetter(seed)(sys.modules[name])(0)


def _forks(module: ModuleType | None) -> bool:
    """Whether a file of tests uses `tenfold.testing.processes`, itself or by its helpers."""
    if module is None:
        return False
    names = {getattr(value, "__module__", None) for value in vars(module).values()}
    helpers = [sys.modules[name] for name in names if name in sys.modules and not name.startswith("tenfold.")]
    used = [value for one in (module, *helpers) for value in vars(one).values()]
    return any(value is processes or getattr(value, "__module__", None) == processes.__name__ for value in used)


def pytest_sessionfinish(session: pytest.Session) -> None:
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if reporter is not None and _unexpected(_skips(reporter)) and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    skips = _skips(terminalreporter)
    unexpected = _unexpected(skips)
    terminalreporter.section(f"{skips.total()} skipped")
    for reason, count in sorted(skips.items()):
        note = "  <- not in tests/allowed_skips.txt: fails in CI" if reason in unexpected else ""
        terminalreporter.line(f"{count} x {reason}{note}")


def _skips(reporter: pytest.TerminalReporter) -> Counter[str]:
    """Reason -> how many tests (or whole files) were skipped for it."""
    reports = reporter.stats.get("skipped", [])
    return Counter(report.longrepr[2].removeprefix("Skipped: ") for report in reports)


def _unexpected(skips: Counter[str]) -> set[str]:
    if os.environ.get("CI", "").lower() not in ("true", "1"):
        return set()
    lines = (line.strip() for line in ALLOWED_SKIPS.read_text(encoding="utf-8").splitlines())
    allowed = [line for line in lines if line and not line.startswith("#")]
    return {reason for reason in skips if not any(fnmatchcase(reason, pattern) for pattern in allowed)}
