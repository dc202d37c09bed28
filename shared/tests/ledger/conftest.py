"""Makes the fictional package importable, as an editable install of it would."""

import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "fictional_package"

if str(PACKAGE / "src") not in sys.path:
    sys.path.insert(0, str(PACKAGE / "src"))


@pytest.fixture(autouse=True)
def wide_plain_terminal(monkeypatch):
    """Tables and help wrap by the width of the terminal that the tests happen to run in."""
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.delenv("FORCE_COLOR", raising=False)
