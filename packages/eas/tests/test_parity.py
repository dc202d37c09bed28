"""Golden data: every case found under ``$TENFOLD_GOLDENS/eas`` (default: this folder's own) must agree.

Held here: PIA and adapter alone, the three hosts whole (METER's block and its three tasks, LaVIN's training and its
ways of generating), the three searches, LaVIN's texts and the shipped predictions. Any other computation is unknown.
"""

import os
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from eas.evidence.parity import COMPUTATIONS, TOLERANCES
from tenfold import UserError
from tenfold.ledger.goldens import check_case, find_cases

OWN = Path(__file__).parent / "goldens"
FOLDER = Path(os.environ["TENFOLD_GOLDENS"]) / "eas" if os.environ.get("TENFOLD_GOLDENS") else OWN


@pytest.mark.parametrize("path", find_cases(FOLDER), ids=lambda path: path.stem)
def test_golden_case(path):
    """Fails if a module, a block, a mean, a gradient, a frozen state, a cache slot or a preference differs."""
    outcome = check_case(path, COMPUTATIONS, TOLERANCES)
    assert outcome.passed, outcome.detail


def test_a_folder_without_cases_fails(tmp_path):
    (tmp_path / "official_keys.json").write_text("{}")
    with pytest.raises(UserError, match="no golden case"):
        find_cases(tmp_path)


@pytest.mark.parametrize("computation", ["lavin_moe", "something_new"])
def test_an_unknown_computation_fails(computation, tmp_path):
    """Fails if a host that is not built is taken for one that agrees."""
    (tmp_path / "new.json").write_text(f'{{"computation": "{computation}"}}')
    with pytest.raises(UserError, match=f"unknown computation '{computation}'"):
        check_case(tmp_path / "new.json", COMPUTATIONS, TOLERANCES)


CHANGES = [
    ("pia_units", "out/pia_running_mean_last2", "running mean"),
    ("llava_model", "out/train/grad/model.mm_projector.weight", "mm_projector"),
    ("llava_model", "out/gen/cached_global.2", "cached_global"),
    ("search_llava", "out/scores_after_update", "preferences"),
    ("meter_cross_layer", "out/pia_cross", "PIA of the other"),
    ("lavin_model", "out/gen_b1_merged_exact/wq_bias.0", "wq_bias"),
    ("text_protocol", "out/lr", "rate at"),
    ("meter_irtr", "out/sel0/grad_norm_trainable", "sel0 gradient"),
]


@pytest.mark.parametrize(("name", "key", "told"), CHANGES)
def test_a_changed_number_is_noticed(name, key, told, tmp_path):
    """Fails if the comparison itself cannot fail: one number off by a little more than its tolerance."""
    tensors = load_file(OWN / f"{name}.safetensors")
    tensors[key].view(-1)[-1] += 2e-4 * tensors[key].view(-1)[-1].abs().clamp_min(1)
    save_file(tensors, tmp_path / f"{name}.safetensors")
    (tmp_path / f"{name}.json").write_text((OWN / f"{name}.json").read_text())
    outcome = check_case(tmp_path / f"{name}.json", COMPUTATIONS, TOLERANCES)
    assert not outcome.passed and told in outcome.detail


def test_cases_behind_a_prefix_are_all_compared(tmp_path):
    """Fails if a file with several cases compares only one of them, or none."""
    plain = load_file(OWN / "pia_units.safetensors")
    both = {f"{case}/{key}": value.clone() for case in ("a", "b") for key, value in plain.items()}
    (tmp_path / "two.json").write_text((OWN / "pia_units.json").read_text())
    save_file(both, tmp_path / "two.safetensors")
    assert check_case(tmp_path / "two.json", COMPUTATIONS, TOLERANCES).passed
    both["b/out/pia"] += 1
    save_file(both, tmp_path / "two.safetensors")
    assert not check_case(tmp_path / "two.json", COMPUTATIONS, TOLERANCES).passed
