"""Official checkpoints and this package's folders: names at full size, both ways, and files that are broken."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from eas_fixtures import Prompts, build, randomise, skipper
from safetensors.torch import load_file, save_file
from torch import nn

from eas.checkpoints import keys
from eas.checkpoints.convert import convert, key_report, plan_of
from eas.checkpoints.folder import About, load_folder, save_folder, weights_of
from eas.skipper import Skipper
from tenfold import UserError
from tenfold.runs import read_json

GOLDENS = Path(__file__).parent / "goldens"


def tuned(skip=(1, 3), projector=("linear_1.weight", "linear_2.weight")):
    made = skipper(skip)
    made.projector = {name: nn.Parameter(torch.randn(32, 16 if "1" in name else 32)) for name in projector}
    return made


def release(folder, made, shards=2, linear=False):
    """The official layout: a whole model in pickled shards, skipped layers without attention."""
    weights = keys.tensors_to_official(weights_of(made, linear))
    weights["lm_head.weight"] = torch.randn(8, 32)
    for layer in range(4):
        weights[f"model.layers.{layer}.mlp.up_proj.weight"] = torch.randn(4, 32)
        if layer not in made.plan.skip:
            weights[f"model.layers.{layer}.self_attn.q_proj.weight"] = torch.randn(32, 32)
    folder.mkdir()
    names = sorted(weights)
    index = {}
    for shard in range(shards):
        file = f"pytorch_model-{shard + 1:05d}-of-{shards:05d}.bin"
        part = names[shard::shards]
        torch.save({name: weights[name] for name in part}, folder / file)
        index |= dict.fromkeys(part, file)
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": index}))
    return weights


@pytest.mark.parametrize("host", ["vicuna_7b_sqa", "llava15_7b_aid_slake"])
def test_full_size_names_and_shapes_are_the_official_ones(host):
    """Fails if a key, a shape or a parameter is missing, unexpected or renamed (a router's bias, for one)."""
    golden = read_json(GOLDENS / "official_keys.json")
    report = key_report(host, golden)
    assert report.wrong == [] and report.count == len(golden[host]["keys"])
    assert report.parameters == golden[host]["counts"]["trainable"]


@pytest.mark.parametrize("linear", [True, False])
def test_a_release_goes_both_ways_bit_for_bit(linear, tmp_path):
    """Fails if a weight is changed, invented (a router's bias) or lost on the way to our format and back."""
    made = tuned(projector=("linear_1.weight",) if linear else ("linear_1.weight", "linear_2.weight"))
    weights = release(tmp_path / "release", made, linear=linear)
    converted = convert(tmp_path / "release", tmp_path / "ours")
    assert converted.plan.skip == (1, 3) and converted.plan.pia_rank == 8 and converted.plan.groups == 2
    assert converted.frozen == 8 * 32 + 4 * 4 * 32 + 2 * 32 * 32
    convert(tmp_path / "ours", tmp_path / "back", to="official")
    back = load_file(tmp_path / "back" / "model.safetensors")
    own = {name for name in weights if keys.from_official(name)}
    assert set(back) == own and all(torch.equal(back[name], weights[name]) for name in own)
    assert "model.layers.0.adapter_attn.expert_weights.bias" not in back


def test_the_way_back_with_a_base_is_a_whole_checkpoint(tmp_path):
    """Fails if a skipped layer keeps its attention, or a frozen weight is lost."""
    made = tuned()
    save_folder(made, tmp_path / "ours", About(width=32))
    base = {"lm_head.weight": torch.randn(8, 32)}
    for layer in range(4):
        base[f"model.layers.{layer}.self_attn.q_proj.weight"] = torch.randn(32, 32)
    (tmp_path / "base").mkdir()
    save_file(base, tmp_path / "base" / "model.safetensors")
    convert(tmp_path / "ours", tmp_path / "whole", to="official", base=tmp_path / "base")
    whole = load_file(tmp_path / "whole" / "model.safetensors")
    assert {name for name in whole if "self_attn" in name} == {
        f"model.layers.{layer}.self_attn.q_proj.weight" for layer in (0, 2)
    }
    assert plan_of({name: tuple(value.shape) for name, value in whole.items()}, "whole").skip == (1, 3)
    del base["model.layers.3.self_attn.q_proj.weight"]
    save_file(base, tmp_path / "base" / "model.safetensors")
    (tmp_path / "short").mkdir()
    save_file({"lm_head.weight": base["lm_head.weight"]}, tmp_path / "short" / "model.safetensors")
    with pytest.raises(UserError, match="0 layers"):
        convert(tmp_path / "ours", tmp_path / "other", to="official", base=tmp_path / "short")
    assert not (tmp_path / "other").exists()


def test_a_saved_tuning_answers_as_before(tmp_path):
    """Fails if a module, the plan or the projector is not what was saved; leaving restores the host's projector."""
    inputs = Prompts("llava").batch([[("image", 4), 6]], "left")
    model, made = build("llava"), tuned(projector=())
    made.take_projector(model)
    for parameter in made.projector.values():
        parameter.data += 0.1
    with torch.no_grad():
        plain = model(**inputs).logits
        with made(model):
            before = model(**inputs).logits
        made.plan.to_dict()
        save_folder(made, tmp_path / "tuning", About(width=32, prompt_format="QCM-ALE", search="ab", run="r"))
        again, about = load_folder(tmp_path / "tuning")
        with again(model):
            after = model(**inputs).logits
        assert torch.equal(before, after) and not torch.equal(before, plain)
        assert torch.equal(model(**inputs).logits, plain)
    assert about == About(width=32, prompt_format="QCM-ALE", search="ab", run="r")
    assert "license" in (tmp_path / "tuning" / "README.md").read_text()


def broken(folder, name):
    weights = load_file(folder / "adapters.safetensors")
    first = "layers.0.adapter.A.weight"
    if name == "missing":
        del weights[first]
    elif name == "extra":
        weights["layers.1.adapter.A.weight"] = weights[first].clone()
    elif name == "shape":
        weights[first] = weights[first][:, :16].clone()
    elif name == "nan":
        weights[first][0, 0] = float("nan")
    elif name == "integers":
        weights[first] = weights[first].long()
    if name == "truncated":
        data = (folder / "adapters.safetensors").read_bytes()
        (folder / "adapters.safetensors").write_bytes(data[: len(data) // 2])
    elif name == "no weights":
        (folder / "adapters.safetensors").unlink()
    elif name == "no json":
        (folder / "eas.json").write_text("{")
    elif name == "other json":
        (folder / "eas.json").write_text('{"format": "peft"}')
    elif name == "unknown knob":
        content = json.loads((folder / "eas.json").read_text())
        content["plan"]["alpha"] = 1
        (folder / "eas.json").write_text(json.dumps(content))
    elif name in ("width", "layers"):
        content = json.loads((folder / "eas.json").read_text())
        (content if name == "width" else content["plan"])[name] = 10**30
        (folder / "eas.json").write_text(json.dumps(content))
    elif name == "wrong type":
        content = json.loads((folder / "eas.json").read_text())
        content["plan"]["pia_rank"] = "8"
        (folder / "eas.json").write_text(json.dumps(content))
    else:
        save_file(weights, folder / "adapters.safetensors")


BROKEN = {
    "missing": "1 weights are missing, first layers.0.adapter.A.weight",
    "extra": "1 weights have no place, first layers.1.adapter.A.weight",
    "shape": r"layers.0.adapter.A.weight \[4, 16\]",
    "nan": "layers.0.adapter.A.weight is not finite",
    "integers": "layers.0.adapter.A.weight is not finite",
    "truncated": "broken or truncated",
    "no weights": "no such file",
    "no json": "eas.json",
    "other json": "no EAS adapters",
    "unknown knob": "no plan of skipped attentions",
    "wrong type": "pia_rank is '8'",
    "width": "width, host or data of another type",
    "layers": "layers or a rank beyond every model",
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_folder_is_one_line(name, tmp_path):
    """Fails if a broken file is a traceback, or is taken for good."""
    save_folder(skipper(), tmp_path / "tuning", About(width=32))
    broken(tmp_path / "tuning", name)
    with pytest.raises(UserError, match=BROKEN[name]) as error:
        load_folder(tmp_path / "tuning")
    assert "\n" not in str(error.value)


def test_broken_releases_are_one_line(tmp_path):
    """Fails if a torn shard, a layer with both modules or with neither, or another model is converted."""
    made = tuned()
    release(tmp_path / "release", made)
    shard = tmp_path / "release" / "pytorch_model-00001-of-00002.bin"
    copy = tmp_path / "torn"
    shutil.copytree(tmp_path / "release", copy)
    (copy / shard.name).write_bytes(shard.read_bytes()[:500])
    with pytest.raises(UserError, match="broken, truncated"):
        convert(copy, tmp_path / "out")
    shapes = {name: tuple(value.shape) for name, value in release(tmp_path / "again", made).items()}
    cases = {
        "attention and PIA": shapes | {"model.layers.1.self_attn.q_proj.weight": (32, 32)},
        "both modules": shapes | {"model.layers.1.adapter_attn.conv_A.weight": (4, 32, 1)},
        "no adapters": {"lm_head.weight": (8, 32)},
        "no weight of LLaVA-EAS": shapes | {"model.layers.0.adapter_attn.conv_E.weight": (1, 1, 1)},
    }
    for told, names in cases.items():
        with pytest.raises(UserError, match=told):
            plan_of(names, "release")
    assert not (tmp_path / "out").exists()


def test_adapters_of_another_host_are_refused():
    """Fails if a wrong width or depth is found out inside a matrix product."""
    with pytest.raises(UserError, match="adapters of width 16"), skipper(width=16)(build("llava")):
        pass
    with pytest.raises(UserError, match="a plan for 5 layers"), skipper(layers=5)(build("llava")):
        pass
    made = randomise(skipper())
    made.projector = {"linear_1.weight": nn.Parameter(torch.zeros(3, 3))}
    model = build("llava")
    with pytest.raises(UserError, match=r"projector linear_1\.weight"), made(model):
        pass
    with Skipper(made.plan)(model):
        pass
