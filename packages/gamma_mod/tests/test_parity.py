"""Golden data: every case found under ``$TENFOLD_GOLDENS/gamma_mod`` (default: this folder's own) must agree.

Dimensions and seeds are read from the cases; a folder without cases, or a computation that is not known, fails.
"""

import json
import os
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from gamma_mod.evidence.parity import COMPUTATIONS, TOLERANCES
from tenfold import UserError
from tenfold.ledger.goldens import check_case, find_cases

OWN = Path(__file__).parent / "goldens"
FOLDER = Path(os.environ["TENFOLD_GOLDENS"]) / "gamma_mod" if os.environ.get("TENFOLD_GOLDENS") else OWN


@pytest.mark.parametrize("path", find_cases(FOLDER), ids=lambda path: path.stem)
def test_golden_case(path):
    """Fails if ranks, choices, layers, caches, losses, gradients, generation or names of weights differ."""
    outcome = check_case(path, COMPUTATIONS, TOLERANCES)
    print(path.stem, outcome.value, outcome.detail)
    assert outcome.passed, outcome.detail


def test_a_folder_without_cases_fails(tmp_path):
    (tmp_path / "notes.json").write_text("{}")
    with pytest.raises(UserError, match="no golden case"):
        find_cases(tmp_path)


def test_an_unknown_computation_fails(tmp_path):
    (tmp_path / "new.json").write_text('{"computation": "something_new"}')
    with pytest.raises(UserError, match="unknown computation 'something_new'"):
        check_case(tmp_path / "new.json", COMPUTATIONS, TOLERANCES)


@pytest.mark.parametrize(
    ("name", "tensor", "message"),
    [
        ("mod_layer_train", "out/grad_router", "grad_router"),
        ("mod_layer_infer", "out/final_key_cache", "final keys"),
        ("mgm_layer", "out/text/hidden_states", "text hidden_states"),
        ("tiny_model_train", "out/aux_loss_per_mod_layer", "auxiliary losses"),
        ("tiny_model_generate", "out/step_logits", "step logits"),
        ("llava_hr_fusion", "out/latent_up", "latent up"),
    ],
)
def test_a_changed_number_is_noticed(tmp_path, name, tensor, message):
    """The comparison itself can fail: one number off by a hair beyond its tolerance."""
    tensors = load_file(OWN / f"{name}.safetensors")
    flat = tensors[tensor].view(-1)
    flat[flat.abs().argmax()] *= 1.003
    save_file(tensors, tmp_path / f"{name}.safetensors")
    (tmp_path / f"{name}.json").write_text(json.dumps(json.loads((OWN / f"{name}.json").read_text())))
    outcome = check_case(tmp_path / f"{name}.json", COMPUTATIONS, TOLERANCES)
    assert not outcome.passed and message in outcome.detail
