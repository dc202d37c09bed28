"""Ends every test run with the number of skips and the reason of each; in CI only expected ones may happen.

Expected are the reasons that `tests/allowed_skips.txt` lists (shell patterns, one a line).
"""

from __future__ import annotations

import os
from collections import Counter
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

import tenfold.testing.processes  # noqa: F401  # forks of tests get a thread pool of their own

ALLOWED_SKIPS = Path(__file__).parent / "tests" / "allowed_skips.txt"


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
