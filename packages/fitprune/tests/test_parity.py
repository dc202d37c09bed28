"""Golden data: every case found under ``$TENFOLD_GOLDENS/fitprune`` (default: this folder's own) must agree.

Dimensions and seeds are read from the cases; a folder without cases, or a computation that is not known,
fails.
"""

import os
from pathlib import Path

import pytest

from fitprune.evidence.parity import COMPUTATIONS, TOLERANCES
from tenfold import UserError
from tenfold.ledger.goldens import check_case, find_cases

OWN = Path(__file__).parent / "goldens"
FOLDER = Path(os.environ["TENFOLD_GOLDENS"]) / "fitprune" if os.environ.get("TENFOLD_GOLDENS") else OWN


@pytest.mark.parametrize("path", find_cases(FOLDER), ids=lambda path: path.stem)
def test_golden_case(path):
    """Fails if scores, decisions, states, KV lengths, positions, the search or the recipe tables differ."""
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
    """The comparison itself can fail: one score off by a hair beyond its tolerance."""
    from safetensors.torch import load_file, save_file

    tensors = load_file(OWN / "prune_layer.safetensors")
    tensors["out/case0.score_self"][0] *= 1.0001
    save_file(tensors, tmp_path / "prune_layer.safetensors")
    (tmp_path / "prune_layer.json").write_text((OWN / "prune_layer.json").read_text())
    outcome = check_case(tmp_path / "prune_layer.json", COMPUTATIONS, TOLERANCES)
    assert not outcome.passed and "case0 self" in outcome.detail
