"""Golden data: every case found under ``$TENFOLD_GOLDENS/llava_hr`` (default: this folder's own) must agree.

Dimensions and seeds are read from the cases; a folder without cases, or a computation that is not known, fails.
"""

import json
import os
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from llava_hr.evidence.parity import COMPUTATIONS, TOLERANCES
from tenfold import UserError
from tenfold.ledger.goldens import check_case, find_cases

OWN = Path(__file__).parent / "goldens"
FOLDER = Path(os.environ["TENFOLD_GOLDENS"]) / "llava_hr" if os.environ.get("TENFOLD_GOLDENS") else OWN


@pytest.mark.parametrize("path", find_cases(FOLDER), ids=lambda path: path.stem)
def test_golden_case(path):
    """Fails if adapters, alignment, embeddings, either encoder, the tower, the whole model or its gradients, the
    preprocessing, the prompts and labels, the metrics or the names of the weights differ."""
    outcome = check_case(path, COMPUTATIONS, TOLERANCES)
    assert outcome.passed, outcome.detail


def test_a_folder_without_cases_fails(tmp_path):
    (tmp_path / "notes.json").write_text("{}")
    with pytest.raises(UserError, match="no golden case"):
        find_cases(tmp_path)


def test_an_unknown_computation_fails(tmp_path):
    (tmp_path / "new.json").write_text('{"computation": "something_new"}')
    with pytest.raises(UserError, match="unknown computation 'something_new'"):
        check_case(tmp_path / "new.json", COMPUTATIONS, TOLERANCES)


def test_a_case_without_outputs_fails(tmp_path):
    """An empty comparison is no agreement."""
    case = json.loads((OWN / "final_align.json").read_text())
    case["config"]["subcases"] = {}
    (tmp_path / "final_align.json").write_text(json.dumps(case))
    (tmp_path / "final_align.safetensors").write_bytes((OWN / "final_align.safetensors").read_bytes())
    with pytest.raises(UserError, match="nothing to compare"):
        check_case(tmp_path / "final_align.json", COMPUTATIONS, TOLERANCES)


@pytest.mark.parametrize(
    ("name", "tensor", "message"),
    [
        ("mr_adapter", "out/up.fused", "up fused"),
        ("mr_adapter", "out/equal.grad/model.vision_tower.align_stages_latent.0.gate.0.weight", "gradient of gate.0"),
        ("vision_tower", "out/r1024.features", "r1024 features"),
        ("tiny_llava_hr", "out/gen.prefill_logits", "prefill logits"),
    ],
)
def test_a_changed_number_is_noticed(tmp_path, name, tensor, message):
    """The comparison itself can fail: one number off by a hair beyond its tolerance."""
    tensors = load_file(OWN / f"{name}.safetensors")
    flat = tensors[tensor].view(-1)
    index = flat.abs().argmax()
    flat[index] *= 1.003
    save_file(tensors, tmp_path / f"{name}.safetensors")
    (tmp_path / f"{name}.json").write_text((OWN / f"{name}.json").read_text())
    outcome = check_case(tmp_path / f"{name}.json", COMPUTATIONS, TOLERANCES)
    assert not outcome.passed and message in outcome.detail
