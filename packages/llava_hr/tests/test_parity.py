"""Golden data: every case found under ``$TENFOLD_GOLDENS/llava_hr`` (default: this folder's own) must agree.

Dimensions and seeds are read from the cases; a folder without cases, or a computation that is not known, fails.
"""

import os
from pathlib import Path

import pytest

from llava_hr.evidence.parity import COMPUTATIONS, TOLERANCES
from tenfold.ledger.goldens import check_case, find_cases
from tenfold.runs import read_json
from tenfold.testing import goldens

OWN = Path(__file__).parent / "goldens"
FOLDER = Path(os.environ["TENFOLD_GOLDENS"]) / "llava_hr" if os.environ.get("TENFOLD_GOLDENS") else OWN


@pytest.mark.parametrize("path", find_cases(FOLDER), ids=lambda path: path.stem)
def test_golden_case(path):
    """Fails if adapters, alignment, embeddings, either encoder, the tower, the whole model or its gradients, the
    preprocessing, the prompts and labels, the metrics or the names of the weights differ."""
    outcome = check_case(path, COMPUTATIONS, TOLERANCES)
    assert outcome.passed, outcome.detail


def test_a_case_without_outputs_is_no_agreement(tmp_path):
    """Fails if an empty comparison passes."""
    case = FOLDER / "final_align.json"
    empty = {"config": {**read_json(case)["config"], "subcases": {}}}
    goldens.compares_nothing(case, tmp_path, empty, COMPUTATIONS)
