"""Stage-1 files: official `mm_projector.bin` and this package's `projector.safetensors`, both ways."""

import json

import pytest
import torch
from llava_hr_fixtures import tiny_model
from llava_hr_releases import CONFIG, same, tiny_weights, write_release
from safetensors.torch import load_file

from llava_hr.checkpoints import projector
from llava_hr.checkpoints.convert import convert
from llava_hr.checkpoints.keys import to_official, to_ours
from tenfold import UserError

STAGE_1 = {
    name: value
    for name, value in tiny_weights().items()
    if name.startswith(("model.mm_projector.", "model.vision_tower.align_stages.0."))
}


@pytest.mark.parametrize("prefix", ["", "module.", "base_model.model.", "unprefixed"])
def test_stage_1_files_convert_both_ways(tmp_path, prefix):
    """Fails if one of the 8 weights is lost or renamed wrongly, or a wrapper's prefix is not known."""
    names = {name: name.removeprefix("model.") if prefix == "unprefixed" else prefix + name for name in STAGE_1}
    torch.save({names[name]: value for name, value in STAGE_1.items()}, tmp_path / "mm_projector.bin")
    made = convert(tmp_path / "mm_projector.bin", tmp_path / "projector.safetensors")
    assert same(to_ours(STAGE_1), load_file(tmp_path / "projector.safetensors"))
    assert made.parameters["projector"] == 24 * 16 + 24 + 24 * 24 + 24
    assert made.parameters["final align"] == 16 * 16 + 16 + 12 * 16 + 16
    convert(tmp_path / "projector.safetensors", tmp_path / "back.bin")
    assert same(STAGE_1, torch.load(tmp_path / "back.bin", weights_only=True))


def test_stage_1_weights_are_found_in_every_folder(tmp_path):
    """Fails if `stage1.read` does not find the same 8 in a stage-1 folder and in whole models."""
    release = write_release(tmp_path / "release")
    converted = convert(release, tmp_path / "ours")
    (tmp_path / "stage1").mkdir()
    torch.save(STAGE_1, tmp_path / "stage1" / "mm_projector.bin")
    (tmp_path / "stage1" / "config.json").write_text(json.dumps(CONFIG))
    for folder in (tmp_path / "stage1", release, converted.output):
        assert same(to_ours(STAGE_1), projector.read(folder))
    convert(tmp_path / "stage1", tmp_path / "projector.safetensors")
    assert same(to_ours(STAGE_1), load_file(tmp_path / "projector.safetensors"))


def spoilt_stage_1(tmp_path, change):
    weights = dict(STAGE_1)
    change(weights)
    torch.save(weights, tmp_path / "mm_projector.bin")
    return tmp_path / "mm_projector.bin"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop("model.mm_projector.2.bias"), "no model.multi_modal_projector.linear_2.bias"),
        (lambda w: [w.pop(k) for k in list(w) if "align" in k], "no model.vision_tower.align.fast_proj.weight"),
        (lambda w: w.update({"model.norm.weight": torch.ones(24)}), "does not train model.language_model.norm.weight"),
        (lambda w: w.update({"model.mm_projector.5.bias": torch.ones(24)}), "no weight model.mm_projector.5.bias"),
        (lambda w: w.clear() or w.update({"x": torch.ones(1)}), "no model.multi_modal_projector.linear_1.weight"),
    ],
)
def test_a_stage_1_file_of_something_else_is_refused(tmp_path, change, message):
    """Fails if a plain LLaVA projector, or one weight fewer, is taken for a stage-1 file of LLaVA-HR."""
    file = spoilt_stage_1(tmp_path, change)
    with pytest.raises(UserError, match=message):
        convert(file, tmp_path / "projector.safetensors")
    assert not (tmp_path / "projector.safetensors").exists()


def test_stage_1_outputs_are_not_overwritten(tmp_path):
    file = spoilt_stage_1(tmp_path, lambda w: None)
    with pytest.raises(UserError, match="both files are of one format"):
        convert(file, tmp_path / "other.bin")
    (tmp_path / "projector.safetensors").write_bytes(b"mine")
    with pytest.raises(UserError, match="already exists"):
        convert(file, tmp_path / "projector.safetensors")
    assert (tmp_path / "projector.safetensors").read_bytes() == b"mine"


def test_stage_1_files_are_whole_or_not_at_all(tmp_path):
    """Fails if one of the 8 weights may be missing, or an official reader would find other names."""
    state = tiny_model().state_dict()
    projector.write(tmp_path / "mm_projector.bin", state)
    official = torch.load(tmp_path / "mm_projector.bin", weights_only=True)
    assert official.keys() == to_official({name: state[name] for name in projector.NAMES}).keys() and len(official) == 8
    projector.write(tmp_path / "projector.safetensors", state)
    for name in ("mm_projector.bin", "projector.safetensors"):
        assert all(torch.equal(value, state[key]) for key, value in projector.read(tmp_path / name).items())
    del state[projector.NAMES[3]]
    with pytest.raises(UserError, match=r"no model\.multi_modal_projector\.linear_2\.bias"):
        projector.write(tmp_path / "half.bin", state)
    assert not (tmp_path / "half.bin").exists()
