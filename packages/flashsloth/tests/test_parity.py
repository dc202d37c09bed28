"""Golden data: every case found under ``$TENFOLD_GOLDENS/flashsloth`` (default: this folder's own) must agree.

Dimensions and seeds are read from the cases; a folder without cases, or a computation that is not known, fails.
"""

import json
import os
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from flashsloth.checkpoints.keys import key_report
from flashsloth.evidence.parity import check_case
from tenfold import UserError
from tenfold.ledger.goldens import find_cases

OWN = Path(__file__).parent / "goldens"
FOLDER = Path(os.environ["TENFOLD_GOLDENS"]) / "flashsloth" if os.environ.get("TENFOLD_GOLDENS") else OWN


@pytest.mark.parametrize("path", find_cases(FOLDER), ids=lambda path: path.stem)
def test_golden_case(path):
    """Fails if SAP, EmbQ, their place, the assembly of a sequence, the official ranges, gradients, prompts, labels,
    preprocessing or the order of samples differ (seen: EmbQ one layer later, LN_q for LN_text, tiles column by
    column)."""
    outcome = check_case(path)
    assert outcome.passed, outcome.detail


def test_an_unknown_computation_fails(tmp_path):
    (tmp_path / "new.json").write_text('{"computation": "something_new"}')
    with pytest.raises(UserError, match="unknown computation 'something_new'"):
        check_case(tmp_path / "new.json")


@pytest.mark.parametrize(
    ("name", "tensor", "message"),
    [
        ("modules", "out/sap/alpha", "sap alpha"),
        ("modules", "out/embq/i2q_out", "image step"),
        ("modules", "out/embq/grad/text", "gradient of text"),
        ("tiny_model", "out/single/layer7_in", "behind EmbQ"),
        ("tiny_model", "out/sft/grad/model.pooling.mlp.3.weight", "model.pooling.mlp.3.weight"),
    ],
)
def test_a_changed_number_is_noticed(tmp_path, name, tensor, message):
    """The comparison itself can fail: one number off by a hair beyond its tolerance."""
    tensors = load_file(OWN / f"{name}.safetensors")
    flat = tensors[tensor].view(-1)
    index = flat.abs().argmax()
    flat[index] *= 1.01
    save_file(tensors, tmp_path / f"{name}.safetensors")
    (tmp_path / f"{name}.json").write_text((OWN / f"{name}.json").read_text())
    outcome = check_case(tmp_path / f"{name}.json")
    assert not outcome.passed and message in outcome.detail


def test_all_905_official_names_and_shapes():
    """Fails if a weight of the full-size model is missing, too many, or of another shape, or a count differs."""
    golden = json.loads((OWN / "official_keys.json").read_text())
    for model in ("3.2b", "hd-3.2b"):
        report = key_report(golden, model)
        assert report.wrong == [] and (report.count, report.parameters) == (905, 3_196_373_985)
    golden["method_specific"]["model.lqformer.up_projector.bias"] = [2561]
    assert any("up_projector.bias" in line for line in key_report(golden).wrong)
