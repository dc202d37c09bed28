"""Golden data: every case found under ``$TENFOLD_GOLDENS/e3_facenet`` (default: this folder's own) must agree.

Dimensions and seeds are read from the cases; a folder without cases, or a computation that is not known, fails.
"""

import json
import os
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from e3_facenet.evidence.parity import check_case
from tenfold import UserError
from tenfold.ledger.goldens import find_cases

OWN = Path(__file__).parent / "goldens"
FOLDER = Path(os.environ["TENFOLD_GOLDENS"]) / "e3_facenet" if os.environ.get("TENFOLD_GOLDENS") else OWN


@pytest.mark.parametrize("path", find_cases(FOLDER), ids=lambda path: path.stem)
def test_golden_case(path):
    """Fails if features are normalised over channels, a mask is applied, a draw is taken out of order, ..."""
    outcome = check_case(path)
    assert outcome.passed, outcome.detail


def test_a_folder_without_cases_fails(tmp_path):
    (tmp_path / "official_keys.json").write_text("{}")
    with pytest.raises(UserError, match="no golden case"):
        find_cases(tmp_path)


def test_an_unknown_computation_fails(tmp_path):
    (tmp_path / "new.json").write_text('{"computation": "something_new"}')
    with pytest.raises(UserError, match="unknown computation 'something_new'"):
        check_case(tmp_path / "new.json")


@pytest.mark.parametrize(
    ("case", "tensor", "words"),
    [
        ("sce", "out/delta_w", "plain dw"),
        ("synthesis_eval", "out/img", "picture"),
        ("camera", "out/fg_weights", "weights"),
    ],
)
def test_a_changed_number_is_noticed(tmp_path, case, tensor, words):
    """The comparison itself can fail: one number off by a hair beyond its tolerance."""
    tensors = load_file(OWN / f"{case}.safetensors")
    tensors[tensor].view(-1)[0] += 0.02
    save_file(tensors, tmp_path / f"{case}.safetensors")
    (tmp_path / f"{case}.json").write_text((OWN / f"{case}.json").read_text())
    outcome = check_case(tmp_path / f"{case}.json")
    assert not outcome.passed and words in outcome.detail


def test_draws_out_of_order_are_noticed(tmp_path):
    """A replay that hands draws out in another order, or of another shape, ends with an error."""
    tensors = load_file(OWN / "train_step.safetensors")
    names = sorted(name for name in tensors if name.startswith("in/rng/Gmain."))
    tensors[names[2]], tensors[names[6]] = tensors[names[6]], tensors[names[2]]
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, tmp_path / "train_step.safetensors")
    (tmp_path / "train_step.json").write_text(json.dumps(json.loads((OWN / "train_step.json").read_text())))
    with pytest.raises(RuntimeError, match="drew"):
        check_case(tmp_path / "train_step.json")
