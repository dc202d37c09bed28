"""Golden data: every case found under ``$TENFOLD_GOLDENS/inst_diff_edit`` (default: this folder's own) must agree.

Dimensions and seeds are read from the cases; a folder without cases, or a computation that is not known, fails.
"""

import os
from pathlib import Path

import pytest

from inst_diff_edit.evidence.parity import COMPUTATIONS
from tenfold import UserError
from tenfold.ledger.goldens import check_case, find_cases

OWN = Path(__file__).parent / "goldens"
FOLDER = Path(os.environ["TENFOLD_GOLDENS"]) / "inst_diff_edit" if os.environ.get("TENFOLD_GOLDENS") else OWN


@pytest.mark.parametrize("path", find_cases(FOLDER), ids=lambda path: path.stem)
def test_golden_case(path):
    """Fails if maps, pictures, roles, masks, noise levels, blending, baselines or list formats differ."""
    outcome = check_case(path, COMPUTATIONS)
    assert outcome.passed, outcome.detail


def test_a_folder_without_cases_fails(tmp_path):
    (tmp_path / "official_keys.json").write_text('{"computation": "official_keys"}')
    with pytest.raises(UserError, match="no golden case"):
        find_cases(tmp_path)


def test_an_unknown_computation_fails(tmp_path):
    (tmp_path / "new.json").write_text('{"computation": "something_new"}')
    with pytest.raises(UserError, match="unknown computation 'something_new'"):
        check_case(tmp_path / "new.json", COMPUTATIONS)


def test_a_changed_number_is_noticed(tmp_path):
    """The comparison itself can fail: one role turned around."""
    from safetensors.torch import load_file, save_file

    tensors = load_file(OWN / "instant_mask.safetensors")
    tensors["out/case0/position"][1] *= -1
    save_file(tensors, tmp_path / "instant_mask.safetensors")
    (tmp_path / "instant_mask.json").write_text((OWN / "instant_mask.json").read_text())
    outcome = check_case(tmp_path / "instant_mask.json", COMPUTATIONS)
    assert not outcome.passed and "case0 roles" in outcome.detail
