"""Golden data: every case found under ``$TENFOLD_GOLDENS/dyvte`` (default: this folder's own) must agree.

Dimensions, seeds and options are read from the cases; a folder without cases, or a computation that is not known,
fails.
"""

import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from dyvte.evidence.parity import COMPUTATIONS, TOLERANCES
from tenfold import UserError
from tenfold.ledger.goldens import check_case, find_cases, goldens

OWN = Path(__file__).parent / "goldens"


@pytest.mark.parametrize("path", find_cases(goldens("dyvte")), ids=lambda path: path.stem)
def test_golden_case(path):
    """Fails if a decision, a gate's input, a cache, a position, a label or a step differs from the released code."""
    outcome = check_case(path, COMPUTATIONS, TOLERANCES)
    assert outcome.passed, outcome.detail


def test_an_unknown_computation_fails(tmp_path):
    (tmp_path / "new.json").write_text('{"computation": "something_new"}')
    with pytest.raises(UserError, match="unknown computation 'something_new'"):
        check_case(tmp_path / "new.json", COMPUTATIONS, TOLERANCES)


@pytest.mark.parametrize(
    ("case", "name", "change", "word"),
    [
        ("gate_forward", "out/logits", lambda x: x * 1.001, "logits"),
        ("prefill_decode_llava_layout", "out/kv_len_prefill_0", lambda x: x + 1, "KV lengths 0"),
        ("train_step", "out/gate_labels", lambda x: 1 - x, "labels"),
        ("attention_profile", "out/exit_w_cross", lambda x: x + 1e-3, "exit w_cross"),
        ("fastv_combo", "out/position_ids_1_layer2", lambda x: x.flip(0), "layer 2"),
    ],
)
def test_a_changed_golden_number_is_noticed(tmp_path, case, name, change, word):
    """The comparison itself can fail."""
    tensors = load_file(OWN / f"{case}.safetensors")
    tensors[name] = change(tensors[name]).contiguous()
    save_file(tensors, tmp_path / f"{case}.safetensors")
    shutil.copy(OWN / f"{case}.json", tmp_path)
    outcome = check_case(tmp_path / f"{case}.json", COMPUTATIONS, TOLERANCES)
    assert not outcome.passed and word in outcome.detail
