"""Golden data: every case found under ``$TENFOLD_GOLDENS/dtnet`` (default: this folder's own) must agree.

Dimensions and seeds are read from the cases; a folder without cases, or a computation that is not known,
fails.
"""

import os
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from dtnet.evidence.parity import COMPUTATIONS, TOLERANCES
from tenfold import UserError
from tenfold.ledger.goldens import check_case, find_cases

OWN = Path(__file__).parent / "goldens"
FOLDER = Path(os.environ["TENFOLD_GOLDENS"]) / "dtnet" if os.environ.get("TENFOLD_GOLDENS") else OWN


@pytest.mark.parametrize("path", find_cases(FOLDER), ids=lambda path: path.stem)
def test_golden_case(path):
    """Fails if the order of the cells, a residual, the shared identity BN, the search, a word or a rate differs."""
    outcome = check_case(path, COMPUTATIONS, TOLERANCES)
    assert outcome.passed, outcome.detail


def test_a_folder_without_cases_fails(tmp_path):
    (tmp_path / "official_keys.json").write_text("{}")
    with pytest.raises(UserError, match="no golden case"):
        find_cases(tmp_path)


def test_an_unknown_computation_fails(tmp_path):
    (tmp_path / "new.json").write_text('{"computation": "something_new"}')
    with pytest.raises(UserError, match="unknown computation 'something_new'"):
        check_case(tmp_path / "new.json", COMPUTATIONS, TOLERANCES)


def test_a_changed_number_is_noticed(tmp_path):
    """The comparison itself can fail: one log-probability off by a hair beyond its tolerance."""
    tensors = load_file(OWN / "beam_search.safetensors")
    tensors["out/beam5_log_probs"][0, 0, 0] *= 1.001
    save_file(tensors, tmp_path / "beam_search.safetensors")
    (tmp_path / "beam_search.json").write_text((OWN / "beam_search.json").read_text())
    outcome = check_case(tmp_path / "beam_search.json", COMPUTATIONS, TOLERANCES)
    assert not outcome.passed and "5 beams, log-probs" in outcome.detail


def test_a_changed_token_is_noticed(tmp_path):
    """Tokens are compared exactly."""
    tensors = load_file(OWN / "scst.safetensors")
    tensors["out/tokens"][0, 0, 0] += 1
    save_file(tensors, tmp_path / "scst.safetensors")
    (tmp_path / "scst.json").write_text((OWN / "scst.json").read_text())
    outcome = check_case(tmp_path / "scst.json", COMPUTATIONS, TOLERANCES)
    assert not outcome.passed and "tokens" in outcome.detail
