"""Golden data: every case found under ``$TENFOLD_GOLDENS/dit_sam`` (default: this folder's own) must agree.

Dimensions and seeds are read from the cases; a folder without cases, or a computation that is not known, fails.
"""

import json
import os
import shutil
from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from dit_sam.checkpoints.keys import official, possible_variants, unused_shapes
from dit_sam.config import DITConfig, sized
from dit_sam.evidence.parity import COMPUTATIONS, TOLERANCES
from dit_sam.model import DITSam
from tenfold import UserError
from tenfold.ledger.goldens import check_case, find_cases

OWN = Path(__file__).parent / "goldens"
FOLDER = Path(os.environ["TENFOLD_GOLDENS"]) / "dit_sam" if os.environ.get("TENFOLD_GOLDENS") else OWN
OFFICIAL = json.loads((OWN / "official_keys.json").read_text())
CONFIGS = {
    **{name: {"variant": name} for name in ("layer_wise", "e2e", "e2e_token", "token_layer_wise")},
    **{name: {"variant": name} for name in ("cross_attention", "cross_attention_ffn")},
    "default_sam": {"variant": "default"},
    "default_sam_add_2": {"variant": "default", "decoder_depth": 4},
    "default_sam_add_4": {"variant": "default", "decoder_depth": 6},
}


@pytest.mark.parametrize("path", find_cases(FOLDER), ids=lambda path: path.stem)
def test_golden_case(path):
    """Fails if a bias of relative positions, the order of slots, a norm, the first BERT layer, the threshold's side, a
    rate, a tap of the resize or a field of the json differs."""
    outcome = check_case(path, COMPUTATIONS, TOLERANCES)
    assert outcome.passed, outcome.detail


@pytest.mark.parametrize(
    ("case", "key", "amount"),
    [
        ("encoder_layer_wise", "out/block1_text_in", 1e-3),
        ("encoder_default", "out/neck", 1e-3),
        ("net_e2e", "out/ema/text_proj.weight", 1e-4),
        ("net_layer_wise", "out/grad/visual_encoder.probs.1.weight", 1.0),
        ("schedule", "out/wcosine", 1e-6),
        ("preprocess", "out/flip_mask_0", 1e-5),
        ("metrics", "out/intersection", 1),
        ("metrics", "out/foreground_3", 1),
        ("text", "out/input_ids", 1),
        ("refer_conversion", "out/mask_1007", 1),
    ],
)
def test_a_changed_number_is_noticed(tmp_path, case, key, amount):
    """The comparison itself can fail: one entry of a golden tensor off by a little."""
    tensors = load_file(OWN / f"{case}.safetensors")
    tensors[key].view(-1)[0] += amount
    save_file(tensors, tmp_path / f"{case}.safetensors")
    shutil.copy(OWN / f"{case}.json", tmp_path)
    outcome = check_case(tmp_path / f"{case}.json", COMPUTATIONS, TOLERANCES)
    assert not outcome.passed


def test_a_folder_without_cases_fails(tmp_path):
    """Fails if nothing to compare passed for agreement."""
    shutil.copy(OWN / "official_keys.json", tmp_path)
    with pytest.raises(UserError, match="no golden case"):
        find_cases(tmp_path)


def test_an_unknown_computation_fails(tmp_path):
    """Fails if an unknown computation were skipped."""
    (tmp_path / "new.json").write_text('{"computation": "something_new"}')
    with pytest.raises(UserError, match="unknown computation 'something_new'"):
        check_case(tmp_path / "new.json", COMPUTATIONS, TOLERANCES)


@cache
def full_size(name):
    """A net's official names and shapes, built at full size without memory."""
    config = sized("vit_h") if name == "layer_wise_vith" else DITConfig(**CONFIGS[name])
    with torch.device("meta"):
        model = DITSam(config)
    shapes = {official(key): list(value.shape) for key, value in model.state_dict().items()}
    return shapes | {key: list(shape) for key, shape in unused_shapes(config).items()}, model


@pytest.mark.parametrize("name", [*CONFIGS, "layer_wise_vith"])
def test_official_keys_are_this_models_weights(name):
    """D3. Fails if a weight is missing, has another name or shape, or one too many is made."""
    shapes, model = full_size(name)
    counts, own = OFFICIAL["parameter_counts"][name], OFFICIAL["method_specific_keys"][name]
    if name == "layer_wise":
        assert shapes == OFFICIAL["layer_wise"]
    assert {key: shapes[key] for key in own} == own
    assert len(shapes) == counts["n_keys"]
    in_path = sum(p.numel() for key, p in model.named_parameters() if "text_path" in key)
    assert in_path == counts["method_in_encoder"]
    for ours, theirs in (("image_encoder", "visual_encoder"), ("text_encoder", "lang_encoder")):
        assert sum(p.numel() for p in getattr(model, ours).parameters()) == counts[theirs]
    unused = sum(torch.Size(shape).numel() for shape in unused_shapes(model.config).values())
    assert sum(p.numel() for p in model.parameters()) + unused == counts["total_parameters"]


@pytest.mark.parametrize("name", [*CONFIGS, "layer_wise_vith"])
def test_the_variant_is_told_from_the_keys_where_it_can_be(name):
    """Fails if a mark of a variant is missed; layer_wise and e2e share their names, so both are named."""
    names = full_size(name)[0]
    expected = {"layer_wise": ("layer_wise", "e2e"), "e2e": ("layer_wise", "e2e")}
    variant = "default" if name.startswith("default") else name
    assert possible_variants(names) == expected.get(name, (variant,))
    assert possible_variants(f"module.{key}" for key in names) == expected.get(name, (variant,))
