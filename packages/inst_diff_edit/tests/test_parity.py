"""Golden data: every case found under ``$TENFOLD_GOLDENS/inst_diff_edit`` (default: this folder's own) must agree.

Dimensions and seeds are read from the cases; a folder without cases, or a computation that is not known, fails.
"""

import os
from pathlib import Path

import pytest

from inst_diff_edit.evidence.parity import COMPUTATIONS
from tenfold.ledger.goldens import check_case, find_cases

OWN = Path(__file__).parent / "goldens"
FOLDER = Path(os.environ["TENFOLD_GOLDENS"]) / "inst_diff_edit" if os.environ.get("TENFOLD_GOLDENS") else OWN


@pytest.mark.parametrize("path", find_cases(FOLDER), ids=lambda path: path.stem)
def test_golden_case(path):
    """Fails if maps, pictures, roles, masks, noise levels, blending, baselines or list formats differ."""
    outcome = check_case(path, COMPUTATIONS)
    assert outcome.passed, outcome.detail
